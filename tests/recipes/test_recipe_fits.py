"""Fusions that a recipe has fitted: stacking out of fold, blending, greedy selection."""

import json
import shutil
from functools import partial

import numpy as np
import pytest

from polyfuse.combining_runs import combine_population
from polyfuse.errors import DataError, RecipeError
from polyfuse.recipes import fits as recipe_fits
from polyfuse.recipes import run as module
from polyfuse.recipes.folder import Run
from polyfuse.recipes.schema import check
from polyfuse.recipes.source import parse
from tiny_run import digests, held_out_images, make_recipe

run = partial(module.run, workers=1)
PLAIN = "name: x\ndata: {name: arrays, path: x.npz}\nmodel: {name: mlp, inputs: 4, classes: 3}\n"
PLAIN += "training: kfold\n"
MODELS = """\
model:
  - {name: mlp, inputs: 72, classes: 3, hidden: 8}
  - {name: mlp, inputs: 72, classes: 3, hidden: 5, layers: 1}
"""


def recipe_with(folder, training, combine, *, models=2):
    recipe = make_recipe(folder)
    lines = recipe.read_text().splitlines(True)
    dropped = ("training:", "model:") if models > 1 else ("training:",)
    kept = [line for line in lines if not line.startswith(dropped)]
    text = "".join(kept) + (MODELS if models > 1 else "")
    recipe.write_text(text + f"training: {training}\ncombine: {json.dumps(combine)}\n")
    return recipe


def stacked(folder):
    combine = [{"name": "caruana", "rounds": 9}, {"name": "stack", "on": "train", "folds": 3}]
    recipe = recipe_with(folder, "{name: heterogeneous, folds: 2}", combine)
    return recipe, run(recipe, out=folder / "RUN")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return stacked(tmp_path_factory.mktemp("stacked"))


def test_what_was_fitted_has_its_row_and_reads_new_data(done, tmp_path):
    _, finished = done
    board, population = finished.scoreboard, finished.population
    rows = [row for row in board.rows if row["kind"] == "fitted"]
    assert [row["name"] for row in rows] == ["caruana", "stack, out of fold"]
    assert population.fusion("caruana")["options"] == {"caruana.rounds": 9}
    assert population.fusion("stack, out of fold")["voices"] == [[0, 1], [2, 3]]
    np.save(tmp_path / "new.npy", held_out_images())
    for row in rows:
        said = [
            int(answer) for _, answer in finished.predict(tmp_path / "new.npy", fusion=row["name"])
        ]
        assert said == population.said(row["name"], "test").argmax(-1).tolist()


def test_it_is_what_the_command_makes(done, tmp_path):
    _, finished = done
    root = shutil.copytree(finished.path, tmp_path / "RUN")
    combine_population(root, "stack", on="train", folds=3)
    name = "fusions/stack, out of fold"
    assert digests(root / name)["fitted.json"] == digests(finished.path / name)["fitted.json"]
    assert digests(root / name / "predictions") == digests(finished.path / name / "predictions")


def test_it_is_fitted_once_and_again_where_it_is_lost(done, tmp_path, monkeypatch):
    recipe, finished = done
    root = shutil.copytree(finished.path, tmp_path / "RUN")
    shutil.rmtree(root / "fusions" / "caruana")
    made = []

    def fit(population, method, **how):
        made.append(method)
        return real(population, method, **how)

    real = recipe_fits.fit_population
    monkeypatch.setattr(recipe_fits, "fit_population", fit)
    run(recipe, out=root)
    run(recipe, out=root)
    assert made == ["caruana"]
    assert digests(root) == digests(finished.path)


def test_what_cannot_be_fitted_is_a_note_and_costs_nothing_else(done, tmp_path, monkeypatch):
    recipe, finished = done
    root = shutil.copytree(finished.path, tmp_path / "RUN")
    shutil.rmtree(root / "fusions" / "caruana")

    def fit(*given, **how):
        raise DataError("no luck\ntry another day")

    monkeypatch.setattr(recipe_fits, "fit_population", fit)
    board = run(recipe, out=root).scoreboard
    assert board.document["notes"][-1] == "Not fitted: caruana, because no luck; try another day"
    assert [row["name"] for row in board.rows if row["kind"] == "fitted"] == ["stack, out of fold"]
    monkeypatch.undo()
    run(recipe, out=root)
    assert digests(root) == digests(finished.path)


def test_members_that_hold_out_the_same_rows_are_blended(tmp_path):
    recipe = recipe_with(
        tmp_path, "{name: holdout, fraction: 0.4}", [{"name": "stack", "on": "train", "folds": 2}]
    )
    finished = run(recipe, out=tmp_path / "RUN")
    assert finished.population.fusion("stack, out of fold")["voices"] == [[0], [1]]
    assert Run(finished.path).scoreboard.row("stack, out of fold")["models"] == 2


@pytest.mark.parametrize(
    ("combine", "fault"),
    [
        ("stack", "combine: should be a valid list; got 'stack'"),
        ("[3]", "combine.0: expected a name, or a mapping with one; got 3"),
        ("[caruna]", "combine.0.name: unknown 'caruna'; did you mean 'caruana'?"),
        ("[{name: stack, on: test}]", "combine.0.on: unknown 'test'. Known: val, train"),
        ("[{name: stack, folds: 1}]", "combine.0.folds: must be a whole number, 2 or more; got 1"),
        ("[{name: stack, folds: true}]", "combine.0.folds: must be a whole number, 2 or more"),
        ("[{name: caruana, round: 3}]", "combine.0.round: unknown 'round'; did you mean 'rounds'"),
        ("[stack, {name: stack, on: val}]", "combine.1: 'stack' is given twice; keep one"),
        ("[median]", "combine.0: 'median' is a fusion that is not fitted; list it under fusions"),
    ],
)
def test_faults_of_the_list(combine, fault):
    with pytest.raises(RecipeError) as caught:
        check(parse(f"{PLAIN}combine: {combine}\n", "mine.yaml"))
    assert fault in str(caught.value)
    assert str(caught.value).startswith("1 fault")


@pytest.mark.parametrize(
    ("training", "models", "combine", "facts"),
    [
        (
            "{name: kfold, folds: 2}",
            1,
            [{"name": "stack", "on": "train"}, {"name": "caruana", "on": "train"}],
            ["stack, out of fold, caruana, out of fold: the folds of one model are one voice, and"],
        ),
        (
            "{name: heterogeneous}",
            2,
            [{"name": "stack", "on": "train"}],
            ["stack, out of fold: no row is held out, and a fit on train needs out-of-fold"],
        ),
        (
            "{name: independent, members: 1}",
            1,
            ["caruana"],
            ["caruana: one member is nothing to combine"],
        ),
        (
            "{name: kfold, folds: 2}",
            1,
            ["caruana", "quantile_average"],
            [
                "quantile_average: quantile_average does not fit the task multiclass, which takes ",
            ],
        ),
    ],
)
def test_what_could_not_be_fitted_is_refused_before_training(
    training, models, combine, facts, tmp_path
):
    recipe = recipe_with(tmp_path, training, combine, models=models)
    with pytest.raises(RecipeError) as caught:
        run(recipe, out=tmp_path / "RUN")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(facts)
    assert all(line.startswith(f"combine: {fact}") for line, fact in zip(lines, facts, strict=True))
    assert not (tmp_path / "RUN" / "members").exists()

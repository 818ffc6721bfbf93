import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

import polyfuse
import tiny
from polyfuse.adding import add_member
from polyfuse.checkpoints import safetensors
from polyfuse.combining_runs import combine_population
from polyfuse.errors import DataError, RunError, TrainingError
from polyfuse.recipes import run as module
from polyfuse.recipes.folder import Run
from polyfuse.recipes.soups import Given, make_soups, uniform_soup
from polyfuse.training import STRATEGIES
from tiny_run import held_out_images, make_recipe

heterogeneous = STRATEGIES["heterogeneous"]
NETS = tuple(partial(polyfuse.mlp, inputs=4, classes=2, hidden=hidden) for hidden in (3, 5))


def task(data, nets=NETS):
    return polyfuse.Task(nets, data, tiny.task(data).options)


def test_members_come_model_by_model_on_the_same_rows():
    train = tiny.splits().train
    jobs = heterogeneous(train, factories=3, seeds_each=2).jobs([])
    assert [job.factory for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert len({tuple(job.learn.tolist()) for job in jobs}) == 1
    assert len({job.seed for job in jobs}) == 6
    assert all(len(job.held_out) == 0 for job in jobs)


def test_every_model_has_the_same_folds():
    train = tiny.splits(groups=np.arange(24) // 2).train
    jobs = heterogeneous(train, factories=2, seeds_each=2, folds=3).jobs([])
    assert [job.factory for job in jobs] == [0] * 6 + [1] * 6
    assert [job.facts["fold"] for job in jobs] == [0, 0, 1, 1, 2, 2] * 2
    held = [job.held_out.tolist() for job in jobs]
    assert held[:6] == held[6:]
    assert held[0] == held[1]
    assert sorted(held[0] + held[2] + held[4]) == list(range(24))


def test_faults_are_told_at_once():
    train = tiny.splits().train
    with pytest.raises(DataError) as caught:
        heterogeneous(train, factories=0, seeds_each=0, kind="plain", stop_fraction=1)
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        "factories=0",
        "seeds_each=0",
        "kind='plain' is of folds",
        "stop_fraction=1",
    ]
    with pytest.raises(DataError, match="folds=30 does not fit 24 rows"):
        heterogeneous(train, factories=2, folds=30)


@pytest.mark.parametrize(("count", "told"), [(1, "trains 1 of 1"), (3, "trains 3 of 3")])
def test_a_strategy_of_another_number_of_models_is_refused(count, told, tmp_path):
    data = tiny.splits()
    with pytest.raises(TrainingError, match=f"the task has 2 model factories, .* {told}"):
        polyfuse.train(heterogeneous(data.train, factories=count), task(data), tmp_path)
    assert list((tmp_path / "members").iterdir()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = tiny.splits()
    plan = heterogeneous(data.train, factories=2, folds=2)
    return polyfuse.train(plan, task(data), tmp_path_factory.mktemp("models"))


def test_a_member_is_of_its_own_model(trained):
    values = tiny.splits().test.values
    for member, factory in zip(trained.members, [0, 0, 1, 1], strict=True):
        assert member.factory == member.record.get("factory", 0) == factory
        with torch.no_grad():
            logits = member.model(NETS[factory])(values)
        np.testing.assert_allclose(logits, member.predictions("test"), rtol=1e-5, atol=1e-6)
        with pytest.raises(RunError, match="does not fit the model"):
            member.model(NETS[1 - factory])


def test_each_model_is_one_base_model_that_speaks_for_every_training_row(trained):
    assert [tuple(base) for base in trained.base_models()] == [
        ("heterogeneous of 2, model 0", (0, 1)),
        ("heterogeneous of 2, model 1", (2, 3)),
    ]
    said = trained.base_predictions("train")
    assert np.isfinite(said).all()
    assert not trained.base_trained("train").any()
    for model, members in enumerate([(0, 1), (2, 3)]):
        logits = np.nanmean([trained.members[n].predictions("train") for n in members], 0)
        exps = np.exp(logits.astype(float))
        np.testing.assert_allclose(said[model], exps / exps.sum(-1, keepdims=True), rtol=1e-6)


def test_members_of_different_models_make_no_soup(trained):
    given = Given(trained, NETS[0], tiny.splits(), tiny.task().options)
    with pytest.raises(DataError, match=r"are of 2 models \(0, 1\), and a soup mixes the weights"):
        make_soups(given, {"uniform_soup": uniform_soup}, lambda *seen: None)


# From a recipe ----------------------------------------------------------------------------------

MODELS = """\
model:
  - {name: mlp, inputs: 72, classes: 3, hidden: 8}
  - {name: mlp, inputs: 72, classes: 3, hidden: 5, layers: 1}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    recipe = make_recipe(folder)
    text = recipe.read_text().replace("name: kfold", "name: heterogeneous")
    one = next(line for line in text.splitlines(True) if line.startswith("model:"))
    recipe.write_text(text.replace(one, MODELS))
    run = module.run(recipe, out=folder / "RUN", workers=1)
    combine_population(run, "stack", on="train")
    return Run(run.path)


def test_a_recipe_lists_the_models_and_every_row_reads_new_data(run, tmp_path):
    assert [member.factory for member in run.population.members] == [0, 0, 1, 1]
    np.save(tmp_path / "new.npy", held_out_images())
    rows = run.scoreboard.rows
    assert [row["name"] for row in rows[4:]] == [
        "mean_probability",
        "hard_vote",
        "stack, out of fold",
    ]
    for row in rows:
        answers = [int(said) for _, said in run.predict(tmp_path / "new.npy", fusion=row["name"])]
        if row["kind"] == "member":
            kept = run.population.members[row["members"][0]].predictions("test")
        else:
            kept = run.population.said(row["name"], "test")
        assert answers == (kept if kept.ndim == 1 else kept.argmax(-1)).tolist()
        assert row["milliseconds"] > 0


def test_a_record_that_names_a_model_the_recipe_lacks_is_refused(run, tmp_path):
    root = shutil.copytree(run.path, tmp_path / "RUN")
    record = json.loads((root / "members/003/member.json").read_text())
    (root / "members/003/member.json").write_text(json.dumps({**record, "factory": 2}))
    np.save(tmp_path / "new.npy", held_out_images())
    with pytest.raises(RunError, match=r"was made by model 2 of the recipe, .* it names 2"):
        Run(root).predict(tmp_path / "new.npy", fusion="member 3")


def test_a_checkpoint_from_elsewhere_must_say_its_model(run, tmp_path):
    file = tmp_path / "mine.safetensors"
    net = polyfuse.mlp(inputs=72, classes=3, hidden=8)
    safetensors.write(file, dict(net.state_dict()))
    with pytest.raises(RunError, match="lists 2 models; say which the checkpoint was saved of"):
        add_member(run, "mine", checkpoint=file)

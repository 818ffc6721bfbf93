"""Test-time augmentation in recipes: kept by view, chosen, on the scoreboard, asked; faults."""

import json
import os
import shutil
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crash_child import Child
from polyfuse.adding import add_member
from polyfuse.data.arrays import Arrays
from polyfuse.errors import DataError, RecipeError, RunError
from polyfuse.population_views import (
    ViewStore,
    choose_views,
    choosing,
    chosen_views,
    stack_with_views,
    views_kept,
)
from polyfuse.recipes import run as module
from polyfuse.recipes import views as recipe_views
from polyfuse.recipes.folder import Run
from polyfuse.recipes.schema import check
from polyfuse.recipes.source import parse
from polyfuse.tta import Multiply
from tiny_run import digests, held_out_images, make_recipe, refused
from tiny_run import polyfuse as command

run = partial(module.run, workers=1)
# Class 0 to 2 is the brightest channel. A view that is brighter helps nets that learned from dim
# images; one that is dark says nothing; a flip of such images says the same again.
TTA = {
    "average": "ema",
    "views": [{"name": "multiply", "factor": 3.0}, {"name": "multiply", "factor": 0.0}, "flip"],
}
NAMES = ["identity", "multiply-factor=3", "multiply-factor=0", "flip-horizontal"]


def recipe_with(folder, tta, more="averaging: {ema: {decay: 0.8}}\n"):
    recipe = make_recipe(folder)
    recipe.write_text(f"{recipe.read_text()}{more}tta: {json.dumps(tta)}\n")
    return recipe


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return a finished run with views; nobody changes it."""
    folder = tmp_path_factory.mktemp("viewed")
    recipe = recipe_with(folder, TTA)
    return SimpleNamespace(recipe=recipe, run=run(recipe, out=folder / "RUN"))


@pytest.fixture
def copied(done, tmp_path):
    root = shutil.copytree(done.run.path, tmp_path / "RUN")
    return SimpleNamespace(recipe=done.recipe, root=root, run=Run(root))


def softmax(logits):
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(-1).numpy()


def by_hand(done, factor, split, average="ema"):
    """Return what each member says of images made brighter by a factor, by the module itself."""
    population = done.run.population.averaged(average)
    plan = module.load(module.recipe_source.read(done.recipe), [])
    inputs = torch.from_numpy(np.load(done.recipe.parent / "data.npz")[f"{split}_inputs"])
    with torch.no_grad():
        return np.stack([m.model(plan.factory_of(m))(inputs * factor) for m in population.members])


# the scoreboard ---------------------------------------------------------------------------------


def test_each_fusion_has_a_row_with_views_and_the_board_says_what_was_left_out(done):
    board = done.run.scoreboard
    assert [row["name"] for row in board.rows[-2:]] == [
        "mean_probability, ema, tta",
        "hard_vote, ema, tta",
    ]
    assert views_kept(done.run.population) == tuple(NAMES[:2])
    row, once = board.row("mean_probability, ema, tta"), board.row("mean_probability, ema")
    assert (row["average"], row["views"], row["models"]) == ("ema", 2, 2)
    assert row["milliseconds"] == pytest.approx(2 * once["milliseconds"])
    assert row["parameters"] == once["parameters"] == once["cost"]
    assert row["cost"] == 2 * once["cost"]
    [note] = [note for note in board.document["notes"] if note.startswith("Views (tta).")]
    assert "Kept: identity, multiply-factor=3." in note
    figures = json.loads((done.run.path / "views/chosen/chosen.json").read_text())["figures"]
    before, outside = figures["before"], figures["outside"]
    assert outside["loss"] < before["loss"]
    told = f"calibrated NLL {before['loss']:.4f} -> {outside['loss']:.4f}, accuracy "
    assert told + f"{before['score']:.4g} -> {outside['score']:.4g} by choices" in note
    assert "Left out: flip-horizontal (calibrated NLL" in note
    assert "multiply-factor=0 (calibrated NLL" in note
    assert note in command("report", done.run.path).stdout.replace("\n", " ")


def test_what_is_merged_is_what_the_members_say_of_the_kept_views(done):
    population = done.run.population.averaged("ema")
    merged = np.mean([softmax(by_hand(done, factor, "test")) for factor in (1, 3)], 0)
    np.testing.assert_allclose(np.exp(stack_with_views(population, "test")), merged, rtol=1e-4)
    stored = done.run.population.said("mean_probability, ema, tta", "test")
    np.testing.assert_allclose(stored, merged.mean(0), rtol=1e-4)
    votes = done.run.population.said("hard_vote, ema, tta", "test")
    counts = np.eye(3)[merged.argmax(-1)].sum(0)  # ties go to the likelier class
    assert votes.tolist() == (counts + merged.mean(0) / 2).argmax(-1).tolist()
    one = population.__class__(population.path, population.members[1:])
    np.testing.assert_array_equal(
        stack_with_views(one, "val")[0], stack_with_views(population, "val")[1]
    )


def test_predictions_are_kept_by_view(done):
    store = ViewStore(done.run.population)
    for index, member in enumerate(done.run.population.averaged("ema").members):
        for split in ("val", "test"):
            kept = store.read(member, split, "multiply-factor=3")
            np.testing.assert_allclose(kept, by_hand(done, 3, split)[index], rtol=1e-4, atol=1e-6)


def test_new_data_is_read_with_the_kept_views(done, tmp_path, monkeypatch):
    np.save(tmp_path / "new.npy", held_out_images())
    seen = []
    real = Multiply.apply
    monkeypatch.setattr(
        Multiply, "apply", lambda self, x: seen.append(self.factor) or real(self, x)
    )
    for row in ("mean_probability, ema, tta", "hard_vote, ema, tta"):
        said = done.run.population.said(row, "test")
        expected = said if said.dtype.kind in "iu" else said.argmax(-1)
        answers = done.run.predict(tmp_path / "new.npy", fusion=row)
        assert [int(answer) for _, answer in answers] == expected.tolist()
    assert set(seen) == {3.0}  # what is left out costs nothing
    out = tmp_path / "answers.csv"
    args = ("--fusion", "mean_probability, ema, tta", "-o", out)
    assert command("predict", done.run.path, tmp_path / "new.npy", *args).exit_code == 0
    assert len(out.read_text().splitlines()) == 13


def test_new_inputs_are_made_once_for_all_members_and_views(done):
    made = []

    class Counting(Arrays):
        def inputs(self, rows):
            made.append(len(rows))
            return super().inputs(rows)

    split = Counting(held_out_images() / np.float32(255))
    for row in ("mean_probability, ema, tta", "mean_probability, ema", "member 0"):
        made.clear()
        read = done.run.predict(split, fusion=row)
        assert made == [12]
        population = done.run.population
        said = population.members[0].predictions("test")
        if row != "member 0":
            said = population.said(row, "test")
        assert [int(answer) for _, answer in read] == said.argmax(-1).tolist()


# kept, resumed, refused -------------------------------------------------------------------------


def nobody_predicts(monkeypatch):
    def predict(*_):
        raise AssertionError("inference was done again")

    monkeypatch.setattr(recipe_views, "predict_heads", predict)


def test_to_merge_again_takes_no_inference(copied, done, monkeypatch):
    shutil.rmtree(copied.root / "views" / "chosen")
    monkeypatch.setattr(recipe_views, "_misfits", lambda *_: [])
    nobody_predicts(monkeypatch)
    run(copied.recipe, out=copied.root)
    assert digests(copied.root) == digests(done.run.path)


def kill_after(recipe, root, entries):
    """Run the recipe in a child that is killed when it has kept so many predictions of views."""

    def work():
        kept = []
        write = ViewStore.write

        def write_or_die(*given):
            if len(kept) == entries:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*given)
            kept.append(given)

        ViewStore.write = write_or_die
        run(recipe, out=root)

    child = Child(work)
    assert child.ask() is None


def test_a_run_that_is_killed_between_views_goes_on_with_the_next(copied, done, monkeypatch):
    shutil.rmtree(copied.root / "views")
    kill_after(copied.recipe, copied.root, 3)
    whole = [f.parent.relative_to(copied.root) for f in copied.root.rglob("predictions.json")]
    assert len(whole) == 3
    assert chosen_views(copied.run.population) is None
    made = []
    real = ViewStore.write
    monkeypatch.setattr(ViewStore, "write", lambda *given: made.append(given) or real(*given))
    run(copied.recipe, out=copied.root)
    assert len(made) == 2 * 2 * 3 - 3  # members, splits, views
    assert digests(copied.root) == digests(done.run.path)


def test_a_choice_that_is_killed_leaves_the_old_one(copied, done):
    def work():
        choosing.durable.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        choose_views(copied.run.population, NAMES, average="ema", choose="all")

    assert Child(work).ask() is None
    assert chosen_views(copied.run.population).choose == "greedy"
    run(copied.recipe, out=copied.root)
    assert digests(copied.root) == digests(done.run.path)


def test_a_stale_or_foreign_file_of_a_view_is_an_error(copied):
    folder = copied.root / "views" / "members"
    shutil.rmtree(copied.root / "views" / "chosen")
    mine, other = (
        folder / "000, ema/val/multiply-factor=3",
        folder / "001, ema/val/multiply-factor=3",
    )
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    with pytest.raises(DataError, match="it is stale or foreign"):
        run(copied.recipe, out=copied.root)
    shutil.rmtree(mine)
    shutil.copytree(folder / "000, ema/val/flip-horizontal", mine)
    with pytest.raises(DataError, match="it is stale or foreign"):
        run(copied.recipe, out=copied.root)
    shutil.rmtree(mine)
    run(copied.recipe, out=copied.root)


def test_a_changed_file_of_a_view_is_an_error(copied):
    shutil.rmtree(copied.root / "views" / "chosen")
    file = copied.root / "views/members/000, ema/val/flip-horizontal/predictions.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"was changed after it was written \(SHA-256 differs\)"):
        run(copied.recipe, out=copied.root)


def test_a_damaged_choice_is_made_again(copied, done):
    (copied.root / "views/chosen/chosen.json").write_text('{"schema": 1}')
    with pytest.raises(RunError, match="holds no choice of views, or a damaged one; delete the"):
        chosen_views(copied.run.population)
    run(copied.recipe, out=copied.root)
    assert digests(copied.root) == digests(done.run.path)


@pytest.mark.parametrize(
    "change",
    [
        {"kept": [7]},
        {"kept": []},
        {"views": [1, 2]},
        {"weights": [1.0]},
        {"weights": ["a"]},
        {"choose": "best"},
        {"files": {"../../x": {"bytes": 1, "sha256": ""}}},
        {"average": 3},
    ],
)
def test_a_record_by_hand_is_refused(copied, change):
    file = copied.root / "views/chosen/chosen.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RunError, match="holds no choice of views, or a damaged one"):
        chosen_views(copied.run.population)


def test_views_are_of_certain_members_and_weights(copied):
    with pytest.raises(RunError, match=r"members \[0, 1\] with 'ema' weights, not for those"):
        stack_with_views(copied.run.population, "val")
    shutil.rmtree(copied.root / "members/001")
    population = copied.run.population
    assert chosen_views(population) is None
    assert views_kept(population) == ()
    with pytest.raises(RunError, match="run the recipe again where members have come or gone"):
        stack_with_views(population.averaged("ema"), "val")


def test_views_stay_where_a_stranger_joins(copied, done):
    draw = np.random.default_rng(7)
    said = {split: draw.standard_normal((rows, 3)) for split, rows in (("val", 20), ("test", 12))}
    add_member(copied.root, "stranger", predictions=said, space="logit")
    row = copied.run.scoreboard.row("mean_probability, ema, tta")
    assert row["members"] == [0, 1]
    assert row["val"] == done.run.scoreboard.row("mean_probability, ema, tta")["val"]


def test_nothing_is_chosen_before_all_members_are_there(copied):
    shutil.rmtree(copied.root / "views")
    shutil.rmtree(copied.root / "members/001")
    board = run(copied.recipe, out=copied.root, minutes=0).scoreboard
    assert len(board.rows) > 1
    assert not [row for row in board.rows if "views" in row]
    assert not (copied.root / "views").exists()


def test_a_leaderboard_with_views_that_are_gone_says_so(copied, tmp_path):
    shutil.rmtree(copied.root / "views")
    np.save(tmp_path / "new.npy", held_out_images())
    with pytest.raises(RunError, match="needs the views that were chosen for the members of now"):
        copied.run.predict(tmp_path / "new.npy", fusion="mean_probability, ema, tta")


def test_a_view_of_the_users_own_is_asked_only_with_their_recipe(tmp_path, monkeypatch):
    (tmp_path / "own_views.py").write_text("def brighter(images):\n    return images * 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    view = {"name": "random", "function": "own_views:brighter", "together": True}
    recipe = recipe_with(tmp_path, {"views": [view], "choose": "all"}, more="")
    finished = run(recipe, out=tmp_path / "RUN")
    assert views_kept(finished.population) == ("identity", "brighter-seed=0")
    np.save(tmp_path / "new.npy", held_out_images())
    row = "mean_probability, tta"
    with pytest.raises(RecipeError, match="'own_views:brighter' names code, which runs only from"):
        finished.predict(tmp_path / "new.npy", fusion=row)
    answers = finished.predict(tmp_path / "new.npy", fusion=row, recipe=recipe)
    expected = finished.population.said(row, "test").argmax(-1)
    assert [int(answer) for _, answer in answers] == expected.tolist()


# other tasks and choices ------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [None, "geometric_mean", {"name": "trimmed_mean", "cut": 0.2}])
def test_views_are_merged_by_any_combiner(done, tmp_path, merge):
    root = shutil.copytree(done.run.path, tmp_path / "RUN")
    shutil.rmtree(root / "views/chosen")
    (root / "leaderboard.json").unlink()
    population = Run(root).population
    tta = {
        **TTA,
        "choose": "all",
        "views": [TTA["views"][0]],
        **({"merge": merge} if merge else {}),
    }
    text = f"tta: {json.dumps(tta)}\naveraging: {{ema: {{decay: 0.8}}}}\n"
    asked = recipe_views.listed_views(parse(text, "mine.yaml"), False)
    plan = module.load(module.recipe_source.read(done.recipe), [])
    keep = {"seed": 0, "cpus": 1, "progress": module.silent}
    recipe_views.make_views(population, asked, None, plan.factory_of, **keep)
    each = np.stack([by_hand(done, factor, "test") for factor in (1, 3)])
    logs = merge == "geometric_mean"  # and of two, a trimmed mean trims none
    expected = softmax(each.mean(0)) if logs else softmax(each).mean(0)
    found = np.exp(stack_with_views(population.averaged("ema"), "test"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("choose", ["weights", "class_weights"])
def test_learned_weights_are_kept_and_used(tmp_path, choose):
    recipe = recipe_with(tmp_path, {"views": TTA["views"], "choose": choose}, more="")
    finished = run(recipe, out=tmp_path / "RUN")
    chosen = chosen_views(finished.population)
    assert chosen.weights.shape == ((4,) if choose == "weights" else (4, 3))
    assert "multiply-factor=0" not in chosen.names
    np.save(tmp_path / "new.npy", held_out_images())
    row = "mean_probability, tta"
    assert finished.scoreboard.row(row)["views"] == len(chosen.kept)
    answers = finished.predict(tmp_path / "new.npy", fusion=row)
    expected = finished.population.said(row, "test").argmax(-1)
    assert [int(answer) for _, answer in answers] == expected.tolist()


def test_numbers_and_labels_have_views_too(tmp_path):
    draw = np.random.default_rng(0)
    rows = {"train": 40, "val": 20, "test": 12}
    for task, width in (("regression", 1), ("multilabel", 2)):
        folder = tmp_path / task
        folder.mkdir()
        labels = {}
        for split, count in rows.items():
            values = draw.normal(size=(count, width)).astype("f4")
            labels[f"{split}_labels"] = values if task == "regression" else (values > 0).astype(int)
        recipe = make_recipe(folder, **labels)
        text = recipe.read_text().replace("data.npz'}", f"data.npz', task: {task}}}")
        text = text.replace("classes: 3", f"classes: {width}").replace("fusions:", "# ")
        loss = "mean_squared_error" if task == "regression" else "binary_cross_entropy"
        text = text.replace("fit:", f"fit:\n  loss: {loss}")
        recipe.write_text(text + "tta: {views: [{name: add, amount: 0.1}], choose: all}\n")
        finished = run(recipe, out=folder / "RUN")
        mean = "mean_value" if task == "regression" else "mean_probability"
        outputs = stack_with_views(finished.population, "test")
        plain = finished.population.stack("test")
        assert outputs.shape == plain.shape
        [other] = [
            np.stack(
                [ViewStore(finished.population).read(m, "test", "add-amount=0.1") for m in found]
            )
            for found in [finished.population.members]
        ]
        if task == "regression":
            np.testing.assert_allclose(outputs, (plain + other) / 2, rtol=1e-5, atol=1e-6)
        else:
            p = 1 / (1 + np.exp(-np.stack([plain, other]).astype("f8")))
            np.testing.assert_allclose(1 / (1 + np.exp(-outputs)), p.mean(0), rtol=1e-4)
        assert finished.scoreboard.row(f"{mean}, tta")["views"] == 2
        np.save(folder / "new.npy", held_out_images())
        assert len(finished.predict(folder / "new.npy", fusion=f"{mean}, tta")) == 12


# faults of the key ------------------------------------------------------------------------------

PLAIN = "name: x\ndata: {name: arrays, path: x.npz}\nmodel: {name: mlp, inputs: 4, classes: 3}\n"
PLAIN += "training: kfold\naveraging: {ema: {decay: 0.9}}\n"


@pytest.mark.parametrize(
    ("tta", "faults"),
    [
        ("[shifts]", ["tta: expected a mapping of options"]),
        ("{choose: all}", ["tta.views: is required"]),
        ("{views: shifts}", ["tta.views: should be a valid list; got 'shifts'"]),
        ("{views: []}", ["tta.views: is empty; name one: identity, flip"]),
        ("{views: [shfits]}", ["tta.views.0.name: unknown 'shfits'; did you mean 'shifts'?"]),
        (
            "{views: [{name: shift, acros: 1}]}",
            ["tta.views.0.acros: unknown 'acros'; did you mean"],
        ),
        (
            "{views: [{name: flip, axis: up}]}",
            ["tta.views.0: cannot be made: axis='up' is not known"],
        ),
        (
            "{views: [flip, flips]}",
            ["tta.views: views are named twice: flip-horizontal; leave one"],
        ),
        ("{views: [flip], averge: ema}", ["tta.averge: unknown 'averge'; did you mean 'average'?"]),
        ("{views: [flip], average: emma}", ["tta.average: unknown 'emma'; did you mean 'ema'?"]),
        ("{views: [flip], choose: gredy}", ["tta.choose: unknown 'gredy'; did you mean 'greedy'?"]),
        ("{views: [flip], folds: 1}", ["tta.folds: should be greater than or equal to 2; got 1"]),
        (
            "{views: [flip], merge: hard_vote}",
            ["tta.merge.name: unknown 'hard_vote'. Known: mean_"],
        ),
        (
            "{views: [flip], merge: median, choose: weights}",
            ["tta.merge: choose: weights learns the weights of the plain mean; leave merge out"],
        ),
        (
            "{views: [{name: random, function: 'os:getcwd', n: 0}], choose: best, folds: 0}",
            ["tta.choose: unknown 'best'", "tta.folds: should be", "tta.views.0: cannot be made"],
        ),
    ],
)
def test_faults_of_the_key(tta, faults):
    with pytest.raises(RecipeError) as caught:
        check(parse(f"{PLAIN}tta: {tta}\n", "mine.yaml"))
    told = str(caught.value)
    assert all(fault in told for fault in faults)
    count = len(faults)
    assert told.startswith("1 fault" if count == 1 else f"{count} faults")
    assert told.count("line 6: ") == count


def test_an_average_that_is_not_tracked_is_a_fault():
    text = PLAIN.replace("averaging: {ema: {decay: 0.9}}\n", "tta: {views: [flip], average: ema}\n")
    with pytest.raises(RecipeError, match="the recipe tracks none; add averaging: "):
        check(parse(text, "mine.yaml"))


def test_code_of_a_view_runs_only_from_a_recipe_that_the_user_names():
    text = f"{PLAIN}tta: {{views: [{{name: random, function: 'os:getcwd'}}]}}\n"
    with pytest.raises(RecipeError, match="'os:getcwd' names code, which runs only from a recipe"):
        check(parse(text, "mine.yaml"), trusted=False)


@pytest.mark.parametrize(
    ("tta", "fault"),
    [
        ({"views": [{"name": "resize", "height": 9, "width": 9}]}, "views: resize-"),
        ({"views": [{"name": "shift", "across": 30}]}, "leaves nothing of images"),
        (
            {"views": ["flip"], "folds": 21},
            "folds: 21 are more than the validation split's 20 rows",
        ),
        ({"views": ["flip"], "merge": "mean_value"}, "does not fit the task classification"),
    ],
)
def test_what_does_not_fit_is_known_before_any_training(tmp_path, tta, fault):
    recipe = recipe_with(tmp_path, tta, more="")
    message = refused("run", recipe, "--out", tmp_path / "RUN", "--quiet")
    assert fault in message
    assert not list((tmp_path / "RUN").glob("members/*"))

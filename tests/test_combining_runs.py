"""Combinations fitted on a population: on rows that nobody trained on, kept, compared, applied."""

import json
import shutil

import numpy as np
import pytest
import torch

import polyfuse
import tiny
from polyfuse import Arrays, Population, Splits
from polyfuse.adding import add_member
from polyfuse.combining import combine_predictions
from polyfuse.combining_runs import combine_population
from polyfuse.errors import DataError, RunError
from polyfuse.members import FIRST_ADDED
from polyfuse.population import FITTED
from polyfuse.recipes.folder import Run
from tiny_run import CLASSES, ROWS, digests, held_out_images, make_recipe, refused
from tiny_run import polyfuse as command


def softmax(logits):
    raised = np.exp(logits.astype(np.float64))
    return raised / raised.sum(-1, keepdims=True)


def stranger(split, seed=5):
    draw, rows = np.random.default_rng(seed + ROWS[split]), ROWS[split]
    return draw.standard_normal((rows, CLASSES)) + 2 * np.eye(CLASSES)[np.arange(rows) % CLASSES]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two folds, a stranger with weights, and one that has only predictions, out of fold too."""
    folder = tmp_path_factory.mktemp("combined")
    recipe, run = make_recipe(folder), folder / "RUN"
    polyfuse.run(recipe, out=run, workers=1)
    torch.manual_seed(1)
    torch.save(polyfuse.mlp(inputs=72, classes=3, hidden=8).state_dict(), folder / "a.pt")
    add_member(run, "weak", checkpoint=folder / "a.pt", trained_on="none")
    said = {split: stranger(split) for split in ROWS}
    add_member(run, "resnet", predictions=said, trained_on="none", space="logit")
    return recipe, run


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "RUN")
    return tmp_path / "RUN"


def members_say(population, split):
    return softmax(population.stack(split))


# What is fitted, and how it is judged -----------------------------------------------------------


def test_what_is_fitted_and_said_is_what_files_of_the_same_would_give(run):
    """The other door, given the members' predictions as arrays, is the oracle."""
    done = combine_population(run, ["caruana", "simplex", "stack"], seed=3)
    population = Population.open(run)
    names = [member.name for member in population.members]
    wanted = combine_predictions(
        dict(zip(names, members_say(population, "val"), strict=True)),
        population.labels("val"),
        test=dict(zip(names, members_say(population, "test"), strict=True)),
        method=["caruana", "simplex", "stack"],
        costs=[member.parameters or 1 for member in population.members],
        seed=3,
    )
    assert done.names == ("caruana", "simplex", "stack")
    for name in done.names:
        row = wanted.rows[name]
        for split in ("val", "test"):
            got = np.exp(population.fused(name, split))
            np.testing.assert_allclose(got, row.said[split], atol=1e-5)
        indices = tuple(population.members[n].index for n in row.members)
        assert done.members[name] == indices
        assert done.scoreboard.row(name)["members"] == list(indices)
        assert done.scoreboard.row(name)["kind"] == FITTED


def test_its_score_on_validation_is_of_fits_that_did_not_see_the_row(tmp_path):
    """Twenty members of pure noise: the fit itself looks good, the scoreboard does not say so."""
    rows, draw = 60, np.random.default_rng(0)
    data = Splits(*(Arrays(np.zeros((rows, 1)), draw.integers(0, 2, rows)) for _ in range(3)))
    logits = {
        i: {name: draw.standard_normal((rows, 2)) for name in data._fields} for i in range(20)
    }
    tiny.population(tmp_path, data, logits)
    board = combine_population(tmp_path, "caruana").scoreboard
    population = Population.open(tmp_path)
    weights = np.array(population.fit("caruana")["own"]["weights"])
    fitted = np.einsum("m,mnc->nc", weights, members_say(population, "val")).argmax(1)
    seen, told = (fitted == data.val.labels).mean(), board.row("caruana")["val"]["accuracy"]
    assert seen > told["value"] + 0.1
    assert told["low"] < 0.5 < told["high"]
    assert board.row("caruana")["test"]["accuracy"]["value"] < 0.65
    assert board.best != "caruana"


def test_folds_are_one_voice_on_train_and_only_unseen_rows_are_fitted_on(run):
    done = combine_population(run, "caruana", on="train")
    assert done.names == ("caruana, out of fold",)
    population = Population.open(run)
    record = population.fusion(done.names[0])
    assert record["on"] == "train"
    assert record["voices"] == [[0, 1], [FIRST_ADDED], [FIRST_ADDED + 1]]
    oof = population.base_predictions("train")
    wanted = combine_predictions(list(oof), population.labels("train"), method="caruana")
    (weights,) = wanted.weights.values()
    assert population.fit(done.names[0])["own"]["weights"] == list(weights.values())
    said = np.einsum("m,mnc->nc", list(weights.values()), population.base_predictions("val"))
    np.testing.assert_allclose(np.exp(population.fused(done.names[0], "val")), said, atol=1e-6)


# What is kept -----------------------------------------------------------------------------------


def test_a_resumed_run_keeps_what_was_fitted_and_another_fit_takes_its_place(finished, run):
    combine_population(run, ["caruana", "vote"])
    before = digests(run)
    polyfuse.run(finished[0], out=run, workers=1)
    assert digests(run) == before
    board = Run(run).scoreboard
    assert {"caruana", "vote"} < {row["name"] for row in board.rows}
    assert board.row("vote")["val"]["nll"] is None
    combine_population(run, "caruana", options={"caruana.rounds": 1})
    assert Population.open(run).fusion("caruana")["options"] == {"caruana.rounds": 1}
    assert "vote" in {row["name"] for row in Run(run).scoreboard.rows}


def test_a_leaderboard_that_lacks_a_fit_is_made_again(finished, run):
    """Killed between the fit and the comparison: the same recipe goes on."""
    old = (run / "leaderboard.json").read_bytes()
    combine_population(run, "caruana")
    (run / "leaderboard.json").write_bytes(old)
    polyfuse.run(finished[0], out=run, workers=1)
    assert "caruana" in {row["name"] for row in Run(run).scoreboard.rows}


def test_what_was_fitted_on_other_members_is_left_out_and_that_is_said(run):
    combine_population(run, "caruana")
    more = {split: stranger(split, 9) for split in ("val", "test")}
    board = add_member(run, "late", predictions=more).scoreboard
    assert "caruana" not in {row["name"] for row in board.rows}
    assert any("members have come or gone since: caruana; fit again" in n for n in board.summary())
    assert Population.open(run).fits == {"caruana": False}
    assert "caruana" in combine_population(run, "caruana").names


def test_new_inputs_are_read_by_what_was_fitted(run):
    combine_population(run, ["best", "caruana"], options={"caruana.rounds": 1})
    images = Arrays(held_out_images() / np.float32(255))
    fused = Population.open(run).fused("best", "test").argmax(1)
    members = Run(run).scoreboard.row("best")["members"]
    if members == [FIRST_ADDED + 1]:  # it has no weights
        with pytest.raises(RunError, match="'resnet' was added by its predictions alone"):
            Run(run).predict(images, fusion="best")
    else:
        answers = [int(answer) for _, answer in Run(run).predict(images, fusion="best")]
        np.testing.assert_array_equal(answers, fused)


@pytest.mark.parametrize("on", ["val", "train"])
def test_members_without_a_say_need_no_weights(on, finished, tmp_path):
    """Two folds and a checkpoint of noise that only says nothing: stacking hears all of them."""
    run = tmp_path / "RUN"
    shutil.copytree(finished[1], run)
    shutil.rmtree(run / "members" / str(FIRST_ADDED + 1))  # the one without weights
    (name,) = combine_population(run, "stack", on=on).names
    images = Arrays(held_out_images() / np.float32(255))
    answers = [int(answer) for _, answer in Run(run).predict(images, fusion=name)]
    np.testing.assert_array_equal(answers, Population.open(run).fused(name, "test").argmax(1))


def test_damaged_documents_are_refused(run):
    combine_population(run, "caruana")
    file = run / "fusions" / "caruana" / "fitted.json"
    file.write_text(file.read_text().replace("weights", "wieghts"))
    with pytest.raises(RunError, match=r"fitted\.json' was changed after it was committed"):
        Population.open(run).fit("caruana")


# What is refused --------------------------------------------------------------------------------


def test_rows_that_a_member_trained_on_are_refused(tmp_path):
    data = Splits(*(Arrays(np.zeros((6, 1)), np.arange(6) % 2) for _ in range(3)))
    draw = np.random.default_rng(0)
    logits = {i: {name: draw.standard_normal((6, 2)) for name in data._fields} for i in range(2)}
    tiny.population(tmp_path, data, logits)  # nobody says what they learned from
    with pytest.raises(DataError, match=r"a fit on train would learn from rows(.|\n)*member 1"):
        combine_population(tmp_path, "caruana", on="train")
    combine_population(tmp_path, "caruana")  # of validation it is known


def test_one_voice_is_nothing_to_combine(finished, run):
    for number in range(2):
        shutil.rmtree(run / "members" / str(FIRST_ADDED + number))
    polyfuse.run(finished[0], out=run, workers=1)
    with pytest.raises(DataError, match=r"one voice, kfold of 2.*fit on validation \(--on val\)"):
        combine_population(run, "caruana", on="train")


def test_a_member_without_out_of_fold_predictions_has_no_voice_on_train(run):
    more = {split: stranger(split, 9) for split in ("val", "test")}
    add_member(run, "late", predictions=more)
    with pytest.raises(DataError, match="no out-of-fold predictions of train: late; add them"):
        combine_population(run, "caruana", on="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "carauna"}, "there is no method 'carauna'; did you mean 'caruana'"),
        ({"method": "mean_value"}, "mean_value does not fit the task multiclass"),
        ({"method": "mean_probability"}, "'mean_probability' is a fusion of this run already"),
        ({"method": "weak"}, "there is no method 'weak'"),
        ({"on": "test"}, "on='test' is none of val, train; nothing is ever fitted on test"),
        ({"options": {"caruana.round": 2}}, "caruana has no option 'round'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(options, message, finished):
    before = digests(finished[1])
    with pytest.raises(polyfuse.PolyfuseError, match=message):
        combine_population(finished[1], **{"method": "caruana", **options})
    assert digests(finished[1]) == before


def test_a_run_that_was_not_compared_yet_is_told_to_go_on(run):
    (run / "leaderboard.json").unlink()
    with pytest.raises(RunError, match="run the same recipe again to build it"):
        combine_population(run)
    assert not (run / "fusions" / "caruana").exists()


# The command ------------------------------------------------------------------------------------


def test_the_command_shows_the_scoreboard_and_why(run):
    done = command("combine", run, "--method", "caruana", "--method", "vote", "--quiet")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "passed over, and why" in shown
    assert f"Next: polyfuse report {run}" in shown
    told = json.loads(command("combine", run, "--set", "rounds=2", "--json", "--quiet").stdout)
    assert told["command"] == "combine"
    assert list(told["fusions"]) == ["caruana"]
    assert told["leaderboard"]["rows"][-1]["kind"] == FITTED


def test_all_methods_that_fit_are_tried(run):
    told = json.loads(command("combine", run, "--method", "all", "--json", "--quiet").stdout)
    assert {"caruana", "simplex", "stack", "bayes", "dynamic"} < set(told["fusions"])
    assert "hard_vote" not in told["fusions"]  # the recipe's own


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--labels", "y.npy"], "it goes with files of predictions; a RUN folder knows it"),
        (["-o", "out"], "it goes with files of predictions"),
        (["--blank", "0"], "it goes with files of predictions"),
    ],
)
def test_options_of_files_are_wrong_usage_of_a_run(typed, message, finished):
    done = command("combine", finished[1], *typed)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_options_of_a_run_are_wrong_usage_of_files():
    done = command("combine", "a.npy", "b.npy", "--labels", "y.npy", "-o", "out", "--on", "train")
    assert done.exit_code == 2
    assert "it goes with a RUN folder" in done.stderr


def test_what_it_refuses_is_a_message(finished):
    assert "nothing is ever fitted on test" in refused("combine", finished[1], "--on", "test")

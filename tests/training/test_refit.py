import shutil
from functools import partial

import numpy as np
import pytest

import polyfuse
import tiny
from polyfuse.averaging import ema
from polyfuse.combining_runs import combine_population
from polyfuse.errors import DataError, TrainingError
from polyfuse.fit import FitOptions
from polyfuse.fitted_fusions import given_of
from polyfuse.schedules import cosine
from polyfuse.training import STRATEGIES
from polyfuse.training.refit import shortened

refit, kfold = STRATEGIES["refit"], STRATEGIES["kfold"]
OPTIONS = {"epochs": 6, "batch_size": 4, "optimizer": partial(polyfuse.optimizers.adamw, lr=0.1)}


def begun(folder, data, options=OPTIONS, **plan):
    plan = {"folds": 3, **plan}
    return polyfuse.train(refit(data.train, **plan), tiny.task(data, **options), folder)


@pytest.fixture(scope="module")
def data():
    return tiny.splits(30)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    return begun(tmp_path_factory.mktemp("refit"), data)


def test_the_last_member_learns_from_all_rows_for_as_long_as_the_folds_chose(done, data):
    *folds, last = done.members
    best = [member.record["best_epoch"] for member in folds]
    epochs = int(np.median(best) + 0.5)
    assert last.rows("learned").tolist() == list(range(len(data.train)))
    assert len(last.rows("stopped")) == len(last.rows("held_out")) == 0
    assert last.record["refit"] == {"rule": "median", "best_epochs": best, "epochs": epochs}
    assert last.record["best_epoch"] == len(last.record["history"]) == epochs
    assert epochs < OPTIONS["epochs"]  # else this shows nothing


def test_its_learning_rate_goes_the_way_of_the_folds_and_ends_there(done):
    *folds, last = done.members
    epochs, batches, of_folds = last.record["best_epoch"], 8, 5  # ceil(30 / 4), ceil(18 / 4)
    for number, seen in enumerate(last.record["history"], 1):
        step = number * batches - 1
        assert seen["rate"] == pytest.approx(0.1 * cosine(step, 6 * batches), rel=1e-12)
    assert len(last.record["history"]) == epochs
    step = of_folds - 1
    rate = 0.1 * cosine(step, 6 * of_folds)
    assert folds[0].record["history"][0]["rate"] == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("epochs", [3, 7, 20])
@pytest.mark.parametrize("chosen", [1, 3])
def test_a_schedule_is_cut_and_not_stretched(epochs, chosen):
    options = FitOptions(epochs=epochs, schedule=partial(cosine, warmup=0.2, floor=0.1))
    short = shortened(options, chosen)
    assert short.epochs == chosen
    for step in range(11 * chosen):
        assert short.schedule(step, 11 * chosen) == options.schedule(step, 11 * epochs)


def test_the_folds_are_those_of_a_kfold(data):
    ours, theirs = (make(data.train, folds=3).jobs([]) for make in (refit, kfold))
    assert [job.seed for job in ours] == [job.seed for job in theirs]
    assert [job.held_out.tolist() for job in ours] == [job.held_out.tolist() for job in theirs]


def test_the_mean_of_the_best_epochs_may_choose(data, tmp_path, done):
    last = begun(tmp_path, data, rule="mean").members[-1]
    best = [member.record["best_epoch"] for member in done.members[:-1]]
    assert last.record["refit"]["epochs"] == int(np.mean(best) + 0.5)


def test_it_waits_for_all_folds_and_comes_back_as_it_was(done, data, tmp_path):
    shutil.copytree(done.path, tmp_path, dirs_exist_ok=True)
    plan = refit(data.train, folds=3)
    assert [job.index for job in plan.jobs(done.members[:3])] == [3]
    assert [job.index for job in plan.jobs([done.members[0], done.members[3]])] == [1, 2]
    shutil.rmtree(done.members[1].path.parents[1] / "fusions", ignore_errors=True)
    shutil.rmtree(tmp_path / "members" / "001")
    begun(tmp_path, data)
    names = {name for name in tiny.hashes(tmp_path) if name.startswith("members")}
    assert {n: tiny.hashes(tmp_path)[n] for n in names} == {
        n: tiny.hashes(done.path)[n] for n in names
    }


def test_the_scoreboard_shows_a_dash_where_nothing_is_out_of_fold(done):
    board = polyfuse.compare_fusions(done, replicates=20)
    assert [row.get("out_of_fold") is None for row in board.rows[:4]] == [False] * 3 + [True]
    table = board.table("val")
    column = table.columns.index("out of fold")
    shown = [row[column] for row in table.rows]
    accuracy = [m.record["scores"]["out_of_fold"]["accuracy"] for m in done.members[:3]]
    assert shown[:3] == [f"{100 * value:.1f}" for value in accuracy]
    assert set(shown[3:]) == {"-"}
    assert "out of fold" not in board.table("test").columns
    folds = [board.row(f"member {n}")["test"]["accuracy"]["value"] for n in range(3)]
    assert board.document["out_of_fold"]["test"]["value"] == pytest.approx(np.mean(folds))


def test_only_the_refit_models_are_fused_where_that_is_asked_for(data, tmp_path):
    nets = tuple(partial(polyfuse.mlp, inputs=4, classes=2, hidden=hidden) for hidden in (3, 5))
    task = polyfuse.Task(nets, data, tiny.task(data, **OPTIONS).options)
    run = polyfuse.train(refit(data.train, folds=2, factories=2, fuse="refit"), task, tmp_path)
    assert [member.factory for member in run.members] == [0, 0, 1, 1, 0, 1]
    board = polyfuse.compare_fusions(run, replicates=20)
    row = board.row("mean_probability")
    assert (row["members"], row["models"]) == ([4, 5], 2)
    assert row["parameters"] == sum(run.members[n].parameters for n in (4, 5))

    def mean(members, split):
        logits = np.stack([run.members[n].predictions(split) for n in members]).astype(float)
        exps = np.exp(logits)
        return np.mean(exps / exps.sum(-1, keepdims=True), 0)

    np.testing.assert_allclose(run.said("mean_probability", "test"), mean((4, 5), "test"), 1e-5)
    # Stacking as scikit-learn has it: fitted on the folds, applied to the models of all rows.
    assert [base.name for base in run.base_models()] == [
        "refit of 3, model 0",
        "refit of 3, model 1",
    ]
    given = given_of(run, "train")
    held_out = run.members[0].rows("held_out")
    assert given.val.said.shape == (2, 30, 2)
    np.testing.assert_allclose(given.val.said[0][held_out], mean((0,), "train")[held_out], 1e-9)
    np.testing.assert_allclose(run.base_predictions("test")[1], mean((5,), "test"), 1e-9)
    fitted = combine_population(run, "stack", on="train")
    assert fitted.members["stack, out of fold"] == (4, 5)
    assert given_of(run, "val").names == ("member 4", "member 5")


def test_an_average_that_would_begin_too_late_is_told_with_the_epochs(data, tmp_path):
    late = {"averaging": {"late": ema(0.9).timed(start_epoch=5)}}
    with pytest.raises(TrainingError, match=r"the folds chose \d epochs for the refit, but ") as e:
        begun(tmp_path, data, {**OPTIONS, **late})
    assert "late: start_epoch=5" in str(e.value)


def test_faults_are_told_at_once(data):
    with pytest.raises(DataError) as caught:
        refit(data.train, rule="medan", fuse="all", factories=0)
    assert str(caught.value).splitlines() == [
        "rule='medan'; did you mean 'median'? known: median, mean",
        "fuse='all'; known: both, refit",
        "factories=0; type 1 or more",
    ]
    with pytest.raises(DataError, match="folds=40 does not fit 30 rows"):
        refit(data.train, folds=40)

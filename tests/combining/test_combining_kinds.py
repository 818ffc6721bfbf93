"""Every kind of task, every method: what goes in, what comes out, in which form."""

import numpy as np
import pytest
import torch

from polyfuse.combining import KINDS, METHODS, SavedCombination, combine_predictions
from polyfuse.combining.methods import ALIASES
from polyfuse.errors import DataError
from polyfuse.metrics import scored_by
from tiny_members import KINDS as MADE
from tiny_members import classes, given, numbers

FEW = {"replicates": 40}


def test_there_is_a_made_up_task_of_every_kind():
    assert set(MADE) == set(KINDS)


@pytest.mark.parametrize("kind", MADE)
def test_all_methods_of_a_kind_and_what_they_say(kind, tmp_path):
    said, labels, options = given(kind)
    fresh, truth, _ = given(kind, rows=40, seed=1)
    done = combine_predictions(
        said, labels, test=fresh, test_labels=truth, method="all", **FEW, **options
    )
    board = done.scoreboard
    assert board.document["task"] == kind
    assert board.document["metric"] == KINDS[kind].metrics[0]
    fitting = [name for name, m in METHODS.items() if kind in m.kinds and name not in ALIASES]
    assert [row["name"] for row in board.rows if row["kind"] == "fusion"] == fitting
    assert not [note for note in board.document["notes"] if note.startswith("Not made")]
    for row in board.rows:
        assert row["cross_fitted"] == (row["kind"] == "fusion" and METHODS[row["name"]].fitted)
        assert {"val", "test"} <= row.keys()
    for name in fitting:
        for split, rows in (("val", said), ("test", fresh)):
            answer = done.rows[name].said[split]
            votes = answer.dtype.kind != "f"
            axes = rows[0].ndim - (votes and kind in ("multiclass", "multi_head"))
            assert answer.shape == rows[0].shape[:axes], name
    assert done.recommended in done.rows
    again = SavedCombination(done.save(tmp_path / "out")).predict(fresh)
    assert np.array_equal(again.predictions, done.predictions["test"])
    assert len(again.table.splitlines()) == 41


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_is_kept_and_predicts_the_same_again(name, tmp_path):
    kind = METHODS[name].kinds[0]
    said, labels, options = given(kind, rows=60)
    done = combine_predictions(said, labels, test=said, method=name, **FEW, **options)
    assert done.use == name
    assert METHODS[name].says
    again = SavedCombination(done.save(tmp_path / "out"))
    assert np.array_equal(again.predict(said).predictions, done.predictions["test"])
    if name in ("caruana", "simplex", "stack", "blend", "dynamic"):
        assert not np.array_equal(done.predictions["val"], done.predictions["test"])


def test_arrays_tensors_names_and_stacks_are_the_same():
    said, labels, _ = given("multiclass")
    forms = [
        said,
        list(said),
        torch.from_numpy(said),
        [torch.from_numpy(member) for member in said],
        {f"member_{i}": member for i, member in enumerate(said)},
    ]
    found = [combine_predictions(form, labels, method="caruana", **FEW) for form in forms]
    assert all(one.weights == found[0].weights for one in found)
    assert found[0].weights["caruana"].keys() == {f"member_{i}" for i in range(4)}


def test_logits_and_log_probabilities_become_probabilities_of_mixed_members_too():
    said, labels, _ = given("multiclass")
    mixed = {"prob": said[0], "logit": np.log(said[1]) + 3.0, "log_prob": np.log(said[2])}
    done = combine_predictions(mixed, labels, **FEW)
    assert done.given.spaces == ("prob", "logit", "log_prob")
    assert np.allclose(done.predictions["val"], said[:3].mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_probabilities_of_yes_go_in_and_out_alone(kind):
    said, labels, _ = given(kind)
    done = combine_predictions(said, labels, method=["mean", "vote"], use="mean", **FEW)
    assert np.allclose(done.predictions["val"], said.mean(0), atol=1e-12)
    logits = np.log(said / (1 - said))
    other = combine_predictions(logits, labels, task=kind, space="logit", **FEW)
    assert np.allclose(other.predictions["val"], said.mean(0), atol=1e-9)
    votes = done.rows["vote"].said["val"]
    assert set(np.unique(votes)) <= {0, 1}
    assert votes.shape == labels.shape


def test_moments_are_those_of_the_mixture():
    said, targets, _ = given("mean_variance")
    fused = combine_predictions(said, targets, **FEW).predictions["val"]
    assert np.allclose(fused[:, 0], said[..., 0].mean(0))
    assert np.allclose(fused[:, 1], 0.3 + said[..., 0].var(0))


def test_strings_are_read_with_their_blank():
    said, labels = classes(rows=100, count=4, heads=(3,))
    labels = np.where(np.logical_or.accumulate(labels == 3, axis=1), 3, labels)
    done = combine_predictions(said, labels, blank=3, method=["mean", "string_vote"], **FEW)
    assert list(done.scoreboard.document["metrics"]) == ["string_accuracy", "character_accuracy"]
    with pytest.raises(DataError, match="--blank CLASS"):
        combine_predictions(said, labels, method="string_vote", **FEW)
    whole = combine_predictions(said, labels, method="mean", **FEW).scoreboard
    with_blank = done.scoreboard.row("mean")["val"]["string_accuracy"]["value"]
    assert with_blank >= whole.row("mean")["val"]["string_accuracy"]["value"]


def test_members_that_decide_are_counted_not_averaged():
    said, labels, _ = given("multiclass")
    done = combine_predictions(said.argmax(-1), labels, method="all", test=said.argmax(-1), **FEW)
    names = [row["name"] for row in done.scoreboard.rows if row["kind"] == "fusion"]
    assert names == ["vote", "best", "caruana"]
    assert done.predictions["test"].dtype.kind == "i"
    assert done.scoreboard.row("vote")["val"]["nll"] is None


def test_a_function_is_a_metric_and_decides():
    said, targets = numbers()

    def largest_error(prediction, labels):
        return float(np.abs(prediction - labels).max())

    done = combine_predictions(
        said, targets, metric=largest_error, higher_is_better=False, method="best", **FEW
    )
    assert done.scoreboard.document["metrics"] == ["largest_error", "rmse", "mae"]
    worst = [scored_by(largest_error)(member, targets).value for member in said]
    assert done.weights["best"][f"member_{int(np.argmin(worst))}"] == 1.0
    assert "largest_error" in str(done)


@pytest.mark.parametrize("metric", KINDS["multiclass"].metrics)
def test_any_metric_decides_and_is_what_the_fits_aim_at(metric):
    said, labels, _ = given("multiclass", rows=60)
    done = combine_predictions(
        said, labels, metric=metric, method=["mean", "vote", "best", "caruana"], **FEW
    )
    board = done.scoreboard
    assert board.document["metric"] == metric
    scored = board.row("vote")["val"]["difference"] is not None
    assert scored == (metric in ("accuracy", "balanced_accuracy", "f1"))
    assert scored or "not scored" in board.row("vote")["passed_over"]


def test_a_calibrated_row_is_cross_fitted_and_no_worse_by_nll():
    said, labels, _ = given("multiclass", rows=200)
    flat = said**0.2 / (said**0.2).sum(-1, keepdims=True)  # under-confident
    done = combine_predictions(
        flat, labels, metric="nll", method=["mean", "simplex"], calibrate=True, **FEW
    )
    for name in ("mean", "simplex"):
        plain, calibrated = (
            done.scoreboard.row(row)["val"]["nll"]["value"] for row in (name, f"{name} calibrated")
        )
        assert calibrated < plain - 0.1
        assert done.scoreboard.row(f"{name} calibrated")["cross_fitted"]
    assert done.use == done.recommended


def test_it_shows_itself_in_a_notebook():
    said, labels, _ = given("multiclass", rows=60)
    shown = combine_predictions({"<b>": said[0], "b": said[1]}, labels, **FEW)._repr_html_()
    assert "<table>" in shown
    assert "<b>" not in shown

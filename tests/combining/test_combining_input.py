"""What does not fit is refused, all at once, with what to type."""

import numpy as np
import pytest

from polyfuse.combining import combine_predictions
from polyfuse.combining.reading import costs_of
from polyfuse.errors import DataError, PolyfuseError
from tiny_members import classes, given


@pytest.fixture
def good():
    return classes(rows=30, members=3)


def told(*arguments, **options):
    """Return the lines of the error that a call must raise."""
    with pytest.raises(PolyfuseError) as caught:
        combine_predictions(*arguments, replicates=20, **options)
    return str(caught.value)


def test_one_member_is_nothing_to_combine(good):
    said, labels = good
    assert "1 member is nothing to combine" in told(said[:1], labels)
    assert "0 member" in told([], labels)


def test_files_that_cannot_be_read_are_all_named(good, tmp_path):
    (tmp_path / "b.npy").write_bytes(b"no array")
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    message = told(paths, tmp_path / "y.csv", test=[tmp_path / "t.npy"])
    assert all(f"{name}'" in message for name in ("a.npy", "b.npy", "y.csv", "t.npy"))
    assert len(message.split("\n")) == 4


def test_rows_classes_and_labels_that_do_not_fit_are_told_together(good):
    said, labels = good
    message = told({"a": said[0], "b": said[1][:20], "c": said[2]}, labels[:29])
    assert "29" in message
    assert "20" in message
    message = told({"a": said[0], "b": np.full((30, 4), 0.25)}, labels)
    assert "'b' has shape (30, 4)" in message


def test_numbers_that_are_no_probabilities_are_told_of_each_member(good):
    said, labels = good
    message = told({"a": said[0] * 3, "b": said[1] - 1, "c": said[2]}, labels, space="prob")
    assert "'a' has no probabilities" in message
    assert "'b' has no probabilities" in message
    assert "'c'" not in message


def test_nan_in_part_of_a_row_and_infinite_numbers(good):
    said, labels = good
    said[0, 3, 1] = np.nan
    assert "'member_0' has NaN in part of 1 rows" in told(said, labels, space="prob")
    numbers, targets, _ = given("regression")
    numbers[2, 0] = np.inf
    assert "'member_2' has 1 infinite numbers" in told(numbers, targets)


def test_nan_on_test_rows_is_refused(good):
    said, labels = good
    fresh = said.copy()
    fresh[0, :2] = np.nan
    assert "test predictions have NaN" in told(said, labels, test=fresh + 0.0)


@pytest.mark.parametrize("names", [["cat", "dog", "fish"], [10, 20, 30]])
def test_labels_in_another_coding_are_matched_and_it_is_said(good, names):
    said, labels = good
    coded = np.array(names)[labels]
    done = combine_predictions(said, coded, replicates=20)
    assert "matched with columns in sorted order" in str(done)
    plain = combine_predictions(said, labels, replicates=20)
    scores = [d.scoreboard.row("mean")["val"]["accuracy"] for d in (done, plain)]
    assert scores[0] == scores[1]
    named = combine_predictions(said, coded, classes=list(map(str, names)), replicates=20)
    assert named.given.classes == tuple(map(str, names))


def test_labels_that_no_column_can_be_are_refused(good):
    said, labels = good
    message = told(said, np.array(["a", "b", "c", "d"])[np.arange(30) % 4])
    assert "4 different labels" in message
    assert "3 columns" in message
    assert "no columns" in told(said, np.array(["a", "b"])[labels % 2], classes=["x", "y", "z"])
    assert "2 classes are named" in told(said, labels, classes=["x", "y"])


def test_other_mistakes_are_explained(good):
    said, labels = good
    assert "did you mean 'caruana'?" in told(said, labels, method="caruna")
    assert "mean_value does not fit the task multiclass" in told(said, labels, method="mean_value")
    assert "did you mean 'accuracy'?" in told(said, labels, metric="acuracy")
    assert "rmse" in told(said, labels, metric="rmse")
    assert "no test predictions" in told(said, labels, test_labels=labels)
    assert "no option 'round'; did you mean 'rounds'?" in told(
        said, labels, method="caruana", options={"caruana.round": 3}
    )
    assert "add --method stack" in told(said, labels, options={"stack.folds": 3})
    assert "none is asked for: --calibrate" in told(said, labels, options={"calibrate.method": 1})
    assert "did you mean 'multiclass'?" in told(said, labels, task="multi_class")
    assert "groups of shape (3,) do not fit 30 rows" in told(said, labels, groups=[1, 2, 3])
    assert "trained must be booleans" in told(said, labels, trained=np.zeros((3, 30)))
    assert "mean: expected 3 weights" in told(said, labels, options={"mean.weights": [1, 2]})


def test_test_predictions_must_be_of_the_same_members_and_classes(good):
    said, labels = good
    named = dict(zip("abc", said, strict=True))
    message = told(named, labels, test={"a": said[0], "b": said[1], "d": said[2]})
    assert "lack 'c'" in message
    assert "'d', which is no member" in message
    other = {name: np.full((5, 4), 0.25) for name in "abc"}
    assert "test predictions of (4,) a row" in told(named, labels, test=other)


def test_costs_must_be_one_a_member():
    assert costs_of([1, 2], ["a", "b"]).tolist() == [1.0, 2.0]
    for wrong in ([1], [1, -2], [1, np.inf]):
        with pytest.raises(DataError, match="2 finite numbers"):
            costs_of(wrong, ["a", "b"])
    with pytest.raises(DataError, match="lack the row 'b'"):
        costs_of({"a": 1.0, "c": 2.0}, ["a", "b"])


def test_all_methods_leave_out_what_refuses_the_members_and_say_so(good):
    said, labels = good
    ruled_out = said.copy()
    ruled_out[0, 0], ruled_out[1, 0] = [1, 0, 0], [0, 1, 0]
    ruled_out[2, 0] = [0, 0, 1]
    done = combine_predictions(ruled_out, labels, method="all", replicates=20)
    assert "Not made: product: in some row every class has probability 0" in str(done)
    assert "product" not in done.rows
    assert "product: in some row every class" in told(ruled_out, labels, method="product")


def test_copies_of_a_member_are_reported(good):
    said, labels = good
    done = combine_predictions({"a": said[0], "b": said[1], "c": said[0]}, labels, replicates=20)
    assert "'c' has the same predictions as 'a'" in str(done)


def test_two_members_of_one_name_are_refused(good, tmp_path):
    said, labels = good
    np.save(tmp_path / "a.npy", said[0])
    message = told([tmp_path / "a.npy", tmp_path / "a.npy"], labels)
    assert "two members are called" in message


def test_a_member_may_be_called_as_a_method_is(good):
    said, labels = good
    done = combine_predictions(
        {"mean": said[0], "bayes": said[1]}, labels, method="mean", replicates=20
    )
    assert list(done.rows) == ["mean", "bayes", "mean (method)"]
    assert done.use == "mean (method)"


def test_decided_numbers_are_no_classes_without_end():
    counts = np.arange(40) * 1000
    message = told([counts, counts + 1], counts)
    assert "--task regression" in message
    done = combine_predictions([counts, counts + 1], counts, task="regression", replicates=20)
    assert np.allclose(done.predictions["val"], counts + 0.5)


def test_an_estimator_as_an_option_is_kept_by_what_it_is(good, tmp_path):
    from sklearn.linear_model import LogisticRegression

    said, labels = good
    done = combine_predictions(
        said, labels, method="stack", options={"stack.meta": LogisticRegression()}, replicates=20
    )
    text = (done.save(tmp_path / "out") / "combination.json").read_text()
    assert '"stack.meta": "sklearn.linear_model._logistic.LogisticRegression"' in text


def test_few_rows_of_many_classes_can_be_combined_by_all():
    said, labels = classes(rows=24, members=3, count=8)
    done = combine_predictions(said, labels, method="all", folds=3, replicates=20)
    assert {"caruana", "simplex", "dynamic", "stack"} <= set(done.rows)

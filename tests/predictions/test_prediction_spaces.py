"""Spaces and tasks: told where the numbers tell, refused with what to type where they do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyfuse.errors import DataError
from polyfuse.predictions import Predictions, as_task, guess_space

draw = np.random.default_rng(0)
LOGITS = draw.standard_normal((50, 4)) * 3
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
GAP = np.where(np.arange(50)[:, None] < 5, np.nan, PROBS)
HEADS = np.stack([PROBS, PROBS[::-1]], 1)


def member(array, **words):
    return Predictions(name="a.npy", array=np.asarray(array), **words)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distributions_and_logits_are_told_in_any_precision(dtype):
    assert guess_space(PROBS.astype(dtype)) == "prob"
    assert guess_space(LOGITS.astype(dtype)) == "logit"
    assert guess_space(np.log(PROBS).astype(dtype)) == "log_prob"


def test_a_thousand_classes_in_half_precision():
    logits = draw.standard_normal((20, 1000))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert guess_space(probs.astype(np.float16)) == "prob"


@pytest.mark.parametrize(
    ("array", "space"),
    [
        (GAP, "prob"),
        (HEADS, "prob"),
        (np.eye(3), "prob"),
        (PROBS.round(3), "prob"),
        (-np.abs(LOGITS) - 3, "logit"),
        (np.log(np.eye(3) + 1e-300), "log_prob"),
        (np.array([[np.inf, -np.inf], [1, 2]]), "logit"),
        (np.array([[1e308, 1e308], [-1e308, -1e308]]), "logit"),
        (np.array([3, 1, 2]), "label"),
        (np.array([[3, 1], [0, 2]]), "label"),
        (np.array([True, False]), "label"),
    ],
)
def test_other_arrays(array, space):
    assert guess_space(array) == space


def test_every_row_counts_wherever_it_is():
    many = np.full((300_000, 4), 0.25, np.float32)
    assert guess_space(many) == "prob"
    many[-1, 3] = -0.25
    assert guess_space(many) == "logit"


AMBIGUOUS = {
    "one probability a row": (PROBS[:, 0], 'task="binary", or plain values, task="regression"'),
    "one number a row": (LOGITS[:, :1], "from -.*logits of the second of two"),
    "each column for itself": (PROBS * 0.5, 'task="multilabel" where each column'),
    "counts": (np.arange(12.0).reshape(4, 3), "rows that sum to 3 to 30"),
    "percent": (PROBS * 100, "rows that sum to 100 to 100"),
    "zeros": (np.zeros((4, 3)), 'space="logit"'),
    "rising": (np.sort(LOGITS, -1), 'for their rows all rise: task="quantiles"'),
    "mean and variance": (np.stack([LOGITS[:, 0], PROBS[:, 0] + 9], -1), "task="),
    "variance below": (
        np.stack([LOGITS[:, 0], np.abs(LOGITS[:, 1])], -1),
        'column 1 is never negative: task="mean_variance"',
    ),
    "nothing said": (np.full((3, 2), np.nan), "has no row without NaN"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_the_ambiguous_is_refused_with_what_to_type(name):
    array, told = AMBIGUOUS[name]
    with pytest.raises(DataError, match=told) as caught:
        guess_space(array, name="mine.npy")
    assert "'mine.npy'" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "task", "space"),
    [
        (PROBS[:, 0], "binary", "prob"),
        (LOGITS[:, :1], "binary", "logit"),
        (PROBS * 0.5, "multilabel", "prob"),
        (LOGITS, "multilabel", "logit"),
        (LOGITS[:, 0], "regression", "value"),
        (np.array([3, 1]), "regression", "value"),
        (np.sort(LOGITS), "quantiles", "value"),
        (np.eye(3, dtype=int), "multiclass", "prob"),
    ],
)
def test_a_task_settles_what_numbers_leave_open(array, task, space):
    assert guess_space(array, task=task) == space


@pytest.mark.parametrize("array", [-PROBS[:, 0], PROBS[:, 0] * 30])
def test_a_task_does_not_settle_all(array):
    with pytest.raises(DataError, match='space="logit" or space="log_prob"'):
        guess_space(array, task="binary")


finite = st.floats(-50, 50, width=32)


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
        elements=finite,
    )
)
def test_a_softmax_is_always_told_and_its_space_is_never_wrong(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    assert guess_space(shares) == "prob"
    try:
        found = guess_space(logits)
    except DataError:
        return
    assert found != "label"
    if found == "prob":
        np.testing.assert_allclose(logits.sum(-1), 1, atol=0.01)


# tasks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_binary_predictions_become_pairs_of_the_same_probability(shape):
    p = PROBS[:, 0].reshape(shape)
    pair = as_task(member(p), "binary")
    np.testing.assert_allclose(pair.array, np.stack([1 - p.ravel(), p.ravel()], -1))
    z = np.log(p / (1 - p))
    logits = as_task(member(z), "binary").array
    np.testing.assert_allclose(np.exp(logits[:, 1]) / np.exp(logits).sum(-1), p.ravel())
    logs = as_task(member(np.log(p), space="log_prob"), "binary").array
    np.testing.assert_allclose(np.exp(logs), pair.array)
    assert (pair.space, pair.task, pair.classes) == ("prob", "binary", None)
    assert pair.notes == ("'a.npy': one number a row is read as that of class 1",)


def test_log_probabilities_near_0_and_near_1_are_exact():
    logs = np.array([-1e-12, -60.0, 0.0])
    rest = as_task(member(logs, space="log_prob"), "binary").array[:, 0]
    np.testing.assert_allclose(rest[:2], [np.log(1e-12), -np.exp(-60.0)], rtol=1e-12)
    assert rest[2] == -np.inf


@pytest.mark.parametrize(
    ("array", "task", "told"),
    [
        (PROBS, None, "multiclass"),
        (HEADS, None, "multi_head"),
        (PROBS[:, :2], "multilabel", "multilabel"),
        (LOGITS[:, 0], "regression", "regression"),
        (np.abs(LOGITS[:, :2]), "mean_variance", "mean_variance"),
        (PROBS[:, :2] / PROBS[:, :2].sum(-1, keepdims=True), "binary", "binary"),
        (np.array([2, 0]), None, None),
        (np.array([2, 0]), "multiclass", "multiclass"),
        (np.array([[2, 0], [1, 1]]), "multi_head", "multi_head"),
    ],
)
def test_arrays_in_the_shape_of_their_task_stay(array, task, told):
    found = as_task(member(array), task)
    np.testing.assert_array_equal(found.array, array)
    assert found.task == told
    assert found.space is not None
    assert as_task(found).array is found.array


def test_whole_numbers_that_are_no_labels_become_floating():
    assert as_task(member(np.eye(3, dtype=int)), "multiclass").array.dtype == np.float64
    assert as_task(member([3, 1], space="label"), "regression").array.tolist() == [3.0, 1.0]
    assert as_task(member([1, 0], space="prob"), "binary").array.tolist() == [[0, 1], [1, 0]]


def test_regression_of_one_column_is_flat():
    found = as_task(member(LOGITS[:, :1], classes=["price"]), "regression")
    np.testing.assert_array_equal(found.array, LOGITS[:, 0])
    assert (found.space, found.classes) == ("value", None)


def test_quantiles_have_levels():
    values = np.sort(LOGITS[:, :3], -1)
    given_levels = as_task(member(values), levels=[0.1, 0.5, 0.9])
    named = as_task(member(values, classes=["q0.1", "0.5", "0.9"]), "quantiles")
    assert given_levels.levels == named.levels == (0.1, 0.5, 0.9)
    assert given_levels.task == "quantiles"
    assert given_levels.notes == ()
    values[3] = values[3, ::-1]
    assert as_task(member(values), levels=[0.1, 0.5, 0.9]).notes == (
        "'a.npy': quantiles cross in 1 rows",
    )


@pytest.mark.parametrize("levels", [[0.5], [0.9, 0.5, 0.1], [0, 0.5, 1], [0.1, 0.1, 0.2], None])
def test_levels_that_do_not_fit(levels):
    with pytest.raises(DataError, match=r"give one level a column, rising, between 0 and 1"):
        as_task(member(LOGITS[:, :3], classes=["a", "b", "c"]), "quantiles", levels=levels)


@pytest.mark.parametrize(
    ("task", "array"),
    [
        ("binary", PROBS),
        ("multiclass", HEADS),
        ("multiclass", np.ones((4, 1))),
        ("multilabel", HEADS),
        ("regression", LOGITS),
        ("mean_variance", LOGITS),
        ("quantiles", LOGITS[:, 0]),
        ("multi_head", PROBS),
    ],
)
def test_shapes_that_a_task_does_not_have(task, array):
    with pytest.raises(DataError, match=rf"'a\.npy' has shape .*the task {task} takes \(n"):
        as_task(member(array, space="value" if task == "regression" else "prob"), task)


@pytest.mark.parametrize(("task", "shape"), [("binary", (4, 2)), ("multi_head", (4,))])
def test_labels_of_another_task(task, shape):
    with pytest.raises(DataError, match="has decided labels of shape"):
        as_task(member(np.zeros(shape, int)), task)


def test_negative_variances_and_unknown_words():
    with pytest.raises(DataError, match="2 negative variances in column 1"):
        as_task(member([[1.0, -1.0], [0, 1], [2, -3]]), "mean_variance")
    with pytest.raises(DataError, match="did you mean 'multilabel'"):
        as_task(member(PROBS), "multi_label")
    with pytest.raises(DataError, match="space='probs' is not known"):
        as_task(member(PROBS, space="probs"))

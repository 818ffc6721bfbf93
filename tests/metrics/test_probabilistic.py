"""NLL and Brier score: parity with scikit-learn, over heads, binary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import brier_score_loss, log_loss

from polyfuse.errors import DataError
from polyfuse.metrics import brier, nll


def some(n, classes, seed, heads=()):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, *heads, classes))
    return special.softmax(logits, -1), rng.integers(0, classes, (n, *heads))


@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 2**32))
def test_nll_matches_scikit_learn(n, classes, seed):
    prediction, labels = some(n, classes, seed)
    expected = log_loss(labels, prediction, labels=range(classes))
    assert nll(prediction, labels).value == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 2**32))
def test_brier_matches_its_formula(n, classes, seed):
    prediction, labels = some(n, classes, seed)
    squares = ((prediction - np.eye(classes)[labels]) ** 2).sum(-1)
    np.testing.assert_allclose(brier(prediction, labels).numerator, squares, atol=1e-14)


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_two_classes_are_one_probability(n, seed):
    prediction, labels = some(n, 2, seed)
    for metric in (nll, brier):
        alone, both = metric(prediction[:, 1], labels), metric(prediction, labels)
        np.testing.assert_allclose(alone.numerator, both.numerator, atol=1e-9)
    half = brier_score_loss(labels, prediction[:, 1], pos_label=1)
    assert brier(prediction, labels).value / 2 == pytest.approx(half, abs=1e-12)


def test_over_heads_nll_is_a_sum_and_brier_a_mean():
    prediction, labels = some(40, 5, 0, heads=(3,))
    one = [(prediction[:, h], labels[:, h]) for h in range(3)]
    assert nll(prediction, labels).value == pytest.approx(sum(nll(*head).value for head in one))
    expected = np.mean([brier(*head).value for head in one])
    assert brier(prediction, labels).value == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_the_mean_of_members_is_never_worse_than_their_mean_score(members, seed):
    _, labels = some(30, 4, seed)
    stack = np.stack([some(30, 4, seed + 1 + m)[0] for m in range(members)])
    for metric in (nll, brier):
        alone = np.mean([metric(one, labels).value for one in stack])
        assert metric(stack.mean(0), labels).value <= alone + 1e-12


def test_nll_of_an_impossible_class_is_finite():
    value = nll(np.array([[1.0, 0.0]]), np.array([1])).value
    assert value == pytest.approx(-np.log(np.finfo(np.float32).tiny))


@pytest.mark.parametrize("label", [-1, 2])
def test_nll_refuses_labels_that_are_no_class(label):
    with pytest.raises(DataError, match="do not fit predictions of 2 classes"):
        nll(np.array([[0.5, 0.5]]), np.array([label]))

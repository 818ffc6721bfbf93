"""Balanced accuracy and F1: parity with scikit-learn in all averages, also with missing classes."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from polyfuse.errors import DataError
from polyfuse.metrics import accuracy, balanced_accuracy, f1, f1_by_class


@st.composite
def decisions(draw):
    n, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, classes, n), rng.integers(0, classes, n)


@given(decisions())
def test_f1_matches_scikit_learn(both):
    read, labels = both
    for average in ("macro", "micro"):
        expected = f1_score(labels, read, average=average, zero_division=0)
        assert f1(read, labels, average=average).value == pytest.approx(expected, abs=1e-12)
    named = np.union1d(read, labels)
    expected = f1_score(labels, read, average=None, labels=named, zero_division=0)
    by_class = f1_by_class(read, labels)
    np.testing.assert_allclose(by_class[named], expected, atol=1e-12)
    assert np.isnan(np.delete(by_class, named)).all()
    for c in named:
        assert f1(read, labels, average=int(c)).value == by_class[c]


@given(decisions())
def test_balanced_accuracy_matches_scikit_learn(both):
    read, labels = both
    with warnings.catch_warnings():  # of predicted classes that no label has
        warnings.simplefilter("ignore")
        expected = balanced_accuracy_score(labels, read)
    assert balanced_accuracy(read, labels).value == pytest.approx(expected, abs=1e-12)


@given(decisions())
def test_micro_f1_of_exclusive_classes_is_the_accuracy(both):
    read, labels = both
    expected = accuracy(read, labels).value
    assert f1(read, labels, average="micro").value == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32))
def test_multilabel_f1_matches_scikit_learn(n, columns, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.random((n, columns)), rng.integers(0, 2, (n, columns))
    read = (scores > 0.5).astype(int)
    by_label = f1_by_class(scores, labels, multilabel=True)
    true = [f1_score(labels[:, k], read[:, k], zero_division=np.nan) for k in range(columns)]
    np.testing.assert_allclose(by_label, true, atol=1e-12)
    micro = f1(scores, labels, average="micro", multilabel=True).value
    expected = f1_score(labels.ravel(), read.ravel(), zero_division=np.nan)
    np.testing.assert_allclose(micro, expected, atol=1e-12)
    macro = f1(read, labels, multilabel=True).value
    seen = by_label[~np.isnan(by_label)]
    np.testing.assert_allclose(macro, seen.mean() if seen.size else np.nan, atol=1e-12)


def test_positions_of_heads_are_cases():
    rng = np.random.default_rng(0)
    read, labels = rng.integers(0, 4, (2, 30, 3))
    for metric in (f1, balanced_accuracy):
        assert metric(read, labels).value == metric(read.ravel(), labels.ravel()).value


def test_a_class_that_scores_name_counts_even_if_nobody_has_it():
    scores = np.eye(4)[[0, 1, 1]]
    assert f1_by_class(scores, np.array([0, 1, 0])).shape == (4,)
    assert np.isnan(f1(scores, np.array([0, 1, 0]), average=3).value)


@pytest.mark.parametrize("average", ["weighted", 5, -1])
def test_an_unknown_average_is_refused(average):
    with pytest.raises(DataError, match=f"average='?{average}"):
        f1(np.array([0, 1]), np.array([0, 1]), average=average)


@pytest.mark.parametrize("labels", [np.array([-1, 0]), np.array([0.0, 1.0])])
def test_labels_that_are_no_classes_are_refused(labels):
    with pytest.raises(DataError, match="numbered from 0"):
        balanced_accuracy(np.array([0, 1]), labels)


def test_multilabel_wants_columns_of_zeros_and_ones():
    with pytest.raises(DataError, match="zeros and ones"):
        f1(np.array([[0, 2]]), np.array([[0, 1]]), multilabel=True)

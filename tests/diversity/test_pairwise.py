"""Pairwise diversity: cases by hand, parity with scikit-learn, extremes, one contract for all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef, mutual_info_score

from polyfuse.diversity import (
    DIVERSITY,
    disagreement,
    double_fault,
    error_correlation,
    kappa,
    mean_pairwise,
    mutual_information,
)
from polyfuse.errors import DataError

every = pytest.mark.parametrize("name", DIVERSITY)
# Kuncheva and Whitaker's shares by hand: N11 = 3, N10 = 2, N01 = 1, N00 = 2 of 8 samples.
LABELS = np.zeros(8, int)
FIRST = np.array([0, 0, 0, 0, 0, 1, 1, 1])
SECOND = np.array([0, 0, 0, 1, 2, 0, 1, 2])
BY_HAND = {
    "disagreement": 3 / 8,
    "q_statistic": (3 * 2 - 1 * 2) / (3 * 2 + 1 * 2),
    "kappa": (5 / 8 - 1 / 2) / (1 - 1 / 2),  # they agree on 5, by chance on 5 * 4 + 3 * 4 of 64
    "double_fault": 2 / 8,
    "error_correlation": (3 * 2 - 1 * 2) / np.sqrt(5 * 3 * 4 * 4),
}


def some(members=4, samples=60, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, (members, samples)), rng.integers(0, classes, samples)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_case_by_hand(name):
    matrix = DIVERSITY[name](np.stack([FIRST, SECOND]), LABELS)
    assert matrix[0, 1] == pytest.approx(BY_HAND[name], abs=1e-12)
    assert mean_pairwise(matrix) == matrix[0, 1]


def test_without_labels_any_two_classes_that_differ_disagree():
    assert disagreement(np.stack([FIRST, SECOND]))[0, 1] == 4 / 8


@given(st.integers(2, 40), st.integers(2, 4), st.integers(0, 2**32))
def test_measures_match_scikit_learn(samples, classes, seed):
    predictions, labels = some(2, samples, classes, seed)
    right = predictions == labels
    told = mutual_info_score(*predictions)
    assert mutual_information(predictions)[0, 1] == pytest.approx(told, abs=1e-12)
    if right.all(1).any() or (~right).all(1).any():
        return
    assert kappa(predictions, labels)[0, 1] == pytest.approx(cohen_kappa_score(*right), abs=1e-12)
    told = matthews_corrcoef(*right)
    assert error_correlation(predictions, labels)[0, 1] == pytest.approx(told, abs=1e-12)


@every
@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 2**32))
def test_matrices_are_symmetric_and_members_may_come_in_any_order(name, members, samples, seed):
    predictions, labels = some(members, samples, seed=seed)
    matrix = DIVERSITY[name](predictions, labels)
    assert matrix.shape == (members, members)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
    order = np.random.default_rng(seed).permutation(members)
    np.testing.assert_allclose(
        DIVERSITY[name](predictions[order], labels), matrix[np.ix_(order, order)], atol=1e-12
    )


@every
def test_identical_members_give_the_extreme(name):
    predictions, labels = some(1)
    matrix = DIVERSITY[name](np.repeat(predictions, 3, 0), labels)
    wrong = (predictions[0] != labels).mean()
    share = np.bincount(predictions[0]) / 60
    extreme = {"disagreement": 0, "double_fault": wrong}
    extreme["mutual_information"] = -(share * np.log(share)).sum()
    np.testing.assert_allclose(matrix, extreme.get(name, 1), atol=1e-12)


@every
def test_other_members_are_within_the_extremes(name):
    low, high = (-1, 1) if name in ("q_statistic", "kappa", "error_correlation") else (0, np.inf)
    predictions, labels = some(6)
    matrix = DIVERSITY[name](predictions, labels)
    assert ((matrix >= low) & (matrix <= high)).all()


@pytest.mark.parametrize("name", ["q_statistic", "kappa", "error_correlation"])
def test_independent_members_are_near_zero_and_opposite_ones_negative(name):
    rng = np.random.default_rng(0)
    independent, labels = rng.integers(0, 2, (2, 20_000)), np.zeros(20_000, int)
    assert DIVERSITY[name](independent, labels)[0, 1] == pytest.approx(0, abs=0.05)
    opposite = np.stack([independent[0], 1 - independent[0]])
    found = DIVERSITY[name](opposite, labels)[0, 1]
    assert found < -0.99


@pytest.mark.parametrize("name", ["q_statistic", "kappa", "error_correlation"])
def test_what_is_undefined_is_nan_and_left_out_of_the_mean(name):
    labels = np.zeros(4, int)
    always_right = np.zeros((2, 4), int)
    assert np.isnan(DIVERSITY[name](always_right, labels)).all()
    assert np.isnan(mean_pairwise(DIVERSITY[name](always_right, labels)))
    mixed = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    matrix = DIVERSITY[name](mixed, labels)
    if name != "kappa":  # which is 0 there: agreement is what chance gives
        assert np.isnan(matrix[0, 2])
        assert mean_pairwise(matrix) == pytest.approx(1, abs=1e-12)


def test_one_member_has_no_pair():
    assert np.isnan(mean_pairwise(double_fault(*some(1))))


@every
def test_scores_count_by_their_best_class_and_positions_as_cases(name):
    predictions, labels = some(3)
    scores = np.eye(3)[predictions] + np.random.default_rng(1).random((3, 60, 3)) / 2
    expected = DIVERSITY[name](predictions, labels)
    np.testing.assert_array_equal(DIVERSITY[name](scores, labels), expected)
    heads = DIVERSITY[name](scores.reshape(3, 20, 3, 3), labels.reshape(20, 3))
    np.testing.assert_array_equal(heads, expected)


def test_residuals_of_numbers_are_correlated():
    rng = np.random.default_rng(0)
    predictions, labels = rng.normal(0, 1, (3, 40)), rng.normal(0, 1, 40)
    expected = np.corrcoef(predictions - labels)
    np.testing.assert_allclose(error_correlation(predictions, labels), expected, atol=1e-12)


def test_a_residual_that_never_changes_has_no_correlation():
    predictions = np.stack([np.arange(9) + 0.5, np.arange(9) ** 2])
    assert np.isnan(error_correlation(predictions, np.arange(9.0))[0]).all()


@every
@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (np.zeros((0, 6), int), "members stacked along the first axis"),
        (np.zeros(6, int), "members stacked along the first axis"),
        (np.full((2, 6, 3), np.nan), "NaN"),
        (np.full((2, 0, 3), 0.5), "none empty"),
    ],
)
def test_what_is_no_stack_of_members_is_refused(name, predictions, message):
    with pytest.raises(DataError, match=message):
        DIVERSITY[name](predictions, np.zeros(6, int))


@pytest.mark.parametrize("name", [n for n in DIVERSITY if n != "mutual_information"])
def test_labels_of_other_samples_are_refused(name):
    predictions, labels = some()
    with pytest.raises(DataError, match=r"predictions of \(4, 60\) do not fit labels of \(59,\)"):
        DIVERSITY[name](predictions, labels[1:])
    with pytest.raises(DataError, match="do not fit"):
        DIVERSITY[name](predictions.astype(float), labels)

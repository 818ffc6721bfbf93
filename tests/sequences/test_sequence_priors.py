"""Priors of positions and lengths: counts, Bayes' rule, and strengths that can only help."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from polyfuse.errors import DataError
from polyfuse.sequences import (
    STRENGTHS,
    apply_prior,
    decode,
    encode,
    fit_strength,
    joint_decode,
    length_prior,
    lengths_of,
    position_prior,
)

numbers = hnp.arrays(np.float64, (3, 2, 4), elements=st.floats(-20, 20))


def test_position_priors_are_smoothed_counts():
    labels = encode(["12", "13", "1", "213"])
    got = np.exp(position_prior(labels, classes=11, smoothing=0.5))
    for position, column in enumerate(labels.T.tolist()):
        for c in range(11):
            assert got[position, c] == pytest.approx((column.count(c) + 0.5) / (4 + 0.5 * 11))


def test_length_priors_are_smoothed_counts():
    labels = encode(["12", "13", "", "213"])
    expected = (np.array([1, 0, 2, 1]) + 2.0) / (4 + 2.0 * 4)
    np.testing.assert_allclose(np.exp(length_prior(labels, blank=10, smoothing=2.0)), expected)
    with np.errstate(divide="raise"):
        assert length_prior(labels, blank=10, smoothing=0.0)[1] == -np.inf


def test_lengths_are_counted_up_to_the_first_blank_in_any_number_of_axes():
    labels = np.array([[[1, 10, 3], [10, 1, 2]], [[1, 2, 3], [1, 2, 10]]])
    assert lengths_of(labels, blank=10).tolist() == [[1, 0], [3, 2]]
    assert lengths_of(torch.from_numpy(labels), blank=10).tolist() == [[1, 0], [3, 2]]


@given(numbers, st.sampled_from([np.float32, np.float64]))
def test_strength_0_changes_nothing_to_the_bit(scores, dtype):
    heads = special.log_softmax(scores, -1).astype(dtype)
    before = heads.tobytes()
    with np.errstate(divide="ignore"):
        prior = np.log(np.eye(2, 4))  # even one that rules classes out
    after = apply_prior(heads, prior, 0.0)
    assert after.dtype == dtype
    assert after.tobytes() == before
    np.testing.assert_array_equal(decode(after, blank=3), decode(heads, blank=3))


@given(numbers, st.floats(-2, 3))
def test_a_prior_is_bayes_rule(scores, strength):
    heads = special.log_softmax(scores, -1)
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 2)
    got = apply_prior(heads, np.log(shares), strength)
    expected = np.exp(heads) * shares**strength
    np.testing.assert_allclose(
        np.exp(got), expected / expected.sum(-1, keepdims=True), rtol=1e-9, atol=1e-15
    )


def test_a_class_that_was_never_seen_is_ruled_out_without_nan():
    with np.errstate(divide="ignore"):
        got = apply_prior(np.log([[0.5, 0.25, 0.25]]), np.log([0.0, 0.5, 0.5]), 1.0)
        none = apply_prior(np.log([[1.0, 0.0]]), np.log([0.0, 1.0]), 1.0)
    np.testing.assert_allclose(np.exp(got), [[0.0, 0.5, 0.5]], atol=1e-300)
    assert np.isfinite(none).all()


def test_a_net_of_balanced_digits_is_corrected_by_bayes_rule():
    rng = np.random.default_rng(0)
    often = 1 / np.arange(1, 11) / (1 / np.arange(1, 11)).sum()
    labels = rng.choice(10, (4000, 1), p=often)
    # Likelihoods alone: what a net says that saw each digit equally often.
    seen = rng.normal(0, 1, (4000, 1, 10)) + 1.5 * np.eye(10)[labels]
    heads = special.log_softmax(1.5 * seen, -1)
    prior = position_prior(labels[:2000], classes=10)
    plain = (heads[2000:].argmax(-1) == labels[2000:]).mean()
    told = (apply_prior(heads[2000:], prior, 1.0).argmax(-1) == labels[2000:]).mean()
    assert told > plain + 0.05


def fitted(heads, prior, labels):
    return fit_strength(lambda s: apply_prior(heads, prior, s).argmax(-1), labels)


@given(st.integers(0, 2**32 - 1))
def test_a_fitted_strength_is_never_worse_where_it_was_fitted(seed):
    rng = np.random.default_rng(seed)
    heads = special.log_softmax(rng.normal(0, 2, (30, 2, 4)), -1)
    labels, prior = rng.integers(0, 4, (30, 2)), np.log(rng.dirichlet(np.ones(4), 2))

    def right(strength):
        return (apply_prior(heads, prior, strength).argmax(-1) == labels).all(1).sum()

    best = fitted(heads, prior, labels)
    assert right(best) == max(map(right, STRENGTHS))
    assert right(best) > right(0.0) or best == 0.0


def test_a_prior_that_misleads_gets_strength_0():
    labels = np.array([[0], [0], [1]])
    heads = np.log(np.where(np.eye(2)[labels], 0.6, 0.4))
    assert fitted(heads, np.log([[0.01, 0.99]]), labels) == 0.0


def test_of_equal_strengths_the_weakest_is_taken():
    read = {0.0: 0, 0.5: 1, -0.5: 1, 1.0: 1}
    labels = np.array([[1]])

    def say(strength):
        return np.array([[read[strength]]])

    assert fit_strength(say, labels, strengths=[1.0, 0.5]) == 0.5
    assert fit_strength(say, labels, strengths=[1.0]) == 1.0
    assert fit_strength(lambda s: np.array([[0]]), labels, strengths=[1.0]) == 0.0


def test_a_weight_of_lengths_is_fitted_the_same_way():
    heads = np.log(np.full((1, 2, 2), 0.5))
    lengths = np.log([[0.1, 0.8, 0.1]])

    def read(weight):
        return joint_decode(heads, lengths, blank=1, length_weight=weight)

    assert fit_strength(read, np.array([[0, 1]])) == STRENGTHS[1]
    assert fit_strength(read, np.array([[1, 1]])) == 0.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: position_prior([[0, 4]], classes=4), "classes from 0 to 4 do not fit 4 classes"),
        (lambda: position_prior([[0.0, 1.0]], classes=4), "integer classes, got float64"),
        (lambda: position_prior([[0]], classes=2, smoothing=-1), "smoothing=-1 must be"),
        (lambda: position_prior(np.zeros((0, 2), int), classes=2, smoothing=0), "no labels"),
        (lambda: position_prior([0, 1], classes=2), "expected"),
        (lambda: length_prior([0, 1], blank=1), "expected \\(sample, position\\)"),
        (lambda: length_prior([[0.5]], blank=1), "expected \\(sample, position\\)"),
        (lambda: length_prior([[0]], blank=1, smoothing=np.nan), "smoothing=nan must be"),
        (lambda: apply_prior(np.zeros((2, 3)), np.zeros(2), 1.0), "as many positions and classes"),
        (lambda: apply_prior(np.zeros((2, 3)), np.zeros((4, 2, 3)), 1.0), "does not fit"),
        (lambda: apply_prior(np.zeros((2, 3), int), np.zeros(3), 1.0), "does not fit int64"),
        (lambda: apply_prior(np.zeros((2, 3)), np.zeros(3), np.inf), "strength=inf"),
        (lambda: fit_strength(lambda s: np.zeros((2, 3)), np.zeros((2, 3))), "read float64"),
        (lambda: fit_strength(lambda s: np.zeros((1, 3), int), np.zeros((2, 3))), "\\(1, 3\\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(DataError, match=said):
        call()

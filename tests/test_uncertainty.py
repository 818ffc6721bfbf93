"""Uncertainty: parts that add up, parity with SciPy, extremes, NumPy and torch alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from polyfuse.errors import DataError
from polyfuse.uncertainty import entropies, variances

TOLERANCE = {"float16": 1e-5, "float32": 1e-5, "float64": 1e-12}


def some(members=4, samples=20, classes=5, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (members, samples, classes))


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32), st.booleans())
def test_entropies_match_scipy(members, samples, seed, weighted):
    logits = some(members, samples, seed=seed)
    weights = np.random.default_rng(seed).random(members) + 0.01 if weighted else np.ones(members)
    share = weights / weights.sum()
    found = entropies(logits, weights=weights if weighted else None)
    p = special.softmax(logits, -1)
    mean = np.tensordot(share, p, 1)
    np.testing.assert_allclose(found.total, stats.entropy(mean, axis=-1), atol=1e-12)
    np.testing.assert_allclose(found.aleatoric, share @ stats.entropy(p, axis=-1), atol=1e-12)
    divergence = share @ stats.entropy(p, np.broadcast_to(mean, p.shape), axis=-1)
    np.testing.assert_allclose(found.epistemic, divergence, atol=1e-12)
    assert min(part.min() for part in found) >= 0
    assert found.epistemic.max() <= np.log(members) + 1e-12


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32), st.booleans())
def test_variances_are_those_of_the_mixture(members, samples, seed, weighted):
    rng = np.random.default_rng(seed)
    means, spread = rng.normal(0, 3, (members, samples)), rng.random((members, samples))
    weights = rng.random(members) + 0.01 if weighted else np.ones(members)
    share = weights / weights.sum()
    found = variances(np.stack([means, spread], -1), weights=weights if weighted else None)
    second_moment = share @ (spread + means**2)
    np.testing.assert_allclose(found.total, second_moment - (share @ means) ** 2, atol=1e-10)
    np.testing.assert_allclose(found.aleatoric, share @ spread, atol=1e-12)
    np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, atol=1e-12)
    assert found.epistemic.min() >= 0


@pytest.mark.parametrize("members", [1, 3, 7])
def test_identical_members_dispute_nothing(members):
    logits = np.repeat(some(1), members, 0)
    assert entropies(logits).epistemic.max() < 1e-13
    numbers = np.repeat(np.random.default_rng(0).random((1, 20, 2)), members, 0)
    assert variances(numbers).epistemic.max() == 0


def test_sure_members_that_differ_dispute_everything():
    found = entropies(np.eye(4)[:, None], space="prob")
    np.testing.assert_allclose(found.total, np.log(4), atol=1e-12)
    assert found.aleatoric[0] == 0
    np.testing.assert_allclose(found.epistemic, np.log(4), atol=1e-12)


def test_spaces_say_the_same():
    logits = some()
    expected = entropies(logits)
    for space, values in {
        "prob": special.softmax(logits, -1),
        "log_prob": special.log_softmax(logits, -1),
    }.items():
        for found, part in zip(entropies(values, space=space), expected, strict=True):
            np.testing.assert_allclose(found, part, atol=1e-12)


def test_a_class_of_no_probability_adds_nothing():
    logits = np.array([[[0.0, 0.0, -np.inf]], [[1.0, 0.0, -np.inf]]])
    without = entropies(logits[..., :2])
    for found, part in zip(entropies(logits), without, strict=True):
        np.testing.assert_allclose(found, part, atol=1e-15)


@pytest.mark.parametrize("measure", [entropies, variances])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_numpy_and_torch_agree_in_the_precision_to_sum_in(measure, precision):
    values = np.abs(some(classes=2)).astype(precision)
    expected = measure(values.astype(np.float64))
    wide = "float64" if precision == "float64" else "float32"
    before = values.copy()
    ours, theirs = measure(values), measure(torch.from_numpy(values))
    np.testing.assert_array_equal(values, before)
    for found, tensor, exact in zip(ours, theirs, expected, strict=True):
        assert found.dtype == wide
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), found)
        np.testing.assert_allclose(found, exact, atol=10 * TOLERANCE[precision], rtol=1e-5)


def test_heads_keep_their_place():
    logits = some(samples=12).reshape(4, 6, 2, 5)
    heads, flat = entropies(logits), entropies(logits.reshape(4, 12, 5))
    for part, expected in zip(heads, flat, strict=True):
        np.testing.assert_array_equal(part, expected.reshape(6, 2))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[[0.5, 0.5]]], {}, "np.stack"),
        (np.zeros((2, 3, 4), int), {}, "votes have no entropy"),
        (np.zeros((3, 4)), {}, "expected .member, sample, ..., class."),
        (np.zeros((0, 3, 4)), {}, "none empty"),
        (np.full((2, 3, 4), np.nan), {}, "NaN"),
        (np.full((2, 3, 4), np.inf), {}, "infinity"),
        (np.zeros((2, 3, 4)), {"space": "prob"}, "sums to 0.*space='logit'"),
        (np.ones((2, 3, 4)) * [2.0, -1.0, 0, 0], {"space": "prob"}, "lowest is -1"),
        (np.zeros((2, 3, 4)), {"space": "log_prob"}, "sums to 4"),
        (np.zeros((2, 3, 4)), {"space": "odds"}, "use 'logit', 'prob' or 'log_prob'"),
        (np.zeros((2, 3, 4)), {"weights": [1.0]}, "expected 2 weights"),
        (np.zeros((2, 3, 4)), {"weights": [0.0, 0.0]}, "not all 0"),
        (np.zeros((2, 3, 4)), {"weights": [1.0, -1.0]}, "0 or more"),
    ],
)
def test_what_is_no_stack_of_classes_is_refused(values, options, message):
    with pytest.raises(DataError, match=message):
        entropies(values, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3, 4)), r"expected \(member, sample, ..., 2\)"),
        (np.zeros((2, 3)), r"expected \(member, sample, ..., 2\)"),
        (-np.ones((2, 3, 2)), "log-variances"),
        (np.full((2, 3, 2), np.nan), "NaN"),
    ],
)
def test_what_is_no_mean_and_variance_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        variances(values)

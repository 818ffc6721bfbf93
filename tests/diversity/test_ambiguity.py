"""Decompositions that add up for any members, and how many members count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from polyfuse.diversity import cross_entropy_ambiguity, effective_members, squared_ambiguity
from polyfuse.errors import DataError


def numbers(members, samples, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (members, samples)), rng.normal(0, 2, samples), rng.random(members)


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32), st.booleans())
def test_the_squared_error_of_the_mean_is_the_members_less_their_spread(
    members, samples, seed, weighted
):
    said, labels, weights = numbers(members, samples, seed)
    parts = squared_ambiguity(said, labels, weights=weights if weighted else None)
    share = weights / weights.sum() if weighted else np.full(members, 1 / members)
    np.testing.assert_allclose(parts.ensemble, (share @ said - labels) ** 2, atol=1e-12)
    np.testing.assert_allclose(parts.members, share @ (said - labels) ** 2, atol=1e-12)
    np.testing.assert_allclose(parts.ensemble, parts.members - parts.ambiguity, atol=1e-12)
    assert (parts.ambiguity >= 0).all()


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32), st.booleans())
def test_the_cross_entropy_of_the_mean_logit_is_the_members_less_their_divergence(
    members, samples, seed, weighted
):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (members, samples, 4)), rng.integers(0, 4, samples)
    weights = rng.random(members)
    parts = cross_entropy_ambiguity(logits, labels, weights=weights if weighted else None)
    share = weights / weights.sum() if weighted else np.full(members, 1 / members)
    p, pooled = special.softmax(logits, -1), special.softmax(np.tensordot(share, logits, 1), -1)
    every = np.arange(samples)
    np.testing.assert_allclose(parts.ensemble, -np.log(pooled[every, labels]), atol=1e-10)
    np.testing.assert_allclose(parts.members, -share @ np.log(p[:, every, labels]), atol=1e-10)
    divergence = share @ stats.entropy(np.broadcast_to(pooled, p.shape), p, axis=-1)
    np.testing.assert_allclose(parts.ambiguity, divergence, atol=1e-10)
    np.testing.assert_allclose(parts.ensemble, parts.members - parts.ambiguity, atol=1e-10)


def test_identical_members_have_no_ambiguity():
    said, labels, _ = numbers(1, 9, 0)
    assert squared_ambiguity(np.repeat(said, 4, 0), labels).ambiguity.max() < 1e-15
    logits = np.random.default_rng(0).normal(0, 3, (1, 9, 4))
    parts = cross_entropy_ambiguity(np.repeat(logits, 4, 0), np.zeros(9, int))
    assert np.abs(parts.ambiguity).max() < 1e-14


def test_positions_of_heads_and_outputs_keep_their_place():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 1, (3, 5, 2, 4)), rng.integers(0, 4, (5, 2))
    heads = cross_entropy_ambiguity(logits, labels)
    one = cross_entropy_ambiguity(logits[:, :, 1], labels[:, 1])
    np.testing.assert_array_equal(heads.ambiguity[:, 1], one.ambiguity)
    assert squared_ambiguity(logits, logits[0]).ensemble.shape == (5, 2, 4)


def test_independent_members_count_each_and_identical_ones_once():
    rng = np.random.default_rng(0)
    labels = np.zeros(50_000)
    independent = rng.normal(0, 1, (8, 50_000))
    assert effective_members(independent, labels) == pytest.approx(8, rel=0.05)
    same = np.repeat(independent[:1], 8, 0)
    assert effective_members(same, labels) == pytest.approx(1, abs=1e-12)
    half = independent + rng.normal(0, 1, 50_000)
    assert effective_members(half, labels) == pytest.approx(8 / (1 + 7 / 2), rel=0.05)


def test_classes_count_by_their_errors():
    rng = np.random.default_rng(0)
    wrong = rng.integers(0, 2, (5, 20_000))
    assert effective_members(wrong, np.zeros(20_000, int)) == pytest.approx(5, rel=0.1)


def test_a_member_without_weight_does_not_count():
    said, labels, _ = numbers(3, 40, 0)
    alone = effective_members(said, labels, weights=np.array([0, 2.0, 0]))
    assert alone == pytest.approx(1, abs=1e-12)
    two = effective_members(said[:2], labels)
    weighted = effective_members(said, labels, weights=np.array([1, 1, 0]))
    assert weighted == pytest.approx(two, abs=1e-12)


def test_errors_that_cancel_and_errors_that_never_change():
    said = np.random.default_rng(0).normal(0, 1, 30)
    assert effective_members(np.stack([said, -said]), np.zeros(30)) == np.inf
    assert np.isnan(effective_members(np.ones((2, 30)), np.zeros(30)))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan], [1.0, np.inf]])
def test_weights_that_do_not_fit_are_refused(weights):
    for measure in (squared_ambiguity, effective_members):
        with pytest.raises(DataError, match="expected 2 weights of 0 or more"):
            measure(np.zeros((2, 3)), np.zeros(3), weights=np.array(weights))


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="do not fit"):
        squared_ambiguity(np.zeros((2, 3)), np.zeros(4))
    with pytest.raises(DataError, match="NaN"):
        squared_ambiguity(np.full((2, 3), np.nan), np.zeros(3))
    with pytest.raises(DataError, match="infinite"):
        cross_entropy_ambiguity(np.full((2, 3, 3), -np.inf), np.zeros(3, int))

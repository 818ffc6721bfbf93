"""The bootstrap: counts that add up, groups drawn whole, intervals that cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from threadpoolctl import threadpool_limits

from polyfuse.metrics import (
    Interval,
    Root,
    Terms,
    auroc,
    bootstrap,
    bootstrap_counts,
    draw_counts,
    interval,
    paired_interval,
    replicate_scores,
    rmse,
)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32))
def test_each_replicate_draws_as_many_samples_as_there_are(n, replicates, seed):
    counts = bootstrap_counts(n, replicates, seed=seed)
    assert counts.shape == (replicates, n)
    assert counts.min() >= 0
    np.testing.assert_array_equal(counts.sum(1), n)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 2**32))
def test_a_group_is_drawn_whole(groups, seed):
    groups = np.array(groups)
    counts = bootstrap_counts(len(groups), 8, seed=seed, groups=groups)
    names, first = np.unique(groups, return_index=True)
    if len(names) > 1:
        for name, at in zip(names, first, strict=True):
            assert (counts[:, groups == name] == counts[:, [at]]).all()
        np.testing.assert_array_equal(counts[:, first].sum(1), len(names))
    else:  # one group alone says nothing about others, so samples are drawn
        np.testing.assert_array_equal(counts.sum(1), len(groups))


def test_the_same_seed_draws_the_same_and_another_seed_others():
    one, same, other = (bootstrap_counts(50, 20, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_the_interval_of_a_mean_matches_its_normal_approximation():
    values = np.random.default_rng(0).normal(2, 1, 2000)
    terms = Terms(values, np.ones(2000))
    value, low, high = interval(terms, bootstrap_counts(2000, 4000, seed=0))
    expected = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(2000))
    assert value == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == pytest.approx(expected, abs=0.004)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(300):
        terms = Terms((rng.random(200) < 0.7).astype(float), np.ones(200))
        _, low, high = interval(terms, bootstrap_counts(200, 400, seed=trial))
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_groups_widen_the_interval_of_what_they_share():
    groups = np.repeat(np.arange(20), 50)
    values = np.random.default_rng(0).normal(0, 1, 20)[groups]
    terms = Terms(values, np.ones(1000))
    alone = interval(terms, bootstrap_counts(1000, 1000, seed=0))
    together = interval(terms, bootstrap_counts(1000, 1000, seed=0, groups=groups))
    assert together.high - together.low > 4 * (alone.high - alone.low)


def test_ratios_are_resampled_as_ratios():
    terms = Terms(np.array([1.0, 4.0]), np.array([2.0, 4.0]))
    counts = np.array([[2, 0], [1, 1], [0, 2]], np.float32)
    assert interval(terms, counts) == pytest.approx(Interval(5 / 6, 0.5 + 0.05 / 3, 1 - 0.05 / 6))


def test_identical_rows_differ_by_exactly_nothing():
    terms = Terms(np.random.default_rng(0).random(60), np.ones(60))
    assert paired_interval(terms, terms, bootstrap_counts(60, 99, seed=0)) == (0, 0, 0)


def test_a_pairs_interval_is_narrower_than_either_rows_own():
    rng = np.random.default_rng(0)
    a = (rng.random(500) < 0.7).astype(float)
    b = np.where(rng.random(500) < 0.05, 1 - a, a)
    counts, ones = bootstrap_counts(500, 1000, seed=0), np.ones(500)
    pair = paired_interval(Terms(a, ones), Terms(b, ones), counts)
    alone = interval(Terms(a, ones), counts)
    assert pair.value == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert pair.low <= pair.value <= pair.high
    assert pair.high - pair.low < (alone.high - alone.low) / 1.5


every_draw = pytest.mark.parametrize(
    "draw",
    [bootstrap_counts, lambda *a, **k: np.concatenate([c.copy() for c in draw_counts(*a, **k)])],
    ids=["bootstrap_counts", "draw_counts"],
)


@every_draw
@pytest.mark.parametrize("groups", [None, np.arange(30) // 2 % 10])
def test_counts_have_the_moments_of_draws_with_replacement(draw, groups):
    counts = draw(30, 4000, seed=0, groups=groups).astype(float)
    units = 30 if groups is None else 10
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.08)
    np.testing.assert_allclose(counts.var(0), 1 - 1 / units, atol=0.12)
    covariance = np.cov(counts[:, 0], counts[:, 29])[0, 1]
    assert covariance == pytest.approx(-1 / units, abs=0.06)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32))
def test_draws_are_the_same_for_any_size_of_parts(n, replicates, seed):
    groups = np.arange(n) // 3
    for each in (None, groups):
        at_once = np.concatenate([p.copy() for p in draw_counts(n, replicates, seed=seed)])
        assert at_once.shape == (replicates, n)
        np.testing.assert_array_equal(at_once.sum(1), n)
        with pytest.MonkeyPatch.context() as patch:
            whole = [p.copy() for p in draw_counts(n, replicates, seed=seed, groups=each)]
            patch.setattr(bootstrap, "_PART", 3)
            parts = [p.copy() for p in draw_counts(n, replicates, seed=seed, groups=each)]
        assert max(map(len, parts)) <= 3
        np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(whole))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 2**32))
def test_draws_in_parts_keep_groups_whole(groups, seed):
    groups = np.array(groups)
    (counts,) = draw_counts(len(groups), 8, seed=seed, groups=groups)
    names, first = np.unique(groups, return_index=True)
    if len(names) > 1:
        assert (counts == counts[:, first[np.unique(groups, return_inverse=True)[1]]]).all()
        np.testing.assert_array_equal(counts[:, first].sum(1), len(names))


def test_intervals_of_terms_are_the_quantiles_of_weighted_ratios_to_the_bit():
    rng = np.random.default_rng(0)
    terms = Terms(rng.random(50), rng.random(50) + 1)
    counts = bootstrap_counts(50, 99, seed=0)
    ratios = (counts @ terms.numerator) / (counts @ terms.denominator)
    assert interval(terms, counts)[1:] == tuple(np.quantile(ratios, [0.025, 0.975]))


def test_a_root_is_taken_of_each_replicate():
    rng = np.random.default_rng(0)
    prediction, labels = rng.normal(0, 1, (2, 40))
    counts = bootstrap_counts(40, 50, seed=0)
    score = rmse(prediction, labels)
    assert isinstance(score, Root)
    np.testing.assert_array_equal(
        score.replicates(counts), np.sqrt(score.square.replicates(counts))
    )


def test_undefined_replicates_are_left_out():
    scores, labels = np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1])
    score = auroc(scores, labels)
    assert interval(score, bootstrap_counts(3, 50, seed=0)) == (1, 1, 1)
    assert np.isnan(interval(score, np.array([[3, 0, 0]]))[1:]).all()


def test_no_more_memory_than_stated_is_drawn_at_once():
    part = next(draw_counts(1 << 21, 100, seed=0))
    assert (part.dtype, part.nbytes) == (np.uint8, 64 << 20)


def test_rows_are_weighted_as_one_by_one_whatever_blocks_they_are_multiplied_in(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [Terms(rng.random(500), 1 + rng.random(500)) for _ in range(7)]
    counts = np.concatenate([part.copy() for part in draw_counts(500, 70, seed=5)])
    expected = np.stack([row.replicates(counts) for row in rows], 1)
    for limit in (1, 5000, 1 << 18, 1 << 30):
        monkeypatch.setattr(bootstrap, "_ONE_THREAD", limit)
        found = replicate_scores(rows, replicates=70, seed=5)
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_scoreboards_have_the_same_bits_for_any_number_of_threads():
    rng = np.random.default_rng(0)
    rows = [Terms(rng.random(30_001), 1 + rng.random(30_001)) for _ in range(12)]
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            found.append(replicate_scores(rows, replicates=40).tobytes())
    assert len(set(found)) == 1

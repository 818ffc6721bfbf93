"""Median, trimmed and winsorised mean, ranks, beside NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from polyfuse.combine import maximum, median, minimum, rank_mean, trimmed_mean, winsorised_mean
from polyfuse.errors import DataError

COUNTS = [1, 2, 3, 4, 5, 10, 11, 32, 33, 40]


def some_values(count, shape=(13, 4)):
    """Members with many ties."""
    return np.random.default_rng(count).integers(0, 6, (count, *shape)) / 4.0


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("cut", [0.0, 0.1, 0.3, 0.49])
@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_values_match_numpy_and_scipy(count, cut, to):
    values = some_values(count)
    expected = {
        median: np.median(values, 0),
        trimmed_mean: stats.trim_mean(values, cut, 0),
        winsorised_mean: stats.mstats.winsorize(values, (cut, cut), axis=0).mean(0),
    }
    for combiner, answer in expected.items():
        options = {} if combiner is median else {"cut": cut}
        ours = combiner(to(values), space="value", **options)
        np.testing.assert_allclose(np.asarray(ours), answer, atol=1e-12)
        ones = combiner(to(values), space="value", weights=np.ones(count), **options)
        np.testing.assert_allclose(np.asarray(ones), answer, atol=1e-12)
    np.testing.assert_array_equal(np.asarray(maximum(to(values), space="value")), values.max(0))
    np.testing.assert_array_equal(np.asarray(minimum(to(values), space="value")), values.min(0))


@pytest.mark.parametrize("count", [3, 10, 33])
def test_probabilities_are_renormalised(count):
    p = np.random.default_rng(count).dirichlet(np.ones(5), (count, 20))
    for combiner, reduced in (
        (median, np.median(p, 0)),
        (trimmed_mean, stats.trim_mean(p, 0.1, 0)),
        (winsorised_mean, stats.mstats.winsorize(p, (0.1, 0.1), axis=0).mean(0)),
    ):
        expected = reduced / reduced.sum(-1, keepdims=True)
        np.testing.assert_allclose(combiner(p, space="prob"), expected, atol=1e-12)


def test_where_all_classes_are_outvoted_the_mean_stands():
    p = np.eye(4)[[0, 1, 2]][:, None]
    np.testing.assert_allclose(median(p, space="prob"), [[1 / 3, 1 / 3, 1 / 3, 0]])
    np.testing.assert_allclose(trimmed_mean(p, space="prob", cut=0.4), [[1 / 3, 1 / 3, 1 / 3, 0]])


def test_an_outlier_does_not_move_what_is_robust():
    values = np.array([[1.0], [2.0], [3.0], [1e9]])
    assert median(values, space="value").tolist() == [2.5]
    assert trimmed_mean(values, space="value", cut=0.25).tolist() == [2.5]
    assert winsorised_mean(values, space="value", cut=0.25).tolist() == [2.5]


def test_weights_of_what_is_left():
    values, weights = np.array([[1.0], [2.0], [4.0], [100.0]]), [1, 1, 3, 9]
    assert trimmed_mean(values, space="value", cut=0.25, weights=weights).tolist() == [3.5]
    moved = (2 + 2 + 3 * 4 + 9 * 4) / 14
    answer = winsorised_mean(values, space="value", cut=0.25, weights=weights)
    np.testing.assert_allclose(answer, [moved])
    assert median(values, space="value", weights=weights).tolist() == [100.0]
    assert median(values, space="value", weights=[1, 1, 1, 1]).tolist() == [3.0]


@pytest.mark.parametrize("cut", [-0.1, 0.5, np.nan])
def test_a_cut_of_half_or_more_is_refused(cut):
    for combiner in (trimmed_mean, winsorised_mean):
        with pytest.raises(DataError, match="from 0 to below"):
            combiner(some_values(5), space="value", cut=cut)


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_ranks_of_classes_are_bordas(to):
    logits = np.random.default_rng(0).integers(0, 4, (6, 30, 5)) * 1.0  # many ties
    points = stats.rankdata(logits, axis=-1).mean(0) - 1
    np.testing.assert_allclose(np.asarray(rank_mean(to(logits))), points / 10, atol=1e-12)
    weights = [1, 2, 3, 4, 5, 6]
    weighted = np.average(stats.rankdata(logits, axis=-1) - 1, 0, weights) / 10
    np.testing.assert_allclose(np.asarray(rank_mean(to(logits), weights=weights)), weighted)


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_ranks_of_samples_see_only_the_order(to):
    logits = np.random.default_rng(0).normal(size=(6, 30))
    expected = (stats.rankdata(logits, axis=1).mean(0) - 0.5) / 30
    options = {"across": "samples", "exclusive": False}
    np.testing.assert_allclose(np.asarray(rank_mean(to(logits), **options)), expected)
    stretched = rank_mean(to(np.exp(3 * logits)), space="value", across="samples")
    np.testing.assert_allclose(np.asarray(stretched), expected)
    many = np.random.default_rng(0).normal(size=(6, 30, 3))
    p = special.softmax(many, -1)
    columns = (stats.rankdata(p, axis=1).mean(0) - 0.5) / 30
    np.testing.assert_allclose(np.asarray(rank_mean(to(many), across="samples")), columns)


def test_ranks_that_make_no_sense_are_refused():
    for options in ({"exclusive": False}, {"space": "value"}):
        with pytest.raises(DataError, match="use across='samples'"):
            rank_mean(some_values(3), **options)
    with pytest.raises(DataError, match="use 'classes' or 'samples'"):
        rank_mean(some_values(3), across="rows")

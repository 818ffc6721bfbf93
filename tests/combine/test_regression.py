"""Regression: moments of the mixture, quantiles, the mean; weights from likelihoods."""

import numpy as np
import pytest
import torch
from scipy import special

from polyfuse.combine import (
    bayesian_average,
    bayesian_weights,
    mean_probability,
    mean_value,
    mixture_moments,
    quantile_average,
)
from polyfuse.errors import DataError

WEIGHTS = np.array([1, 2, 3, 4, 5]) / 15
both = pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])


@both
def test_moments_are_those_of_samples_from_the_mixture(to):
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(5, 3)), rng.gamma(2, size=(5, 3))
    answer = np.asarray(mixture_moments(to(np.stack([mean, variance], -1)), weights=WEIGHTS))
    second = WEIGHTS @ (variance + mean**2)
    np.testing.assert_allclose(answer[:, 0], WEIGHTS @ mean)
    np.testing.assert_allclose(answer[:, 1], second - (WEIGHTS @ mean) ** 2)
    chosen = rng.choice(5, 200_000, p=WEIGHTS)
    drawn = rng.normal(mean[chosen, 0], np.sqrt(variance[chosen, 0]))
    np.testing.assert_allclose(answer[0], [drawn.mean(), drawn.var()], atol=0.05)


@both
def test_means_alone_give_the_disagreement(to):
    values = np.random.default_rng(0).normal(size=(5, 7))
    expected = np.stack([values.mean(0), values.var(0)], -1)
    np.testing.assert_allclose(np.asarray(mixture_moments(to(values))), expected)
    np.testing.assert_allclose(np.asarray(mean_value(to(values))), values.mean(0))


def test_disagreement_far_from_zero_is_not_lost():
    far = 1e6 + np.array([[0.0], [2.0]], np.float32)
    assert mixture_moments(far).tolist() == [[1e6 + 1, 1.0]]


def test_ambiguity_the_mean_is_better_by_the_disagreement():
    rng = np.random.default_rng(0)
    values, y = rng.normal(size=(5, 50)), rng.normal(size=50)
    centre, spread = mixture_moments(values).T
    mean_error = ((values - y) ** 2).mean(0)
    np.testing.assert_allclose((centre - y) ** 2, mean_error - spread)


@both
def test_quantiles_are_averaged_level_by_level(to):
    values = np.sort(np.random.default_rng(0).normal(size=(5, 7, 2, 9)), -1)
    answer = np.asarray(quantile_average(to(values), weights=WEIGHTS))
    np.testing.assert_allclose(answer, np.average(values, 0, WEIGHTS))
    assert (np.diff(answer) >= 0).all()


def test_what_makes_no_sense_is_refused():
    values = np.random.default_rng(0).normal(size=(5, 7, 3))
    with pytest.raises(DataError, match=r"member 0 has quantiles that cross in .*np\.sort"):
        quantile_average(values)
    with pytest.raises(DataError, match="level"):
        quantile_average(values[:, :, 0])
    with pytest.raises(DataError, match="means and variances"):
        mixture_moments(values)
    with pytest.raises(DataError, match="a variance is negative"):
        mixture_moments(values[..., :2])


def test_weights_are_the_posterior():
    p = np.random.default_rng(0).uniform(0.2, 1, (4, 30))
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    expected = p.prod(1) * prior / (p.prod(1) @ prior)
    np.testing.assert_allclose(bayesian_weights(np.log(p), prior=prior), expected)
    np.testing.assert_allclose(bayesian_weights(np.log(p).sum(1), prior=prior), expected)
    on_torch = bayesian_weights(torch.from_numpy(np.log(p)), prior=torch.from_numpy(prior))
    np.testing.assert_allclose(on_torch.numpy(), expected)
    assert bayesian_weights(np.array([-1e5, -1e5 - 1000])).tolist() == [1, 0]
    np.testing.assert_array_equal(bayesian_weights(np.zeros(2), prior=[0, 1]), [0, 1])


def test_the_average_has_these_weights():
    logits = np.random.default_rng(0).normal(size=(3, 9, 4))
    evidence = np.array([-1.0, -2.0, -0.5])
    expected = mean_probability(logits, weights=special.softmax(evidence))
    answer = bayesian_average(logits, log_likelihoods=evidence)
    np.testing.assert_allclose(answer, expected, atol=1e-14)


@pytest.mark.parametrize(
    "evidence", [np.zeros((2, 2, 2)), np.zeros(0), np.array([0, np.nan]), np.array([-np.inf] * 2)]
)
def test_likelihoods_that_tell_nothing_are_refused(evidence):
    with pytest.raises(DataError, match="log-likelihoods"):
        bayesian_weights(evidence)

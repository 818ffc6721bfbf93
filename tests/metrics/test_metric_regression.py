"""Scores of numbers: parity with scikit-learn, and CRPS against the integral it stands for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, root_mean_squared_error

from polyfuse.errors import DataError
from polyfuse.metrics import crps, mae, pinball, rmse


@given(st.integers(1, 40), st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_errors_match_scikit_learn(n, seed, level):
    prediction, labels = np.random.default_rng(seed).normal(0, 3, (2, n))
    assert rmse(prediction, labels).value == pytest.approx(
        root_mean_squared_error(labels, prediction), abs=1e-12
    )
    assert mae(prediction, labels).value == pytest.approx(
        mean_absolute_error(labels, prediction), abs=1e-12
    )
    assert pinball(prediction, labels, quantiles=level).value == pytest.approx(
        mean_pinball_loss(labels, prediction, alpha=level), abs=1e-12
    )


def test_quantiles_are_columns_that_are_averaged():
    rng = np.random.default_rng(0)
    prediction, labels, levels = rng.normal(0, 1, (30, 3)), rng.normal(0, 1, 30), (0.1, 0.5, 0.9)
    alone = [pinball(prediction[:, k], labels, quantiles=q).value for k, q in enumerate(levels)]
    found = pinball(prediction, labels, quantiles=levels).value
    assert found == pytest.approx(np.mean(alone), abs=1e-12)


def test_outputs_are_averaged_before_the_root():
    prediction, labels = np.random.default_rng(0).normal(0, 1, (2, 20, 3))
    expected = np.sqrt(((prediction - labels) ** 2).mean())
    assert rmse(prediction, labels).value == pytest.approx(expected, abs=1e-12)


def by_integral(means, variances, weights, label):
    """CRPS as it is defined: the squared distance of distribution functions, integrated."""

    def mixture(x):
        return weights @ stats.norm.cdf(x, means, np.sqrt(variances))

    below, _ = integrate.quad(lambda x: mixture(x) ** 2, -30, label, limit=200)
    above, _ = integrate.quad(lambda x: (1 - mixture(x)) ** 2, label, 30, limit=200)
    return below + above


@pytest.mark.parametrize("members", [1, 2, 5])
def test_crps_of_a_mixture_is_its_integral(members):
    rng = np.random.default_rng(members)
    means, variances = rng.normal(0, 2, (members, 4)), rng.uniform(0.1, 3, (members, 4))
    weights, labels = rng.dirichlet(np.ones(members)), rng.normal(0, 2, 4)
    found = crps(np.stack([means, variances], -1), labels, weights=weights).numerator
    for i in range(4):
        expected = by_integral(means[:, i], variances[:, i], weights, labels[i])
        assert found[i] == pytest.approx(expected, abs=1e-6)


def test_crps_of_points_is_the_absolute_error_less_half_their_spread():
    rng = np.random.default_rng(0)
    points, labels = rng.normal(0, 1, (4, 10)), rng.normal(0, 1, 10)
    spread = np.abs(points[:, None] - points[None]).mean((0, 1)) / 2
    expected = np.abs(points - labels).mean(0) - spread
    found = crps(np.stack([points, np.zeros_like(points)], -1), labels)
    np.testing.assert_allclose(found.numerator, expected, atol=1e-12)
    alone = crps(np.stack([points[0], np.zeros(10)], -1), labels)
    assert alone.value == pytest.approx(mae(points[0], labels).value, abs=1e-12)


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_copies_of_a_member_score_as_one(members, seed):
    rng = np.random.default_rng(seed)
    one = np.stack([rng.normal(0, 1, 6), rng.random(6)], -1)
    labels = rng.normal(0, 1, 6)
    found = crps(np.repeat(one[None], members, 0), labels)
    np.testing.assert_allclose(found.numerator, crps(one, labels).numerator, atol=1e-12)


@given(st.integers(2, 5), st.integers(0, 2**32))
def test_a_mixture_is_never_worse_than_its_members_mean_score(members, seed):
    rng = np.random.default_rng(seed)
    stack = np.stack([rng.normal(0, 1, (members, 6)), rng.random((members, 6))], -1)
    labels = rng.normal(0, 1, 6)
    alone = np.mean([crps(one, labels).value for one in stack])
    assert crps(stack, labels).value <= alone + 1e-12


@pytest.mark.parametrize(
    ("metric", "prediction", "options", "message"),
    [
        (rmse, np.zeros(3), {}, "do not fit labels"),
        (mae, np.zeros((2, 1)), {}, "do not fit labels"),
        (mae, np.array([0, np.nan]), {}, "NaN"),
        (pinball, np.zeros((2, 2)), {}, "one column a level"),
        (pinball, np.zeros(2), {"quantiles": 1.0}, "between 0 and 1"),
        (crps, np.zeros(2), {}, "mean and variance"),
        (crps, np.zeros((2, 3)), {}, "mean and variance"),
        (crps, np.zeros((0, 2, 2)), {}, "mean and variance"),
        (crps, -np.ones((2, 2)), {}, "log-variances"),
        (crps, np.full((2, 2), np.nan), {}, "NaN"),
        (crps, np.ones((3, 2, 2)), {"weights": [0.5, 0.5]}, "expected 3 weights"),
        (crps, np.ones((2, 2, 2)), {"weights": [0.5, 0.6]}, "sum to one"),
        (crps, np.ones((2, 2, 2)), {"weights": [1.5, -0.5]}, "0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(metric, prediction, options, message):
    with pytest.raises(DataError, match=message):
        metric(prediction, np.zeros(2), **options)

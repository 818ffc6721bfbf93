"""Scores of numbers: squared, absolute and quantile error, and CRPS of a mixture of normals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.metrics.base import Floats, Root, Terms, per_sample


def rmse(prediction: NDArray[Any], labels: NDArray[Any]) -> Root:
    """Root of the mean squared error; outputs of a sample are averaged before the root.

    Args:
        prediction: `(n, ...)` numbers.
        labels: `(n, ...)` numbers.

    Raises:
        DataError: shapes that differ, NaN.

    Example:
        >>> rmse(np.array([1.0, 1.0]), np.array([1.0, 3.0])).value
        1.4142135623730951
    """
    error = _error(prediction, labels)
    return Root(Terms(per_sample(error**2).mean(1), np.ones(len(labels))))


def mae(prediction: NDArray[Any], labels: NDArray[Any]) -> Terms:
    """Mean absolute error.

    Args:
        prediction: `(n, ...)` numbers.
        labels: `(n, ...)` numbers.

    Raises:
        DataError: shapes that differ, NaN.

    Example:
        >>> mae(np.array([1.0, 1.0]), np.array([1.0, 3.0])).value
        1.0
    """
    error = _error(prediction, labels)
    return Terms(per_sample(np.abs(error)).mean(1), np.ones(len(labels)))


def pinball(
    prediction: NDArray[Any], labels: NDArray[Any], *, quantiles: float | Sequence[float] = 0.5
) -> Terms:
    """Pinball loss: `max(q (y - f), (q - 1) (y - f))`, averaged over quantiles (Koenker 1978).

    Args:
        prediction: `(n,)` for one quantile, or `(n, quantiles)`.
        labels: `(n,)` numbers.
        quantiles: the levels that were predicted, between 0 and 1.

    Raises:
        DataError: shapes or levels that do not fit, NaN.

    Example:
        >>> round(pinball(np.array([1.0]), np.array([3.0]), quantiles=0.9).value, 4)
        1.8
    """
    levels = np.atleast_1d(np.asarray(quantiles, np.float64))
    columns = prediction[:, None] if prediction.ndim == 1 else prediction
    if columns.shape[1:] != levels.shape or not ((levels > 0) & (levels < 1)).all():
        raise DataError(
            f"predictions of {prediction.shape} do not fit quantiles={quantiles}; one column a "
            "level, each between 0 and 1"
        )
    error = -_error(columns, np.repeat(labels[:, None], len(levels), 1))
    loss = np.maximum(levels * error, (levels - 1) * error)
    return Terms(loss.mean(1), np.ones(len(labels)))


def crps(
    prediction: NDArray[Any], labels: NDArray[Any], *, weights: Sequence[float] | None = None
) -> Terms:
    """Continuous ranked probability score of a mixture of normals, in closed form.

    `sum_i w_i A(y - m_i, v_i) - 1/2 sum_ij w_i w_j A(m_i - m_j, v_i + v_j)` with
    `A(m, v) = 2 sqrt(v) phi(m / sqrt(v)) + m (2 Phi(m / sqrt(v)) - 1)` (Grimit et al. 2006). A
    variance of zero is a point, so members without variances are scored too.

    Args:
        prediction: `(members, n, 2)` mean and variance, or `(n, 2)` of one member.
        labels: `(n,)` numbers.
        weights: of the members, summing to one; equal where None.

    Raises:
        DataError: shapes or weights that do not fit, a negative variance, NaN.

    Example:
        >>> round(crps(np.array([[0.0, 1.0]]), np.array([0.0])).value, 4)
        0.2337
    """
    mixture = (prediction if prediction.ndim == 3 else prediction[None]).astype(np.float64)
    _check_mixture(mixture, prediction.shape, labels)
    share = _share(weights, len(mixture))
    means, variances = mixture[..., 0], mixture[..., 1]
    score = share @ _expected_distance(labels - means, variances)
    for i, weight in enumerate(share):  # a member at a time: memory of (members, n)
        spread = _expected_distance(means[i] - means, variances[i] + variances)
        score -= weight / 2 * (share @ spread)
    return Terms(score, np.ones(len(labels)))


def _expected_distance(mean: Floats, variance: Floats) -> Floats:
    """Return E|X| of a normal X."""
    deviation = np.sqrt(variance)
    scaled = mean / np.where(deviation > 0, deviation, 1.0)
    density = np.exp(-(scaled**2) / 2) / math.sqrt(2 * math.pi)
    # NumPy has no error function.
    inside = torch.erf(torch.from_numpy(scaled / math.sqrt(2))).numpy()
    distance: Floats = np.where(
        deviation > 0, 2 * deviation * density + mean * inside, np.abs(mean)
    )
    return distance


def _share(weights: Sequence[float] | None, members: int) -> Floats:
    if weights is None:
        return np.full(members, 1 / members)
    share = np.asarray(weights, np.float64)
    if share.shape != (members,) or not (share >= 0).all() or abs(share.sum() - 1) > 1e-6:
        raise DataError(
            f"expected {members} weights of 0 or more that sum to one, got {share.shape} summing "
            f"to {share.sum():.6g}"
        )
    return share


def _error(prediction: NDArray[Any], labels: NDArray[Any]) -> Floats:
    if prediction.shape != labels.shape or not labels.ndim:
        raise DataError(
            f"predictions of {prediction.shape} do not fit labels of {labels.shape}; "
            "both need the same samples in the same order"
        )
    error: Floats = prediction.astype(np.float64) - labels
    _refuse_nan(error)
    return error


def _check_mixture(mixture: Floats, shape: tuple[int, ...], labels: NDArray[Any]) -> None:
    if mixture.ndim != 3 or mixture.shape[1:] != (*labels.shape, 2) or not len(mixture):
        raise DataError(
            f"predictions of {shape} do not fit labels of {labels.shape}; CRPS needs mean and "
            "variance: (members, n, 2) or (n, 2)"
        )
    _refuse_nan(mixture)
    _refuse_nan(labels)
    if mixture[..., 1].min(initial=0) < 0:
        raise DataError(
            f"variances down to {mixture[..., 1].min():.4g}; apply exp to log-variances"
        )


def _refuse_nan(values: NDArray[Any]) -> None:
    if np.isnan(values).any():
        raise DataError(
            "predictions or labels have NaN; leave out the rows that no member has a say on"
        )

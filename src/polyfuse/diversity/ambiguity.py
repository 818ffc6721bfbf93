"""What the members' differences bring: ambiguity decompositions, effective number of members."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.diversity.base import (
    Floats,
    Labels,
    check,
    error_covariance,
    errors_of,
    share_of,
    weighted,
)
from polyfuse.errors import DataError


class Ambiguity(NamedTuple):
    """A loss of an ensemble, taken apart: `ensemble = members - ambiguity`, sample by sample.

    Attributes:
        ensemble: loss of the combination.
        members: weighted mean loss of the members.
        ambiguity: how far the members are from their combination; never negative.
    """

    ensemble: Floats
    members: Floats
    ambiguity: Floats


def squared_ambiguity(
    predictions: NDArray[Any], labels: NDArray[Any], *, weights: NDArray[Any] | None = None
) -> Ambiguity:
    """Take apart the squared error of the mean (Krogh and Vedelsby 1995).

    `(F - y)^2 = sum_m w_m (f_m - y)^2 - sum_m w_m (f_m - F)^2` with `F = sum_m w_m f_m`.

    Args:
        predictions: `(member, sample, ...)` numbers.
        labels: `(sample, ...)` numbers.
        weights: `(member,)`, scaled to sum to one; equal where None.

    Returns:
        Losses in float64, `(sample, ...)` each.

    Raises:
        DataError: no members, NaN, labels or weights that do not fit.

    Example:
        >>> parts = squared_ambiguity(np.array([[1.0], [3.0]]), np.array([1.0]))
        >>> [part.tolist() for part in parts]
        [[1.0], [2.0], [1.0]]
    """
    check(predictions, predictions.shape[1:], labels)
    said = predictions.astype(np.float64)
    share = share_of(weights, len(said))
    combined = weighted(share, said)
    members = weighted(share, (said - labels) ** 2)
    return Ambiguity((combined - labels) ** 2, members, weighted(share, (said - combined) ** 2))


def cross_entropy_ambiguity(
    log_probabilities: NDArray[Any], labels: Labels, *, weights: NDArray[Any] | None = None
) -> Ambiguity:
    """Take apart the cross-entropy of the geometric mean (Heskes 1998).

    `-ln p(y) = sum_m w_m (-ln p_m(y)) - sum_m w_m KL(p || p_m)`, where p is the renormalised
    geometric mean, that is the mean of logits. The arithmetic mean has no such form that is free
    of the label.

    Args:
        log_probabilities: `(member, sample, ..., class)` logits or log-probabilities, finite.
        labels: `(sample, ...)` int64.
        weights: `(member,)`, scaled to sum to one; equal where None.

    Returns:
        Losses in nats and float64, `(sample, ...)` each.

    Raises:
        DataError: no members, NaN, infinities, labels or weights that do not fit.

    Example:
        >>> parts = cross_entropy_ambiguity(np.array([[[0.0, 0.0]], [[2.0, 0.0]]]), np.array([0]))
        >>> [part.round(4).tolist() for part in parts]
        [[0.3133], [0.41], [0.0968]]
    """
    check(log_probabilities, log_probabilities.shape[1:-1], labels)
    if not np.isfinite(log_probabilities).all():
        raise DataError("log-probabilities are infinite; clip probabilities before their logarithm")
    logs = _log_softmax(log_probabilities.astype(np.float64))
    share = share_of(weights, len(logs))
    combined = _log_softmax(weighted(share, logs))
    at = labels[..., None]
    losses = -np.take_along_axis(logs, np.broadcast_to(at, (len(logs), *at.shape)), -1)[..., 0]
    # p is the same for all members, so the mean of KL is KL to the mean of logs.
    distance = np.exp(combined) * (combined - weighted(share, logs))
    ensemble = -np.take_along_axis(combined, at, -1)[..., 0]
    return Ambiguity(ensemble, weighted(share, losses), distance.sum(-1))


def effective_members(
    predictions: NDArray[Any], labels: NDArray[Any], *, weights: NDArray[Any] | None = None
) -> float:
    """How many independent members would bring as much: `sum w_i var(e_i) / var(sum w_i e_i)`.

    With equal weights and variances it is `M / (1 + (M - 1) r)` of the mean correlation r of the
    errors (Kish's design effect, 1965). Identical members: 1; independent ones of equal weight: M;
    more where errors cancel, and infinity where they cancel fully. NaN without errors that vary.

    Args:
        predictions: as for `error_correlation`.
        labels: as for `error_correlation`.
        weights: `(member,)`, scaled to sum to one; equal where None.

    Raises:
        DataError: no members, NaN, labels or weights that do not fit.

    Example:
        >>> effective_members(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([0.0, 0.0]))
        1.0
    """
    covariance = error_covariance(errors_of(predictions, labels))
    share = share_of(weights, len(covariance))
    alone, together = share @ covariance.diagonal(), share @ covariance @ share
    if together <= 1e-12 * alone:
        return float("inf") if alone > 0 else float("nan")
    return float(alone / together)


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result

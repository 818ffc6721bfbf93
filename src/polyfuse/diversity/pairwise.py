"""How much two members differ: disagreement, Q, kappa, double fault, correlation, information."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.diversity.base import Floats, Labels, decided, error_covariance, errors_of, right


class Joint(NamedTuple):
    """Shares of samples that each pair gets right and wrong; each `(member, member)`."""

    both: Floats
    first: Floats
    second: Floats
    neither: Floats


def disagreement(predictions: NDArray[Any], labels: Labels | None = None) -> Floats:
    """Share of samples on which a pair decides differently; with labels, only one is right.

    With labels it is `N10 + N01` (Skalak 1996), without them any two classes that differ count.
    Identical members: 0.

    Args:
        predictions: `(member, sample, ..., class)` scores or `(member, sample, ...)` classes.
        labels: `(sample, ...)` int64, or None.

    Raises:
        DataError: no members, NaN, labels that do not fit.

    Example:
        >>> disagreement(np.array([[0, 1], [0, 2]])).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    if labels is not None:
        joint = _joint(right(predictions, labels))
        return joint.first + joint.second
    classes = decided(predictions)
    return np.stack([(classes != one).mean(1) for one in classes])


def q_statistic(predictions: NDArray[Any], labels: Labels) -> Floats:
    """Yule's Q of a pair (1900): `(N11 N00 - N01 N10) / (N11 N00 + N01 N10)`.

    1 where the two are right on the same samples, 0 where independent, -1 where on opposite ones.
    Undefined where one of them is always right or always wrong, and so is what follows from that.

    Args:
        predictions: `(member, sample, ..., class)` scores or `(member, sample, ...)` classes.
        labels: `(sample, ...)` int64.

    Raises:
        DataError: no members, NaN, labels that do not fit.

    Example:
        >>> q_statistic(np.array([[1, 0], [1, 0], [0, 1]]), np.array([1, 1]))[0].tolist()
        [1.0, 1.0, -1.0]
    """
    joint = _joint(right(predictions, labels))
    same, crossed = joint.both * joint.neither, joint.first * joint.second
    return _ratio(same - crossed, same + crossed)


def kappa(predictions: NDArray[Any], labels: Labels) -> Floats:
    """Cohen's kappa (1960) of who is right: agreement of a pair beyond chance.

    `2 (N11 N00 - N01 N10) / ((N11 + N10)(N10 + N00) + (N11 + N01)(N01 + N00))`: 1 where the two
    are right on the same samples, 0 at chance. Undefined where both are always right or wrong.

    Args:
        predictions: `(member, sample, ..., class)` scores or `(member, sample, ...)` classes.
        labels: `(sample, ...)` int64.

    Raises:
        DataError: no members, NaN, labels that do not fit.

    Example:
        >>> kappa(np.array([[1, 0], [1, 0], [0, 1]]), np.array([1, 1]))[0].tolist()
        [1.0, 1.0, -1.0]
    """
    both, first, second, neither = _joint(right(predictions, labels))
    by_chance = (both + first) * (first + neither) + (both + second) * (second + neither)
    return _ratio(2 * (both * neither - first * second), by_chance)


def double_fault(predictions: NDArray[Any], labels: Labels) -> Floats:
    """Share of samples that both of a pair get wrong: `N00` (Giacinto and Roli 2001).

    Identical members: their own error rate, the most it can be.

    Args:
        predictions: `(member, sample, ..., class)` scores or `(member, sample, ...)` classes.
        labels: `(sample, ...)` int64.

    Raises:
        DataError: no members, NaN, labels that do not fit.

    Example:
        >>> double_fault(np.array([[1, 0], [0, 0]]), np.array([1, 1])).tolist()
        [[0.5, 0.5], [0.5, 1.0]]
    """
    return _joint(right(predictions, labels)).neither


def error_correlation(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Pearson's correlation of a pair's errors: of being wrong, or of residuals.

    Floating labels of the predictions' own shape are numbers, and the errors residuals. Identical
    members: 1. Undefined where an error never changes.

    Args:
        predictions: `(member, sample, ..., class)` scores, `(member, sample, ...)` classes, or
            `(member, sample, ...)` numbers.
        labels: `(sample, ...)` int64 or numbers.

    Raises:
        DataError: no members, NaN, labels that do not fit.

    Example:
        >>> error_correlation(np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([0.0, 0.0])).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    covariance = error_covariance(errors_of(predictions, labels))
    deviation = np.sqrt(covariance.diagonal())
    return np.clip(_ratio(covariance, np.outer(deviation, deviation)), -1, 1)


def mutual_information(predictions: NDArray[Any], labels: Labels | None = None) -> Floats:
    """Mutual information of what a pair decides, in nats: `sum p(a, b) ln(p(a, b) / p(a) p(b))`.

    0 where decisions are independent; identical members: the entropy of their decisions, which is
    what the diagonal holds. The plug-in estimate, so it is biased upwards on few samples.

    Args:
        predictions: `(member, sample, ..., class)` scores or `(member, sample, ...)` classes.
        labels: not needed; taken so that all measures are called alike.

    Raises:
        DataError: no members, NaN.

    Example:
        >>> mutual_information(np.array([[0, 1], [1, 0]])).round(4).tolist()
        [[0.6931, 0.6931], [0.6931, 0.6931]]
    """
    classes = decided(predictions)
    count = int(classes.max()) + 1
    result = np.empty((len(classes), len(classes)))
    for i, one in enumerate(classes):
        for j, other in enumerate(classes[: i + 1]):
            cells = np.bincount(one * count + other, minlength=count * count)
            result[i, j] = result[j, i] = _information(cells.reshape(count, count))
    return result


def mean_pairwise(matrix: Floats) -> float:
    """Return the mean over all pairs of two members; NaN without a pair that is defined.

    Args:
        matrix: `(member, member)` of a pairwise measure.

    Example:
        >>> mean_pairwise(np.array([[1.0, 0.5], [0.5, 1.0]]))
        0.5
    """
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    defined = pairs[~np.isnan(pairs)]
    return float(defined.mean()) if defined.size else float("nan")


def _joint(hits: Floats) -> Joint:
    cases = hits.shape[1]
    both, alone = hits @ hits.T, hits.sum(1)
    first, second = alone[:, None] - both, alone[None] - both
    return Joint(
        both / cases, first / cases, second / cases, (cases - first - second - both) / cases
    )


def _information(cells: NDArray[np.int64]) -> float:
    share = cells / cells.sum()
    independent = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    there = share > 0
    information = (share[there] * np.log(share[there] / independent[there])).sum()
    return float(max(information, 0.0))  # rounding may leave -1e-17


def _ratio(above: Floats, below: Floats) -> Floats:
    defined = below != 0
    return np.where(defined, above / np.where(defined, below, 1.0), np.nan)

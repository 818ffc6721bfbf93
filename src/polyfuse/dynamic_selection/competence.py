"""How much a member counts on a row, from what it got right on the rows nearest to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.fitting import TINY, Floats

COMPETENCES = ("accuracy", "likelihood")
DIVERSITIES = ("double_fault", "q")


class Near(NamedTuple):
    """What members did on the nearest fitting rows.

    Attributes:
        right: `(query, k, head, member)` booleans, nearest first.
        own: likewise, the probability that a member gave to the true class.
        distances: `(query, k)`.
    """

    right: NDArray[np.bool_]
    own: Floats
    distances: Floats


def eliminate(near: Near, asked: Any) -> Floats:
    """Choose the members that are right on the most nearest rows in an unbroken row (KNORA-E).

    The neighbourhood shrinks until some member is right on all of it; where none is right even on
    the nearest row, all members are chosen (Ko, Sabourin and Britto 2008).
    """
    unbroken = np.logical_and.accumulate(near.right, axis=1).sum(1)
    return np.asarray(unbroken == unbroken.max(-1, keepdims=True), dtype=np.float64)


def union(near: Near, asked: Any) -> Floats:
    """Give each member a vote for every near row that it is right on (KNORA-U)."""
    return np.asarray(near.right.sum(1), dtype=np.float64)


def accurate_and_diverse(near: Near, asked: Any) -> Floats:
    """Choose the N most accurate members, and of them the J that differ most (DES-KNN).

    Soares et al. 2006. A member differs by its mean double fault, or Q, with the other N - 1; Q is
    taken as 0 where it is undefined. Equal ones are told apart by accuracy, then by the mean
    probability that they gave to the true class, then by their place.
    """
    count = near.right.shape[-1]
    most = max(1, int(count * asked.accurate))
    least = min(most, int(np.ceil(count * asked.diverse)))
    accuracy, own = near.right.mean(1), near.own.mean(1)
    best = np.lexsort((-own, -accuracy), axis=-1)[..., :most]
    alike = _likeness(np.take_along_axis(near.right, best[:, None], -1), asked.diversity)
    chosen = np.argsort(alike, axis=-1, kind="stable")[..., :least]
    weights = np.zeros(accuracy.shape)
    np.put_along_axis(weights, np.take_along_axis(best, chosen, -1), 1.0, -1)
    return weights


def soft(near: Near, asked: Any) -> Floats:
    """Weigh members by their local accuracy or likelihood, nearer rows counting more (1/distance).

    The likelihood is the weighted geometric mean of the probabilities of the true classes.
    """
    weights = _by_distance(near.distances)[:, :, None, None]
    if asked.competence == "accuracy":
        local = np.asarray((weights * near.right).sum(1))
    else:
        logs = (weights * np.log(np.maximum(near.own, TINY))).sum(1)
        local = np.exp(logs - logs.max(-1, keepdims=True))
    most = local.max(-1, keepdims=True)
    return np.asarray((local / np.where(most > 0, most, 1)) ** asked.power)


METHODS: dict[str, Callable[[Near, Any], Floats]] = {
    "knora_e": eliminate,
    "knora_u": union,
    "des_knn": accurate_and_diverse,
    "soft": soft,
}


def shares(weights: Floats) -> Floats:
    """Return weights that sum to one over members; equal ones where no member counts.

    Example:
        >>> shares(np.array([[3.0, 1.0], [0.0, 0.0]])).tolist()
        [[0.75, 0.25], [0.5, 0.5]]
    """
    total = weights.sum(-1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / weights.shape[-1])


def _by_distance(distances: Floats) -> Floats:
    """Return weights `(query, k)` that sum to one; rows at no distance at all take everything."""
    same = distances == 0
    with np.errstate(divide="ignore"):
        weights = np.where(same.any(1, keepdims=True), same, 1 / distances)
    total: Floats = weights / weights.sum(1, keepdims=True)
    return total


def _likeness(right: NDArray[np.bool_], diversity: str) -> Floats:
    """Return each member's mean double fault, or Q, with the others; `(query, head, member)`."""
    yes = np.moveaxis(right, 1, -1).astype(np.float64)  # (query, head, member, k)
    no = 1 - yes
    wrong_both = no @ np.swapaxes(no, -1, -2)
    if diversity == "double_fault":
        pairs = wrong_both / yes.shape[-1]
    else:
        right_both, first = yes @ np.swapaxes(yes, -1, -2), yes @ np.swapaxes(no, -1, -2)
        same, crossed = right_both * wrong_both, first * np.swapaxes(first, -1, -2)
        pairs = (same - crossed) / np.where(same + crossed > 0, same + crossed, 1)
    itself = np.diagonal(pairs, axis1=-2, axis2=-1)
    mean: Floats = (pairs.sum(-1) - itself) / max(1, pairs.shape[-1] - 1)
    return mean

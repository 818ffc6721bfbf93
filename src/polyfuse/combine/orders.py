"""Combiners that look at order: median, trimmed and winsorised mean over members, mean rank."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from polyfuse.combine.base import Array, Members
from polyfuse.errors import DataError

_SPACES = ("logit", "prob", "log_prob", "value")
_MANY = 32  # members, from which on sorting them costs less than comparing each with each


def median(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Take every class's middle probability over the members, and renormalise.

    Of an even number of members, the mean of the middle two. Where the median of every class is 0,
    the mean stands.

    Args:
        predictions: `(member, sample, ..., class)`, floating; `(member, sample, ...)` values.
        weights: `(member,)`, 0 or more; then half of the weight lies on either side.
        space: what the numbers are: "logit", "prob", "log_prob", or "value": then nothing is
            renormalised.
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities, or values, in the input's precision.

    Raises:
        DataError: as `mean_probability`.

    Example:
        >>> import numpy as np
        >>> median(np.array([[1.0], [2.0], [9.0]]), space="value").tolist()
        [2.0]
    """
    members = Members(
        predictions, space=space, exclusive=exclusive, weights=weights, spaces=_SPACES
    )
    parts = _parts(members)
    if members.shares:
        return _closed(members, parts, _weighted_median(parts, members.shares))
    kept = _ordered(parts, (len(parts) - 1) // 2)
    return _closed(members, parts, sum(kept[1:], kept[0]) / len(kept))


def trimmed_mean(
    predictions: Array,
    *,
    weights: Any = None,
    cut: float = 0.1,
    space: str = "logit",
    exclusive: bool = True,
) -> Array:
    """Average every class's probabilities without the lowest and highest, and renormalise.

    Where nothing is left of any class, the mean of all stands.

    Args:
        predictions: `(member, sample, ..., class)`, floating; `(member, sample, ...)` values.
        weights: `(member,)`, 0 or more, of the members that are left; equal where None.
        cut: share of the members dropped at each end, rounded down; from 0 to below 0.5. With 0.1
            it takes ten members to drop any.
        space: what the numbers are: "logit", "prob", "log_prob", or "value": then nothing is
            renormalised.
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities, or values, in the input's precision.

    Raises:
        DataError: as `mean_probability`, and `cut` out of range.

    Example:
        >>> import numpy as np
        >>> trimmed_mean(np.array([[1.0], [2.0], [3.0], [90.0]]), cut=0.25, space="value").tolist()
        [2.5]
    """
    members = Members(
        predictions, space=space, exclusive=exclusive, weights=weights, spaces=_SPACES
    )
    parts = _parts(members)
    drop = _dropped(cut, len(parts))
    if members.shares:
        return _closed(members, parts, _weighted_trim(parts, members.shares, drop))
    kept = _ordered(parts, drop)
    return _closed(members, parts, sum(kept[1:], kept[0]) / len(kept))


def winsorised_mean(
    predictions: Array,
    *,
    weights: Any = None,
    cut: float = 0.1,
    space: str = "logit",
    exclusive: bool = True,
) -> Array:
    """Average every class's probabilities, the lowest and highest moved inwards; renormalise.

    What `trimmed_mean` drops is replaced by the nearest value that it keeps.

    Args:
        predictions: `(member, sample, ..., class)`, floating; `(member, sample, ...)` values.
        weights: `(member,)`, 0 or more; equal where None.
        cut: share of the members moved at each end, rounded down; from 0 to below 0.5.
        space: what the numbers are: "logit", "prob", "log_prob", or "value": then nothing is
            renormalised.
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities, or values, in the input's precision.

    Raises:
        DataError: as `trimmed_mean`.

    Example:
        >>> import numpy as np
        >>> values = np.array([[1.0], [2.0], [3.0], [90.0]])
        >>> winsorised_mean(values, cut=0.25, space="value").tolist()
        [2.5]
    """
    members = Members(
        predictions, space=space, exclusive=exclusive, weights=weights, spaces=_SPACES
    )
    parts = _parts(members)
    kept = _ordered(parts, _dropped(cut, len(parts)))
    low, high = reduce(torch.minimum, kept), reduce(torch.maximum, kept)
    inwards = (part.clamp(low, high) for part in parts)
    return _closed(members, parts, members.mean(inwards))


def rank_mean(
    predictions: Array,
    *,
    weights: Any = None,
    across: str = "classes",
    space: str = "logit",
    exclusive: bool = True,
) -> Array:
    """Average ranks: the Borda count over classes, or rank averaging over samples.

    Over classes, a class gets a point from a member for each class that it beats, half a point for
    each that it equals, and the result is its share of all points: an order, no calibrated
    probability. Over samples, as for AUROC, every column is ranked by itself among all samples, and
    the result is the mean rank, scaled into (0, 1).

    Args:
        predictions: `(member, sample, ..., class)`, floating; `(member, sample, ...)` scores.
        weights: `(member,)`, 0 or more; equal where None.
        across: "classes", or "samples": all of them must be there at once.
        space: what the numbers are: "logit", "prob", "log_prob", or "value".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` shares of points, or mean ranks, in the input's precision.

    Raises:
        DataError: as `mean_probability`, and ranks across classes that are not exclusive.

    Example:
        >>> import numpy as np
        >>> rank_mean(np.array([[[0.1, 0.7, 0.2]], [[0.6, 0.3, 0.1]]]), space="prob").tolist()
        [[0.3333333333333333, 0.5, 0.16666666666666666]]
    """
    members = Members(
        predictions, space=space, exclusive=exclusive, weights=weights, spaces=_SPACES
    )
    if across not in ("classes", "samples"):
        raise DataError(f"unknown across={across!r}; use 'classes' or 'samples'")
    if across == "classes" and (space == "value" or not exclusive):
        raise DataError(
            "ranks across classes need classes of which one is true; use across='samples'"
        )
    # Softmax changes the order of samples, not that of classes.
    parts = members.scores() if across == "classes" else members.probabilities()
    ranks = (_ranks(_whole(members, part.to(members.wide)), across) for part in parts)
    mean = members.mean(ranks)
    if across == "samples":
        return members.answer((mean + 0.5) / mean.shape[0])
    classes = mean.shape[-1]
    return members.answer(mean / (classes * (classes - 1) / 2))


def _ranks(part: Tensor, across: str) -> Tensor:
    """Return how many of its row, or column, each number beats; equal ones count half."""
    row = part if across == "classes" else part.movedim(0, -1)
    row = row.contiguous()
    ordered = row.sort(-1).values
    below = torch.searchsorted(ordered, row)
    to = torch.searchsorted(ordered, row, right=True)
    ranks = ((below + to - 1) / 2).to(part.dtype)
    return ranks if across == "classes" else ranks.movedim(-1, 0)


def _parts(members: Members[Any]) -> list[Tensor]:
    return [_whole(members, part) for part in members.probabilities()]


def _whole(members: Members[Any], part: Tensor) -> Tensor:
    """Refuse NaN and infinity here: once sorted to the end, they may be dropped unseen."""
    odd = part.isnan() | (part == torch.inf)
    if not torch.compiler.is_compiling() and bool(odd.any()):
        members.blame()
    return part


def _dropped(cut: float, count: int) -> int:
    if not 0 <= cut < 0.5:
        raise DataError(f"cut is {cut}; it must be from 0 to below 0.5")
    # The product of 0.1 and 30 members may come out as 2.999...: a hair is no member.
    return math.floor(cut * count + 1e-9)


def _ordered(parts: Sequence[Tensor], drop: int) -> list[Tensor]:
    """Return the values of every place without the `drop` lowest and highest, in some order."""
    left = list(parts)
    if len(left) > _MANY:
        return list(torch.stack(left).sort(0).values[drop : len(left) - drop])
    for _ in range(drop):  # carry the highest to the end, then the lowest to the front
        for i in range(len(left) - 1):
            low, high = torch.minimum(left[i], left[i + 1]), torch.maximum(left[i], left[i + 1])
            left[i], left[i + 1] = low, high
        left.pop()
        for i in range(len(left) - 1, 0, -1):
            low, high = torch.minimum(left[i], left[i - 1]), torch.maximum(left[i], left[i - 1])
            left[i - 1], left[i] = low, high
        left.pop(0)
    return left


def _with_weights(parts: Sequence[Tensor], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the sorted values of those with any weight, and the weights in the same order."""
    pairs = [(part, share) for part, share in zip(parts, shares, strict=True) if share]
    values, order = torch.stack([part for part, _ in pairs]).sort(dim=0, stable=True)
    weights = torch.tensor([share for _, share in pairs], dtype=torch.float64, device=order.device)
    return values, weights[order]


def _weighted_median(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    values, weights = _with_weights(parts, shares)
    reached = weights.cumsum(0)
    lower = (reached < 0.5 - 1e-9).sum(0, keepdim=True)
    upper = (reached <= 0.5 + 1e-9).sum(0, keepdim=True)
    return ((values.gather(0, lower) + values.gather(0, upper)) / 2)[0]


def _weighted_trim(parts: Sequence[Tensor], shares: Sequence[float], drop: int) -> Tensor:
    values, weights = _with_weights(parts, shares)
    drop = min(drop, (len(values) - 1) // 2)
    kept = slice(drop, len(values) - drop)
    weights = (weights[kept] / weights[kept].sum(0)).to(values.dtype)
    return (values[kept] * weights).sum(0)


def _closed(members: Members[Array], parts: Sequence[Tensor], result: Tensor) -> Array:
    """Renormalise over classes; where every class came out as 0, take the mean."""
    if members.space != "value":
        total = result.sum(-1, keepdim=True)
        mean = members.normalised(members.mean(parts))
        result = torch.where(total > 0, result / total, mean)
    return members.answer(result)

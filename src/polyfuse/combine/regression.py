"""Combiners of regression members: the mean, the moments of their mixture, their quantiles."""

from typing import Any

import torch
from torch import Tensor

from polyfuse.combine.base import Array, Members
from polyfuse.errors import DataError


def mean_value(predictions: Array, *, weights: Any = None) -> Array:
    """Average the members' numbers.

    Its squared error is never above the members' mean squared error.

    Args:
        predictions: `(member, sample, ...)`, floating.
        weights: `(member,)`, 0 or more; equal where None.

    Returns:
        `(sample, ...)` in the input's precision.

    Raises:
        DataError: no members, too few axes, integers, NaN or infinity, wrong weights.

    Example:
        >>> import numpy as np
        >>> mean_value(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [2.0, 5.0]
    """
    members: Members[Array] = _values(predictions, weights)
    return members.answer(members.mean(members.probabilities()))


def mixture_moments(predictions: Array, *, weights: Any = None) -> Array:
    """Return mean and variance of the mixture of the members' distributions.

    The variance is the mean of their variances plus the variance between their means:
    `sum w (v_m + (mu_m - mu)^2)`. With means only, it is their disagreement.

    Args:
        predictions: `(member, sample)` means, or `(member, sample, ..., 2)` means and variances.
        weights: `(member,)`, 0 or more; equal where None.

    Returns:
        `(sample, ..., 2)` mean and variance in the input's precision.

    Raises:
        DataError: as `mean_value`; a last axis that is no pair, a negative variance.

    Example:
        >>> import numpy as np
        >>> mixture_moments(np.array([[[1.0, 0.5]], [[3.0, 0.5]]])).tolist()
        [[2.0, 1.5]]
    """
    members: Members[Array] = _values(predictions, weights)
    parts: list[Tensor] = list(members.probabilities())
    if parts[0].ndim > 1 and parts[0].shape[-1] != 2:
        raise DataError(
            f"expected (member, sample) means or (member, sample, ..., 2) means and variances, got "
            f"shape {(len(parts), *parts[0].shape)}"
        )
    paired = parts[0].ndim > 1
    means = [part[..., 0] for part in parts] if paired else parts
    within = [part[..., 1] if paired else torch.zeros_like(part) for part in parts]
    if not torch.compiler.is_compiling() and any(bool((v < 0).any()) for v in within):
        raise DataError(
            "a variance is negative; the last axis is (mean, variance): if the network gives the "
            "logarithm of the variance, take its exponential first"
        )
    centre = members.mean(means)
    spread = members.mean(
        (mean - centre).square() + inside for mean, inside in zip(means, within, strict=True)
    )
    return members.answer(torch.stack([centre, spread], -1))


def quantile_average(predictions: Array, *, weights: Any = None) -> Array:
    """Average the members' quantiles, level by level (Vincent 1912).

    The result is narrower than the quantiles of the members' mixture: where members disagree about
    the place, it keeps their mean width.

    Args:
        predictions: `(member, sample, ..., level)`, floating, ascending along the last axis.
        weights: `(member,)`, 0 or more; equal where None.

    Returns:
        `(sample, ..., level)` in the input's precision, ascending.

    Raises:
        DataError: as `mean_value`; quantiles that cross.

    Example:
        >>> import numpy as np
        >>> quantile_average(np.array([[[0.0, 1.0, 2.0]], [[2.0, 4.0, 9.0]]])).tolist()
        [[1.0, 2.5, 5.5]]
    """
    members: Members[Array] = _values(predictions, weights)
    if members.each[0].ndim < 2:
        raise DataError(
            f"expected (member, sample, ..., level), got shape "
            f"{(len(members), *members.each[0].shape)}"
        )
    for number, part in enumerate(members.each):
        crossed = (part.diff(dim=-1) < 0).flatten(1).any(1)
        if not torch.compiler.is_compiling() and bool(crossed.any()):
            raise DataError(
                f"member {number} has quantiles that cross in {int(crossed.sum())} rows, the first "
                f"is {int(crossed.nonzero()[0, 0])}; sort them first: np.sort(quantiles, -1)"
            )
    return members.answer(members.mean(members.probabilities()))


def _values(predictions: Array, weights: Any) -> Members[Array]:
    """Return checked members whose numbers are finite."""
    members: Members[Array] = Members(
        predictions, space="value", spaces=("value",), weights=weights
    )
    for part in members.each:
        if not torch.compiler.is_compiling() and not bool(part.isfinite().all()):
            members.blame()
    return members

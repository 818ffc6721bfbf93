"""Robust merges: the median and the trimmed mean over models, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polyfuse.errors import PolyfuseError
from polyfuse.merge.base import widened

if TYPE_CHECKING:
    from torch import Tensor


def median(tensors: Sequence[Tensor]) -> Tensor:
    """Take the middle value of every element; of an even number, the mean of the middle two.

    Args:
        tensors: of one shape, floating.

    Returns:
        The median, rounded once to the first tensor's dtype; NaN where an input is NaN.

    Raises:
        PolyfuseError: no tensors, other shapes, or integers.

    Example:
        >>> import torch
        >>> median([torch.tensor([1.0]), torch.tensor([9.0]), torch.tensor([2.0])])
        tensor([2.])
    """
    return _middle(tensors, (len(tensors) - 1) // 2)


def trimmed_mean(tensors: Sequence[Tensor], *, cut: float = 0.2) -> Tensor:
    """Average every element without its lowest and highest values.

    Args:
        tensors: of one shape, floating.
        cut: share of the models dropped at each end, rounded down; from 0 to below 0.5.

    Raises:
        PolyfuseError: `cut` out of range, no tensors, other shapes, or integers.

    Example:
        >>> import torch
        >>> values = [torch.tensor([float(x)]) for x in (1, 2, 3, 4, 90)]
        >>> trimmed_mean(values)
        tensor([3.])
    """
    if not 0 <= cut < 0.5:
        raise PolyfuseError(f"cut is {cut}; it must be from 0 to below 0.5")
    # The product of 0.2 and 5 models may come out as 0.999...: a hair is no model.
    return _middle(tensors, math.floor(cut * len(tensors) + 1e-9))


def _middle(tensors: Sequence[Tensor], drop: int) -> Tensor:
    """Return the mean of the sorted values without `drop` of them at each end."""
    import torch

    stacked = torch.stack(widened(tensors))
    ordered = stacked.sort(0).values
    kept = ordered[drop : len(tensors) - drop]
    total = kept[0].clone()
    for value in kept[1:]:  # one after the other: the order decides the last bit
        total += value
    total /= len(kept)
    # Sorting puts NaN last, where it might be dropped unseen.
    return torch.where(ordered[-1].isnan(), ordered[-1], total).to(tensors[0].dtype)

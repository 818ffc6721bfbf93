"""Linear merges: means, weighted sums, interpolation, and the basics of task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polyfuse.errors import PolyfuseError
from polyfuse.merge.base import Linear, check_count, combine

if TYPE_CHECKING:
    from torch import Tensor


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """Average: `sum(x_i) / N`.

    Args:
        tensors: of one shape, floating.

    Returns:
        The exact mean, rounded once to the first tensor's dtype.

    Raises:
        PolyfuseError: no tensors, other shapes, or integers.

    Example:
        >>> import torch
        >>> mean([torch.tensor([1.0]), torch.tensor([2.0])])
        tensor([1.5000])
    """
    return combine(tensors, linear_mean(len(tensors)))


def weighted_mean(tensors: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """Average with weights: `sum(w_i x_i) / sum(w_i)`.

    Args:
        tensors: of one shape, floating.
        weights: one a tensor; their sum is not zero.

    Raises:
        PolyfuseError: weights that do not fit, are not finite, or sum to zero.

    Example:
        >>> import torch
        >>> weighted_mean([torch.tensor([1.0]), torch.tensor([2.0])], weights=[3, 1])
        tensor([1.2500])
    """
    return combine(tensors, linear_weighted_mean(len(tensors), weights=weights))


def weighted_sum(tensors: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """Add with weights: `sum(w_i x_i)`, nothing normalised.

    Args:
        tensors: of one shape, floating.
        weights: one a tensor.

    Raises:
        PolyfuseError: weights that do not fit or are not finite.

    Example:
        >>> import torch
        >>> weighted_sum([torch.tensor([1.0]), torch.tensor([2.0])], weights=[3, 1])
        tensor([5.])
    """
    return combine(tensors, linear_weighted_sum(len(tensors), weights=weights))


def lerp(tensors: Sequence[Tensor], *, t: float = 0.5) -> Tensor:
    """Interpolate two tensors on the straight line: `(1 - t) a + t b`.

    WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903) with a the base and b the fine-tuned model.

    Args:
        tensors: a and b, of one shape, floating.
        t: 0 gives a, 1 gives b; others extrapolate.

    Raises:
        PolyfuseError: not two tensors, or `t` is not finite.

    Example:
        >>> import torch
        >>> lerp([torch.tensor([0.0]), torch.tensor([4.0])], t=0.25)
        tensor([1.])
    """
    return combine(tensors, linear_lerp(len(tensors), t=t))


def difference(tensors: Sequence[Tensor]) -> Tensor:
    """Subtract: the task vector `model - base` (Ilharco et al. 2022, arXiv 2212.04089).

    Args:
        tensors: the fine-tuned model, then its base.

    Raises:
        PolyfuseError: not two tensors.

    Example:
        >>> import torch
        >>> difference([torch.tensor([3.0]), torch.tensor([1.0])])
        tensor([2.])
    """
    return combine(tensors, linear_difference(len(tensors)))


def add(tensors: Sequence[Tensor], *, scale: float = 1.0) -> Tensor:
    """Add task vectors to a base: `base + scale * sum(tau_i)` (arXiv 2212.04089).

    Args:
        tensors: the base, then one or more task vectors (see `difference`).
        scale: lambda of the paper; negative values forget a task.

    Raises:
        PolyfuseError: fewer than two tensors, or `scale` is not finite.

    Example:
        >>> import torch
        >>> add([torch.tensor([1.0]), torch.tensor([2.0])], scale=0.5)
        tensor([2.])
    """
    return combine(tensors, linear_add(len(tensors), scale=scale))


def linear_mean(count: int) -> Linear:
    """Return what `mean` is of so many inputs.

    Example:
        >>> linear_mean(2)
        Linear(coefficients=(1.0, 1.0), divisor=2.0)
    """
    check_count("mean", count, "one or more", count > 0)
    return Linear((1.0,) * count, float(count))


def linear_weighted_mean(count: int, *, weights: Sequence[float]) -> Linear:
    """Return what `weighted_mean` is.

    Example:
        >>> linear_weighted_mean(2, weights=[3, 1])
        Linear(coefficients=(3.0, 1.0), divisor=4.0)
    """
    chosen = _checked(count, weights)
    total = math.fsum(chosen)
    # A sum that is only rounding noise beside its terms is zero, too.
    if abs(total) <= 1e-12 * math.fsum(map(abs, chosen)):
        raise PolyfuseError(
            f"weights {list(weights)} sum to zero, so there is no mean; change them, or add "
            "without normalising: --no-normalize"
        )
    return Linear(chosen, total)


def linear_weighted_sum(count: int, *, weights: Sequence[float]) -> Linear:
    """Return what `weighted_sum` is.

    Example:
        >>> linear_weighted_sum(2, weights=[3, 1]).divisor
        1.0
    """
    return Linear(_checked(count, weights))


def linear_lerp(count: int, *, t: float = 0.5) -> Linear:
    """Return what `lerp` is.

    Example:
        >>> linear_lerp(2, t=0.25).coefficients
        (0.75, 0.25)
    """
    check_count("lerp", count, "two", count == 2)
    return Linear((1.0 - _finite("t", t), float(t)))


def linear_difference(count: int) -> Linear:
    """Return what `difference` is.

    Example:
        >>> linear_difference(2).coefficients
        (1.0, -1.0)
    """
    check_count("difference", count, "two (the model, then its base)", count == 2)
    return Linear((1.0, -1.0))


def linear_add(count: int, *, scale: float = 1.0) -> Linear:
    """Return what `add` is.

    Example:
        >>> linear_add(3, scale=0.5).coefficients
        (1.0, 0.5, 0.5)
    """
    check_count("add", count, "two or more (the base, then task vectors)", count >= 2)
    return Linear((1.0, *[_finite("scale", scale)] * (count - 1)))


def _checked(count: int, weights: Sequence[float]) -> tuple[float, ...]:
    if len(weights) != count:
        raise PolyfuseError(f"got {len(weights)} weights for {count} inputs; give one each")
    return tuple(_finite("a weight", weight) for weight in weights)


def _finite(name: str, number: float) -> float:
    if not math.isfinite(number):
        raise PolyfuseError(f"{name} is {number}; it must be a finite number")
    return float(number)

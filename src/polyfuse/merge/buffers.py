"""What becomes of buffers: `POLICIES`, for what is no parameter and not averaged by accident."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from polyfuse.errors import PolyfuseError
from polyfuse.merge.base import Linear, combine

if TYPE_CHECKING:
    from torch import Tensor

Shares = Sequence[float]


class Unequal(PolyfuseError):
    """Buffers that should be equal and are not."""


def average(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    """Average with shares; integers are averaged in fp64 and rounded half to even.

    Args:
        tensors: of one shape and kind.
        shares: one a tensor; they sum to 1.

    Example:
        >>> import torch
        >>> average([torch.tensor([1]), torch.tensor([4])], [0.5, 0.5])
        tensor([2])
    """
    if tensors[0].dtype.is_floating_point:
        return combine(tensors, Linear(tuple(shares), sum(shares)))
    wide = combine([t.double() for t in tensors], Linear(tuple(shares), sum(shares)))
    return wide.round().to(tensors[0].dtype)


def first(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    """Take the first checkpoint's.

    Example:
        >>> import torch
        >>> first([torch.tensor([1]), torch.tensor([4])], [0.5, 0.5])
        tensor([1])
    """
    return tensors[0]


def last(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    """Take the last checkpoint's.

    Example:
        >>> import torch
        >>> last([torch.tensor([1]), torch.tensor([4])], [0.5, 0.5])
        tensor([4])
    """
    return tensors[-1]


def maximum(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    """Take the largest of every element.

    Example:
        >>> import torch
        >>> maximum([torch.tensor([1]), torch.tensor([4])], [0.5, 0.5])
        tensor([4])
    """
    import torch

    return torch.stack(list(tensors)).amax(0)


def total(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    """Add up; for counters over several runs.

    Example:
        >>> import torch
        >>> total([torch.tensor([1]), torch.tensor([4])], [0.5, 0.5])
        tensor([5])
    """
    import torch

    if tensors[0].dtype.is_floating_point:
        return combine(tensors, Linear((1.0,) * len(tensors)))
    return torch.stack(list(tensors)).sum(0).to(tensors[0].dtype)


def equal(tensors: Sequence[Tensor], shares: Shares) -> Tensor:
    """Take the one that all have; refuse others.

    Raises:
        Unequal: they differ.

    Example:
        >>> import torch
        >>> equal([torch.tensor([1]), torch.tensor([1])], [0.5, 0.5])
        tensor([1])
    """
    for other in tensors[1:]:
        if not tensors[0].equal(other):
            raise Unequal("differs between the checkpoints")
    return tensors[0]


def pooled_variance(variances: Sequence[Tensor], means: Sequence[Tensor], shares: Shares) -> Tensor:
    """Return the variance of a mixture: within the models, and between their means.

    `sum w_i (var_i + mean_i^2) - (sum w_i mean_i)^2`, computed about the mixture's mean.

    Args:
        variances: running variances of one layer.
        means: running means of the same layer.
        shares: one a model, not negative; they sum to 1.

    Example:
        >>> import torch
        >>> ones = [torch.tensor([1.0])] * 2
        >>> pooled_variance(ones, [torch.tensor([0.0]), torch.tensor([2.0])], [0.5, 0.5])
        tensor([2.])
    """
    wide_means = [m.double() for m in means]
    centre = combine(wide_means, Linear(tuple(shares)))
    around = [
        v.double() + (m - centre).square() for v, m in zip(variances, wide_means, strict=True)
    ]
    return combine(around, Linear(tuple(shares))).to(variances[0].dtype)


POLICIES: dict[str, Callable[[Sequence[Tensor], Shares], Tensor]] = {
    "mean": average,
    "first": first,
    "last": last,
    "max": maximum,
    "sum": total,
    "recompute": first,  # a place holder: the statistics are to be estimated anew
    "error": equal,
}

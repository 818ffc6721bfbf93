"""Spherical interpolation of two tensors (SLERP, Shoemake 1985)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polyfuse.errors import PolyfuseError
from polyfuse.merge.base import Linear, check_count, combine, measured, widened

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 0.9995  # |cosine| above which the arc is as good as its chord
TINY = 1e-8  # a norm that is not divided by


def slerp(tensors: Sequence[Tensor], *, t: float = 0.5) -> Tensor:
    """Interpolate along the arc between two tensors, each taken as one flat vector.

    `sin((1-t) theta) / sin(theta) * a + sin(t theta) / sin(theta) * b`, theta being the angle
    between a and b; the vectors themselves are not normalised. Nearly parallel ones are
    interpolated on the straight line. Norms and dot product are summed in fp64.

    Args:
        tensors: a and b, of one shape, floating.
        t: 0 gives a, 1 gives b.

    Raises:
        PolyfuseError: not two tensors, or `t` is not finite.

    Example:
        >>> import torch
        >>> slerp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
        tensor([0.7071, 0.7071])
    """
    check_count("slerp", len(tensors), "two", len(tensors) == 2)
    wide = widened(tensors)
    numbers = measured([tensor.reshape(-1) for tensor in wide], dots)
    return along(wide, numbers, t=t).to(tensors[0].dtype)


def dots(pair: Sequence[Tensor]) -> Tensor:
    """Return `(a.a, b.b, a.b)` of two flat tensors, fp64.

    Example:
        >>> import torch
        >>> dots([torch.tensor([3.0]), torch.tensor([2.0])]).tolist()
        [9.0, 4.0, 6.0]
    """
    import torch

    a, b = (tensor.double() for tensor in pair)
    return torch.stack([a @ a, b @ b, a @ b])


def along(tensors: Sequence[Tensor], numbers: Tensor, *, t: float = 0.5) -> Tensor:
    """Interpolate a chunk, the numbers of the whole tensors being known.

    Example:
        >>> import torch
        >>> along([torch.ones(1), torch.ones(1)], torch.ones(3).double())
        tensor([1.])
    """
    return combine(tensors, arc(numbers, t=t))


def arc(numbers: Tensor, *, t: float = 0.5) -> Linear:
    """Return the coefficients of a and b, given `dots` of the whole tensors.

    Example:
        >>> import torch
        >>> arc(torch.tensor([1.0, 1.0, 1.0])).coefficients
        (0.5, 0.5)
    """
    if not math.isfinite(t):
        raise PolyfuseError(f"t is {t}; it must be a finite number")
    aa, bb, ab = numbers.tolist()
    norms = [math.sqrt(square) for square in (aa, bb)]
    cosine = ab / math.prod(norm if norm > TINY else 1.0 for norm in norms)
    if not abs(cosine) <= PARALLEL:  # NaN goes this way too, and stays NaN
        return Linear((1.0 - t, float(t)))
    theta = math.acos(cosine)
    return Linear(tuple(math.sin(s * theta) / math.sin(theta) for s in (1.0 - t, t)))

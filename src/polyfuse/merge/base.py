"""How a merge is carried over tensors that are too large to hold: in one pass, two, or whole.

A merge method is a plain function `(tensors, *, options) -> tensor`. `Method` says beside it how
the same result is made chunk by chunk: as a linear combination, by the function itself where every
element stands alone, or in two passes where a number over the whole tensor comes first.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from polyfuse.dtypes import DTYPES
from polyfuse.errors import PolyfuseError

if TYPE_CHECKING:
    from torch import Tensor

# Numbers over a whole tensor are summed block by block, in order, in fp64; chunks are whole blocks.
# So they do not depend on the size of a chunk, nor on the number of threads.
BLOCK = 1 << 16
# All sums are kept in fp64. fp32 would do for almost all 16-bit numbers, but not for all: where
# exponents lie far apart it loses bits that decide a tie, in 2 of 350 million elements as measured.
WIDE = DTYPES["float64"]


class Linear(NamedTuple):
    """A merge that is `sum(coefficient * tensor) / divisor`."""

    coefficients: tuple[float, ...]
    divisor: float = 1.0

    def shares(self) -> tuple[float, ...] | None:
        """Return what part of the result each input has; None where that makes no sense."""
        total = sum(self.coefficients)
        if total == 0 or any(c < 0 for c in self.coefficients):
            return None
        return tuple(c / total for c in self.coefficients)


class Method(NamedTuple):
    """A merge method and how it is carried.

    Attributes:
        function: over whole tensors, `(tensors, *, options) -> tensor`.
        linear: `(count, *, options) -> Linear`, where the method is linear in its inputs.
        measure: numbers over a block of every tensor, fp64; those of all blocks are added up.
        apply: `(tensors, numbers, *, options) -> tensor`, the second pass over a chunk.
        whole: it needs whole tensors in memory; a user's function does.
    """

    function: Callable[..., Tensor]
    linear: Callable[..., Linear] | None = None
    measure: Callable[[Sequence[Tensor]], Tensor] | None = None
    apply: Callable[..., Tensor] | None = None
    whole: bool = False


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the dtype to compute in, fp64.

    Raises:
        PolyfuseError: none, shapes that differ, or integers.

    Example:
        >>> import torch
        >>> widened([torch.ones(2, dtype=torch.float16)])[0].dtype
        torch.float64
    """
    check_tensors(tensors)
    return [t.detach().double() for t in tensors]


def check_tensors(tensors: Sequence[Tensor]) -> None:
    """Refuse what cannot be merged.

    Raises:
        PolyfuseError: no tensors, shapes that differ, or integers.

    Example:
        >>> import torch
        >>> check_tensors([torch.ones(2), torch.ones(3)])
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: tensors of one shape are needed, got [(2,), (3,)]
    """
    if not tensors:
        raise PolyfuseError("nothing to merge: got no tensors; give at least one")
    shapes = sorted({tuple(t.shape) for t in tensors})
    if len(shapes) > 1:
        raise PolyfuseError(f"tensors of one shape are needed, got {shapes}")
    if not all(t.dtype.is_floating_point for t in tensors):
        kinds = sorted({str(t.dtype) for t in tensors})
        raise PolyfuseError(f"floating tensors are needed, got {', '.join(kinds)}; call .float()")


def accumulate(total: Tensor, term: Tensor, coefficient: float, *, first: bool) -> None:
    """Add a term to a running sum, in place; the first one is put there.

    Args:
        total: fp64.
        term: of the same shape and dtype; the first one may be of a narrower dtype.
        coefficient: times the term.
        first: what `total` holds does not count.

    Example:
        >>> import torch
        >>> total = torch.empty(1, dtype=torch.float64)
        >>> accumulate(total, torch.ones(1), 2.0, first=True)
        >>> total
        tensor([2.], dtype=torch.float64)
    """
    if first:
        total.copy_(term)
        if coefficient != 1:
            total.mul_(coefficient)
    else:
        total.add_(term, alpha=coefficient)


def reciprocal(divisor: float) -> float | None:
    """Return what to multiply by instead: exact for a power of two, and half as slow.

    Example:
        >>> reciprocal(4.0), reciprocal(3.0)
        (0.25, None)
    """
    mantissa, exponent = math.frexp(divisor)
    return 1 / divisor if mantissa == 0.5 and abs(exponent) < 100 else None


def divide(total: Tensor, divisor: float) -> None:
    """Divide a sum in place.

    Example:
        >>> import torch
        >>> total = torch.ones(1, dtype=torch.float64)
        >>> divide(total, 4.0)
        >>> float(total)
        0.25
    """
    factor = reciprocal(divisor)
    if factor is None:
        total.div_(divisor)
    elif factor != 1:
        total.mul_(factor)


def combine(tensors: Sequence[Tensor], linear: Linear) -> Tensor:
    """Return a linear combination, rounded once, in the first tensor's dtype.

    Example:
        >>> import torch
        >>> combine([torch.tensor([1.0]), torch.tensor([2.0])], Linear((1.0, 1.0), 2.0))
        tensor([1.5000])
    """
    terms = widened(tensors)
    if len(linear.coefficients) != len(terms):
        raise PolyfuseError(
            f"got {len(linear.coefficients)} weights for {len(terms)} tensors; give one each"
        )
    total = terms[0].new_empty(terms[0].shape)
    for i, (term, coefficient) in enumerate(zip(terms, linear.coefficients, strict=True)):
        accumulate(total, term, coefficient, first=i == 0)
    divide(total, linear.divisor)
    return total.to(tensors[0].dtype)


def measured(tensors: Sequence[Tensor], measure: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """Return the numbers of whole tensors, summed block by block.

    Args:
        tensors: flat, of one length.
        measure: over one block of each.

    Example:
        >>> import torch
        >>> measured([torch.ones(70_000)], lambda ts: ts[0].double().sum())
        tensor(70000., dtype=torch.float64)
    """
    return reduce(operator.add, measured_blocks(tensors, measure))


def measured_blocks(
    tensors: Sequence[Tensor], measure: Callable[[Sequence[Tensor]], Tensor]
) -> list[Tensor]:
    """Return the numbers of each block, to be added in order over all chunks of a tensor.

    Args:
        tensors: flat, of one length; whole tensors, or chunks of whole blocks.
        measure: over one block of each.

    Example:
        >>> import torch
        >>> len(measured_blocks([torch.ones(70_000)], lambda ts: ts[0].double().sum()))
        2
    """
    starts = range(0, max(1, len(tensors[0])), BLOCK)
    return [measure([t[start : start + BLOCK] for t in tensors]) for start in starts]


def check_count(name: str, count: int, expected: str, fits: bool) -> None:
    """Refuse a number of inputs that a method cannot take.

    Raises:
        PolyfuseError: it does not fit.

    Example:
        >>> check_count("slerp", 3, "two", fits=False)
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: slerp takes two checkpoints, got 3
    """
    if not fits:
        raise PolyfuseError(f"{name} takes {expected} checkpoints, got {count}")


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as JSON has them: tuples become lists.

    Example:
        >>> plain({"weights": (1, 2)})
        {'weights': [1, 2]}
    """
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}

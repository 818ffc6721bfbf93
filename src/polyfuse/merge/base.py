"""How a merge is carried over tensors that are too large to hold: in one pass, two, or whole.

A merge method is a plain function `(tensors, *, options) -> tensor`. `Method` says beside it how
the same result is made chunk by chunk: as a linear combination, by the function itself where every
element stands alone, or in two passes where a number over the whole tensor comes first.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyfuse.errors import PolyfuseError

# Numbers over a whole tensor are summed block by block, in order, in fp64; chunks are whole blocks.
# So they do not depend on the size of a chunk, nor on the number of threads.
BLOCK = 1 << 16
_NARROW = 2  # bytes of an element up to which fp32 sums are as good as fp64 ones


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


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype to sum in, so that the result is the exact one rounded once.

    fp32 for 16-bit and narrower floats: its 24 bits leave room for all sums that matter. fp64 as
    soon as an input or the output has 24 bits itself.

    Example:
        >>> accumulator(torch.bfloat16, torch.float16), accumulator(torch.float32)
        (torch.float32, torch.float64)
    """
    narrow = all(d.is_floating_point and d.itemsize <= _NARROW for d in dtypes)
    return torch.float32 if narrow else torch.float64


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in fp64, for methods that are more than a sum.

    Raises:
        PolyfuseError: none, shapes that differ, or integers.

    Example:
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
        total: fp32 or fp64.
        term: of the same shape and dtype; the first one may be of a narrower dtype.
        coefficient: times the term.
        first: what `total` holds does not count.

    Example:
        >>> total = torch.empty(1)
        >>> accumulate(total, torch.ones(1), 2.0, first=True)
        >>> total
        tensor([2.])
    """
    if first:
        total.copy_(term)
        if coefficient != 1:
            total.mul_(coefficient)
    else:
        total.add_(term, alpha=coefficient)


def combine(tensors: Sequence[Tensor], linear: Linear) -> Tensor:
    """Return a linear combination, rounded once, in the first tensor's dtype.

    Example:
        >>> combine([torch.tensor([1.0]), torch.tensor([2.0])], Linear((1.0, 1.0), 2.0))
        tensor([1.5000])
    """
    check_tensors(tensors)
    wide = accumulator(*(t.dtype for t in tensors))
    terms = [t.detach().to(wide) for t in tensors]
    if len(linear.coefficients) != len(terms):
        raise PolyfuseError(
            f"got {len(linear.coefficients)} weights for {len(terms)} tensors; give one each"
        )
    total = torch.empty_like(terms[0])
    for i, (term, coefficient) in enumerate(zip(terms, linear.coefficients, strict=True)):
        accumulate(total, term, coefficient, first=i == 0)
    return total.div_(linear.divisor).to(tensors[0].dtype)


def measured(tensors: Sequence[Tensor], measure: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """Return the numbers of whole tensors, summed block by block.

    Args:
        tensors: flat, of one length.
        measure: over one block of each.

    Example:
        >>> measured([torch.ones(70_000)], lambda ts: ts[0].double().sum())
        tensor(70000., dtype=torch.float64)
    """
    blocks = range(0, max(1, len(tensors[0])), BLOCK)
    parts = (measure([t[start : start + BLOCK] for t in tensors]) for start in blocks)
    return reduce(torch.add, parts)


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

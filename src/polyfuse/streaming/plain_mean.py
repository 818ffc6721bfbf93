"""The commonest merges, means and sums of plain floating tensors, in NumPy: without torch.

Importing torch takes longer than averaging a gigabyte. The sums, their order and the rounding are
those of `compute`, so both give the same bits; torch's own kernels are the faster ones where it is
loaded already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.checkpoints.base import Source
from polyfuse.dtypes import DTYPES, DType, Elements
from polyfuse.merge.base import reciprocal
from polyfuse.streaming.base import Item, Plan, beside
from polyfuse.streaming.compute import Census, Scratch, Sink, count_nonfinite

KNOWN = ("bfloat16", "float32", "float64")
_LAST_BFLOAT16 = np.uint32(0x7F7F7FFF).view(np.float32)  # what is larger rounds to infinity
_BITS, _SINGLE, _DOUBLE = DTYPES["uint32"], DTYPES["float32"], DTYPES["float64"]


def suits(plan: Plan) -> bool:
    """Tell whether a plan has nothing but sums of the inputs as they are, divided or not."""
    treatments = [t for target in plan.targets for t in target.treatments.values()]
    sums = all(t.linear and set(t.linear.coefficients) == {1.0} for t in treatments)
    pairs = (pair for column in plan.columns.values() for pair in beside(plan.inputs, column))
    dtypes = {checkpoint.info(name).dtype.name for checkpoint, name in pairs}
    return sums and (dtypes | {t.dtype.name for t in treatments}).issubset(KNOWN)


def compute(plan: Plan, item: Item, scratch: Scratch, census: Census, sink: Sink) -> None:
    """Make one item for all outputs.

    Raises:
        CheckpointError: an input cannot be read.
    """
    todo = scratch.work(plan, item.name)
    with np.errstate(all="ignore"):  # what is not finite is counted below
        total = _total(todo.sources, item, scratch)
        for number, (treatment, linear) in enumerate(
            zip(todo.treatments, todo.linears or (), strict=True)
        ):
            made, finite = _rounded(total, linear.divisor, treatment.dtype, scratch)
            if not finite:
                count_nonfinite(plan, item, treatment, made, census)
            sink(number, item.name, item.start, made)


def _total(
    sources: Sequence[tuple[Source, DType]], item: Item, scratch: Scratch
) -> NDArray[np.float64]:
    """Read every input once, and add up."""
    count = item.stop - item.start
    total = scratch.bits("total", _DOUBLE, count).view(np.float64)
    for i, (source, dtype) in enumerate(sources):
        raw = scratch.bits("raw", dtype, count)
        source.fill(raw, item.start)
        if i == 0:
            np.copyto(total, _numbers(raw, dtype, scratch))
        else:
            np.add(total, _numbers(raw, dtype, scratch), out=total)
    return total


def _numbers(raw: Elements, dtype: DType, scratch: Scratch) -> NDArray[Any]:
    """Return elements as numbers; those of bfloat16 are the upper halves of float32's."""
    if dtype.name != "bfloat16":
        return raw.view(dtype.name)
    bits = scratch.bits("wide", _BITS, len(raw))
    np.left_shift(raw, 16, out=bits, dtype=np.uint32)
    return bits.view(np.float32)


def _rounded(
    total: NDArray[np.float64], divisor: float, dtype: DType, scratch: Scratch
) -> tuple[Elements, bool]:
    """Return the bits of a sum's share, and whether all of it is finite; as torch does."""
    made = scratch.bits("narrow", dtype, len(total))
    bits = made if dtype.name != "bfloat16" else scratch.bits("wide", _BITS, len(total))
    mean = bits.view("float64" if dtype.name == "float64" else "float32")
    factor = reciprocal(divisor)
    if factor is None:
        np.divide(total, divisor, out=mean, casting="same_kind")
    else:
        np.multiply(total, factor, out=mean, casting="same_kind")
    limit = _LAST_BFLOAT16 if dtype.name == "bfloat16" else np.finfo(mean.dtype).max
    low, high = (mean.min(), mean.max()) if len(mean) else (0.0, 0.0)
    finite = bool(low >= -limit and high <= limit)  # NaN compares as false
    if dtype.name == "bfloat16":
        _to_bfloat16(bits, made, scratch, nans=not finite)
    return made, finite


def _to_bfloat16(
    bits: NDArray[np.uint32], out: NDArray[np.uint16], scratch: Scratch, *, nans: bool
) -> None:
    """Round the bits of float32 to their upper halves, ties to even."""
    unknown = np.isnan(bits.view(np.float32)) if nans else None
    odd = scratch.bits("odd", _BITS, len(bits))
    np.right_shift(bits, 16, out=odd)
    np.bitwise_and(odd, 1, out=odd)
    np.add(odd, 0x7FFF, out=odd)
    np.add(bits, odd, out=bits)
    np.right_shift(bits, 16, out=out, casting="unsafe")
    if unknown is not None:
        out[unknown] = 0x7FC0

"""A tensor of which several places hold a box each, as the ranks of a distributed run save it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.checkpoints.base import Source
from polyfuse.dtypes import Elements

Place = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes of a box


class Box(NamedTuple):
    """A part of a tensor: where it begins in each dimension, its size, and where its data are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    source: Source


class Boxes(NamedTuple):
    """The elements of a tensor that lie in boxes, which tile it."""

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    @property
    def whole(self) -> bool:
        """Whether a part costs as much as all, in any of its boxes."""
        return any(box.source.whole for box in self.boxes)

    def fill(self, out: Elements, start: int) -> None:
        """Read the rows of each box that are asked for, and no others; see `Source`."""
        if all(is_run(box, self.shape) for box in self.boxes):
            self._fill_runs(out, start)
        elif len(out):
            self._fill_rows(out, start)

    def _fill_runs(self, out: Elements, start: int) -> None:
        """Read straight into place boxes whose elements follow one another in the tensor."""
        stop = start + len(out)
        for box in self.boxes:
            begin = _place(box.offsets, self.shape)
            first, last = max(begin, start), min(begin + math.prod(box.sizes), stop)
            if first < last:
                box.source.fill(out[first - start : last - start], first - begin)

    def _fill_rows(self, out: Elements, start: int) -> None:
        """Put together all rows that the slice touches, and copy the slice out of them."""
        row = math.prod(self.shape[1:])
        first, last = start // row, -(-(start + len(out)) // row)
        rows = np.empty((last - first, *self.shape[1:]), out.dtype)
        for box in self.boxes:
            low, high = max(box.offsets[0], first), min(box.offsets[0] + box.sizes[0], last)
            if low < high:
                place = [slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True)]
                place[0] = slice(low - first, high - first)
                rows[tuple(place)] = _rows_of(box, low, high, out.dtype)
        begin = start - first * row
        out[:] = rows.reshape(-1)[begin : begin + len(out)]


def _rows_of(box: Box, low: int, high: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return rows `low` to `high` of the tensor as far as they lie in a box."""
    width = math.prod(box.sizes[1:])
    part = np.empty((high - low) * width, dtype)
    box.source.fill(part, (low - box.offsets[0]) * width)
    return part.reshape(high - low, *box.sizes[1:])


def _place(offsets: Sequence[int], shape: Sequence[int]) -> int:
    """Return the place of an element in `flatten()`."""
    place = 0
    for offset, size in zip(offsets, shape, strict=True):
        place = place * size + offset
    return place


def is_run(box: Box, shape: Sequence[int]) -> bool:
    """Tell whether a box's elements follow one another in the tensor.

    Example:
        >>> import torch
        >>> from polyfuse.checkpoints.base import InMemory
        >>> rows = Box((2, 0), (2, 3), InMemory(torch.zeros(2, 3)))
        >>> is_run(rows, (4, 3)), is_run(rows, (4, 6))
        (True, False)
    """
    inner = 1
    while inner <= len(shape) and box.sizes[-inner:] == shape[-inner:]:
        inner += 1
    return all(size == 1 for size in box.sizes[: max(len(shape) - inner, 0)])


def untiled(boxes: Iterable[Place], shape: tuple[int, ...]) -> str:
    """Return what keeps boxes of (offsets, sizes) from tiling a shape; nothing if they do.

    They are cut along one dimension after the other, so that the time grows with their number.

    Example:
        >>> untiled([((0, 0), (2, 3)), ((2, 0), (2, 3))], (4, 3))
        ''
        >>> untiled([((0, 0), (2, 3)), ((1, 0), (3, 3))], (4, 3))
        'they overlap at 1 of dimension 0'
    """
    groups = [list(boxes)]
    for dimension, size in enumerate(shape):
        slabs = []
        for group in groups:
            found, fault = _slabs(group, dimension, size)
            if fault:
                return f"they {fault} of dimension {dimension}"
            slabs += found
        groups = slabs
    return "they are not one a place" if any(len(group) != 1 for group in groups) else ""


def _slabs(group: list[Place], dimension: int, size: int) -> tuple[list[list[Place]], str]:
    """Split boxes by where they lie in a dimension, which they must cover once."""
    slabs: dict[tuple[int, int], list[Place]] = {}
    for offsets, sizes in group:
        slabs.setdefault((offsets[dimension], sizes[dimension]), []).append((offsets, sizes))
    end = 0
    for offset, extent in sorted(slabs):
        if offset != end:
            return [], f"{'overlap' if offset < end else 'leave a hole'} at {min(offset, end):,}"
        end += extent
    fault = "" if end == size else f"reach to {end:,} instead of {size:,}"
    return list(slabs.values()), fault

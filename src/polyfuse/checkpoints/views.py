"""Tensors that do not lie in a file as they are: packed, or behind strides."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from polyfuse.checkpoints import archive
from polyfuse.checkpoints.archive import Entry
from polyfuse.checkpoints.base import File
from polyfuse.dtypes import DType, Elements, as_tensor, bytes_of

_BLOCK = 32 << 20  # bytes of a storage that are in memory at once while a view is gathered


class Packed(NamedTuple):
    """Elements that lie one after the other in a deflated entry."""

    file: File
    entry: Entry
    offset: int

    @property
    def whole(self) -> bool:
        """Yes: the entry is unpacked from its beginning, and checked to its end."""
        return True

    def fill(self, out: Elements, start: int) -> None:
        """Unpack straight into the array; see `Source`."""
        offset = self.offset + start * out.itemsize
        archive.fill(self.file, self.entry, offset, bytes_of(out))


class Strided(NamedTuple):
    """Elements behind strides: transposed, sliced, expanded, or to be conjugated or negated."""

    file: File
    entry: Entry
    offset: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugated: bool
    negated: bool

    @property
    def whole(self) -> bool:
        """Yes: neighbours in the tensor may lie far apart in the file."""
        return True

    def fill(self, out: Elements, start: int) -> None:
        """Gather the rows that hold these elements; see `Source`."""
        if not len(out):
            return
        row = math.prod(self.shape[1:])
        first, last = start // row, -(-(start + len(out)) // row)
        exact = len(out) == (last - first) * row
        rows = out if exact else np.empty((last - first) * row, out.dtype)
        offset = self.offset + first * self.strides[0] * out.itemsize
        self._gather(rows.reshape(last - first, *self.shape[1:]), offset)
        if not exact:
            out[:] = rows[start - first * row :][: len(out)]
        if self.conjugated:
            as_tensor(out, self.dtype).copy_(as_tensor(out, self.dtype).conj().resolve_conj())
        if self.negated:
            as_tensor(out, self.dtype).neg_()

    def _gather(self, view: NDArray[Any], offset: int) -> None:
        """Fill a part of the tensor from a stretch of the storage; halve it where that is long."""
        reach = [(n - 1) * stride for n, stride in zip(view.shape, self.strides, strict=True)]
        span = 1 + sum(reach)
        if span * view.itemsize <= _BLOCK or self.entry.deflated or view.size == 1:
            block = np.empty(span, view.dtype)
            archive.fill(self.file, self.entry, offset, bytes_of(block))
            steps = [stride * view.itemsize for stride in self.strides]
            view[...] = as_strided(block, view.shape, steps, writeable=False)
            return
        axis = reach.index(max(reach))
        half = view.shape[axis] // 2
        low, high = np.split(view, [half], axis)
        self._gather(low, offset)
        offset += half * self.strides[axis] * view.itemsize
        self._gather(high, offset)

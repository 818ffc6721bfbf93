"""Tensors that do not lie in a file as they are: packed, or behind strides."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from polyfuse.checkpoints import archive
from polyfuse.checkpoints.archive import Entry
from polyfuse.checkpoints.base import File, bytes_of

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

    def fill(self, out: Tensor, start: int) -> None:
        """Unpack straight into the tensor; see `Source`."""
        offset = self.offset + start * out.element_size()
        archive.fill(self.file, self.entry, offset, bytes_of(out))


class Strided(NamedTuple):
    """Elements behind strides: transposed, sliced, expanded, or to be conjugated or negated."""

    file: File
    entry: Entry
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugated: bool
    negated: bool

    @property
    def whole(self) -> bool:
        """Yes: neighbours in the tensor may lie far apart in the file."""
        return True

    def fill(self, out: Tensor, start: int) -> None:
        """Gather the rows that hold these elements; see `Source`."""
        if not out.numel():
            return
        row = math.prod(self.shape[1:])
        first, last = start // row, -(-(start + out.numel()) // row)
        exact = out.numel() == (last - first) * row
        rows = out if exact else torch.empty((last - first) * row, dtype=out.dtype)
        offset = self.offset + first * self.strides[0] * out.element_size()
        self._gather(rows.view(last - first, *self.shape[1:]), offset)
        if not exact:
            out.copy_(rows[start - first * row :][: out.numel()])
        if self.conjugated:
            torch.conj_physical(out, out=out)
        if self.negated:
            out.neg_()

    def _gather(self, view: Tensor, offset: int) -> None:
        """Fill a part of the tensor from a stretch of the storage; halve it where that is long."""
        reach = [(n - 1) * stride for n, stride in zip(view.shape, self.strides, strict=True)]
        span = 1 + sum(reach)
        if span * view.element_size() <= _BLOCK or self.entry.deflated or view.numel() == 1:
            block = torch.empty(span, dtype=view.dtype)
            archive.fill(self.file, self.entry, offset, bytes_of(block))
            view.copy_(block.as_strided(view.shape, self.strides))
            return
        axis = reach.index(max(reach))
        half = view.shape[axis] // 2
        self._gather(view.narrow(axis, 0, half), offset)
        offset += half * self.strides[axis] * view.element_size()
        self._gather(view.narrow(axis, half, view.shape[axis] - half), offset)

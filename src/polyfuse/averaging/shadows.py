"""The memory of averages, and the pass over it: each value of a model is read once for all of them.

All tensors of one average lie one after the other in one flat tensor a dtype and device, so an
update is a few long operations. A model's values come in chunks that stay in the cache while every
average takes them in; small tensors are gathered first, and so are those of another dtype.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Elements that are read at once: with their average, they fit a core's cache.
CHUNK = 1 << 17


class Bucket(NamedTuple):
    """What flat memory is of: averages of this dtype, on this device."""

    device: torch.device
    dtype: torch.dtype


class Slot(NamedTuple):
    """Where a tensor lies in flat memory: its elements in the order they have in its own."""

    bucket: Bucket
    start: int
    stop: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """Return the tensor in flat memory."""
        return flat[self.start : self.stop].as_strided(
            self.shape, self.stride, flat.storage_offset() + self.start
        )


class Run(NamedTuple):
    """Values that are read at once.

    Attributes:
        bucket: of their averages.
        start: of their averages in flat memory.
        stop: likewise.
        parts: the model's memory, one after the other.
        names: of the tensors that the parts belong to.
        gathered: they have to be brought together, or to another dtype or device.
    """

    bucket: Bucket
    start: int
    stop: int
    parts: list[Tensor]
    names: list[str]
    gathered: bool


def local(tensor: Tensor) -> Tensor:
    """Return the values that this process has of a tensor, complex ones as pairs of real ones.

    Example:
        >>> local(torch.zeros(2, dtype=torch.complex64)).shape
        torch.Size([2, 2])
    """
    own = tensor.detach()
    own = own.to_local() if hasattr(own, "to_local") else own
    return torch.view_as_real(own) if own.is_complex() else own


def is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor's elements fill its memory, each place once, in whatever order.

    Example:
        >>> is_dense(torch.zeros(2, 3).t()), is_dense(torch.zeros(4)[::2])
        (True, False)
    """
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size if size > 1 else 1
    return True


def lay_out(
    tensors: Mapping[str, Tensor], device: torch.device | None, dtype: torch.dtype | None
) -> dict[str, Slot]:
    """Return where the averages of tensors go.

    Args:
        tensors: local ones.
        device: for all averages; by default each where its tensor is.
        dtype: for all averages; by default that of the tensor, but fp32 at least.

    Example:
        >>> slots = lay_out({"a": torch.zeros(2), "b": torch.zeros(3)}, None, None)
        >>> slots["b"].start, slots["b"].stop
        (2, 5)
    """
    ends: dict[Bucket, int] = {}
    slots = {}
    for name, tensor in tensors.items():
        wide = dtype or torch.promote_types(tensor.dtype, torch.float32)
        bucket = Bucket(device or tensor.device, wide)
        start = ends.get(bucket, 0)
        ends[bucket] = start + tensor.numel()
        stride = tensor.stride() if is_dense(tensor) else _packed(tensor.shape)
        slots[name] = Slot(bucket, start, ends[bucket], tuple(tensor.shape), tuple(stride))
    return slots


def _packed(shape: Sequence[int]) -> list[int]:
    """Return the strides of a contiguous tensor."""
    return [math.prod(shape[place + 1 :]) for place in range(len(shape))]


class Shadow:
    """The flat memory of one average.

    Args:
        slots: where its tensors lie.
        rows: how often; more than once where a rule keeps several.
    """

    def __init__(self, slots: Mapping[str, Slot], rows: int = 1) -> None:
        """Allocate, and fill with zeros."""
        self.slots = slots
        sizes: dict[Bucket, int] = {}
        for slot in slots.values():
            sizes[slot.bucket] = max(sizes.get(slot.bucket, 0), slot.stop)
        self.flats = {
            bucket: torch.zeros(rows, size, dtype=bucket.dtype, device=bucket.device)
            for bucket, size in sizes.items()
        }

    def view(self, name: str, row: int = 0) -> Tensor:
        """Return a tensor of the average; it shares the memory."""
        slot = self.slots[name]
        return slot.of(self.flats[slot.bucket][row])

    def piece(self, run: Run, row: int = 0) -> Tensor:
        """Return the flat memory that takes in the values of a run."""
        return self.flats[run.bucket][row, run.start : run.stop]


def runs_of(
    tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], chunk: int = CHUNK
) -> list[Run]:
    """Return what to read at once, for all tensors in the order they have in flat memory.

    Args:
        tensors: local ones.
        slots: where their averages lie.
        chunk: elements to read at once; about so many.

    Example:
        >>> tensors = {"a": torch.zeros(5), "b": torch.zeros(2), "c": torch.zeros(2)}
        >>> [run.names for run in runs_of(tensors, lay_out(tensors, None, None), chunk=4)]
        [['a'], ['a', 'b'], ['c']]
    """
    runs: list[Run] = []
    for name, slot in sorted(slots.items(), key=lambda item: (str(item[1].bucket), item[1].start)):
        for start, part in _parts(tensors[name], slot, chunk):
            stop = start + part.numel()
            foreign = (part.device, part.dtype) != slot.bucket or part.dim() != 1
            last = runs[-1] if runs else None
            if last and last.bucket == slot.bucket and stop - last.start <= chunk:
                joined = [*last.parts, part], [*last.names, name]
                runs[-1] = Run(slot.bucket, last.start, stop, *joined, gathered=True)
            elif start < stop:
                runs.append(Run(slot.bucket, start, stop, [part], [name], foreign))
    return runs


def _parts(tensor: Tensor, slot: Slot, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """Yield a tensor's memory piece by piece, and where in flat memory each one belongs."""
    if not (is_dense(tensor) and tensor.stride() == slot.stride):
        yield slot.start, tensor
        return
    flat = tensor.as_strided((tensor.numel(),), (1,))
    for start in range(0, tensor.numel(), chunk):
        yield slot.start + start, flat[start : start + chunk]


def read(run: Run, stage: Tensor | None = None) -> Tensor:
    """Return the values of a run, one after the other, in the dtype of their averages.

    Example:
        >>> tensors = {"b": torch.zeros(2), "c": torch.ones(2)}
        >>> [run] = runs_of(tensors, lay_out(tensors, None, None))
        >>> read(run)
        tensor([0., 0., 1., 1.])
    """
    if not run.gathered:
        return run.parts[0]
    flat = torch.empty(run.stop - run.start, dtype=run.bucket.dtype, device=run.bucket.device)
    start = 0
    for part in run.parts:
        flat[start : start + part.numel()].view(part.shape).copy_(part)
        start += part.numel()
    return flat

"""The memory of averages, and the pass over it: a model's values are read once for all of them.

All tensors of an average lie one after the other in one flat tensor a dtype and device. A model's
values come in runs: one long list for one average; for several, chunks that stay in the cache while
each average takes them in. Values of another dtype, or that lie scattered, are gathered first, a
chunk at a time; so are small tensors on a CPU, where a call costs more than their arithmetic.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Elements that are read at once where several averages take them in, or where they are gathered.
# On a CPU they and their averages fit the caches; elsewhere a launch costs more than a cache saves.
CHUNK = 1 << 19
FAR_CHUNK = 1 << 24
WHOLE = 1 << 62
SMALL = 1 << 13  # elements; a model has many such tensors, and they lie together in flat memory


class Bucket(NamedTuple):
    """What flat memory is of: averages of this dtype, on this device."""

    device: torch.device
    dtype: torch.dtype


class Slot(NamedTuple):
    """Where a tensor lies in flat memory, its elements in the order of its own memory."""

    bucket: Bucket
    start: int
    stop: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Run(NamedTuple):
    """Values that are read at once.

    Attributes:
        bucket: of their averages.
        start: where their averages begin in flat memory.
        stop: where they end.
        direct: they can be read where they are; else they are gathered.
        parts: the model's memory; flat, but for tensors that lie scattered.
    """

    bucket: Bucket
    start: int
    stop: int
    direct: bool
    parts: list[Tensor]


class Share(NamedTuple):
    """What one average takes of the values: `row += weight * (values - row)`."""

    shadow: "Shadow"
    row: int
    weight: float


def local(tensor: Tensor) -> Tensor:
    """Return the values that this process has of a tensor, complex ones as pairs of real ones.

    Example:
        >>> local(torch.zeros(2, dtype=torch.complex64)).shape
        torch.Size([2, 2])
    """
    own = tensor.detach()
    own = own.to_local() if hasattr(own, "to_local") else own
    return torch.view_as_real(own) if own.is_complex() else own


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to average in: fp32 at least, for a 16-bit average soon stands still.

    Example:
        >>> wide(torch.bfloat16), wide(torch.float64)
        (torch.float32, torch.float64)
    """
    return dtype if dtype.itemsize >= 4 else torch.float32


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
        expected *= max(size, 1)
    return True


def lay_out(
    tensors: Mapping[str, Tensor], device: torch.device | None, dtype: torch.dtype | None
) -> dict[str, Slot]:
    """Return where the averages of tensors go.

    Args:
        tensors: local ones, by name.
        device: of all averages; by default each is where its tensor is.
        dtype: of all averages; by default that of the tensor, but fp32 at least.

    Example:
        >>> slots = lay_out({"a": torch.zeros(2), "b": torch.zeros(3)}, None, None)
        >>> slots["b"].start, slots["b"].stop
        (2, 5)
    """
    ends: dict[Bucket, int] = {}
    slots = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].numel() >= SMALL):
        bucket = Bucket(device or tensor.device, dtype or wide(tensor.dtype))
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
        rows: how often; a rule that averages the last k values keeps k.
    """

    def __init__(self, slots: Mapping[str, Slot], rows: int = 1) -> None:
        """Allocate, and fill with zeros."""
        self.slots = slots
        self.rows = rows
        sizes: dict[Bucket, int] = {}
        for slot in slots.values():
            sizes[slot.bucket] = max(sizes.get(slot.bucket, 0), slot.stop)
        self._flats = {
            bucket: torch.zeros(rows, size, dtype=bucket.dtype, device=bucket.device)
            for bucket, size in sizes.items()
        }

    def view(self, name: str, row: int = 0) -> Tensor:
        """Return a tensor of the average; it shares the memory."""
        slot = self.slots[name]
        flat = self._flats[slot.bucket][row]
        start = flat.storage_offset() + slot.start
        return flat.as_strided(slot.shape, slot.stride, start)

    def views(self, name: str) -> Tensor:
        """Return all rows of a tensor, `(rows, ...)`."""
        return torch.stack([self.view(name, row) for row in range(self.rows)])

    def piece(self, run: Run, row: int) -> Tensor:
        """Return the flat memory that takes in the values of a run."""
        return self._flats[run.bucket][row, run.start : run.stop]

    def numel(self) -> int:
        """Return how many values there are in one row."""
        return sum(flat.shape[1] for flat in self._flats.values())

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Tell whether tensors could have their values in this memory.

        Complex ones could not be saved then: torch wants memory to be of one dtype.
        """
        found = {name: local(tensor) for name, tensor in tensors.items()}
        if any(tensor.is_complex() for tensor in tensors.values()):
            return False
        return found.keys() == self.slots.keys() and all(
            ((t.device, t.dtype), t.shape, t.stride()) == (slot.bucket, slot.shape, slot.stride)
            for t, slot in ((found[name], slot) for name, slot in self.slots.items())
        )

    def copy(self, other: "Shadow") -> None:
        """Take over the values of another one, laid out in another way."""
        for name in self.slots:
            for row in range(self.rows):
                self.view(name, row).copy_(other.view(name, row))


class Feed:
    """A model's values, to be read in runs.

    Args:
        tensors: local ones, by name; they are read, and in a swap written, where they are.
        slots: where their averages lie.

    Example:
        >>> tensors = {"w": torch.ones(2)}
        >>> shadow = Shadow(lay_out(tensors, None, None))
        >>> Feed(tensors, shadow.slots).give([Share(shadow, row=0, weight=0.25)])
        >>> shadow.view("w")
        tensor([0.2500, 0.2500])
    """

    def __init__(self, tensors: Mapping[str, Tensor], slots: Mapping[str, Slot]) -> None:
        """Remember where the values are; runs are made when first needed."""
        self._tensors = tensors
        self._slots = slots
        self._runs: dict[int, list[Run]] = {}
        self._pieces: dict[tuple[Shadow, int, int], list[list[Tensor]]] = {}
        self._stages: dict[Bucket, Tensor] = {}

    def give(self, shares: Sequence[Share]) -> None:
        """Let averages take in the values, all in one pass."""
        chunk = CHUNK if len(shares) > 1 else WHOLE
        pieces = [self._taking(share.shadow, share.row, chunk) for share in shares]
        for number, run in enumerate(self.runs(chunk)):
            values = run.parts if run.direct else [self._gathered(run)]
            for share, taking in zip(shares, pieces, strict=True):
                mix(taking[number], values, share.weight)

    def swap(self, shadow: Shadow, *, back: bool = False) -> None:
        """Exchange the model's values and an average's, of one dtype, chunk by chunk.

        Args:
            shadow: of one row.
            back: in the other order, which undoes a swap even where tensors overlap.
        """
        pairs = list(self._pairs(shadow))
        for part, kept in reversed(pairs) if back else pairs:
            held = part.to(kept.device, copy=True)
            part.copy_(kept.view(part.shape))
            kept.view(part.shape).copy_(held)

    def same_dtype(self) -> bool:
        """Tell whether all averages have the dtype of the model's tensors."""
        return all(t.dtype == self._slots[n].bucket.dtype for n, t in self._tensors.items())

    def runs(self, chunk: int) -> list[Run]:
        """Return the runs of about so many elements, in the order of flat memory."""
        if chunk not in self._runs:
            self._runs[chunk] = list(_runs(self._tensors, self._slots, chunk))
        return self._runs[chunk]

    def _taking(self, shadow: Shadow, row: int, chunk: int) -> list[list[Tensor]]:
        """Return what takes in the values of each run, cut as they come."""
        key = (shadow, row, chunk)
        if key not in self._pieces:
            self._pieces[key] = [
                [part for _, part in _cut(run, shadow, row)]
                if run.direct
                else [shadow.piece(run, row)]
                for run in self.runs(chunk)
            ]
        return self._pieces[key]

    def _pairs(self, shadow: Shadow) -> Iterator[tuple[Tensor, Tensor]]:
        for run in self.runs(CHUNK):
            yield from _cut(run, shadow, 0)

    def _gathered(self, run: Run) -> Tensor:
        """Return values in the dtype of their averages, one after the other."""
        if run.bucket not in self._stages:
            runs = (r for runs in self._runs.values() for r in runs)
            size = max(r.stop - r.start for r in runs if r.bucket == run.bucket and not r.direct)
            dtype, device = run.bucket.dtype, run.bucket.device
            self._stages[run.bucket] = torch.empty(size, dtype=dtype, device=device)
        values = self._stages[run.bucket][: run.stop - run.start]
        if all(part.ndim == 1 and (part.device, part.dtype) == run.bucket for part in run.parts):
            return torch.cat(run.parts, out=values)
        places = zip(_split(values, run.parts), run.parts, strict=True)
        torch._foreach_copy_([place.view(part.shape) for place, part in places], run.parts)
        return values


def mix(averages: list[Tensor], values: list[Tensor], weight: float) -> None:
    """Move averages towards values, in place.

    Example:
        >>> average = torch.zeros(1)
        >>> mix([average], [torch.ones(1)], 0.25)
        >>> average
        tensor([0.2500])
    """
    if weight == 1:  # also where the average is NaN
        torch._foreach_copy_(averages, values)
    elif weight:
        torch._foreach_lerp_(averages, values, weight)


def _runs(tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], chunk: int) -> Iterator[Run]:
    run: Run | None = None
    for name, slot in sorted(slots.items(), key=lambda item: (str(item[1].bucket), item[1].start)):
        tensor = tensors[name]
        direct = (tensor.device, tensor.dtype) == slot.bucket and is_dense(tensor)
        direct = direct and (tensor.numel() >= SMALL or tensor.device.type != "cpu")
        limit = _limit(slot.bucket, direct, chunk)
        for start, part in _parts(tensor, slot, limit):
            stop = start + part.numel()
            fits = run and (run.bucket, run.direct) == (slot.bucket, direct)
            if run and fits and stop - run.start <= limit:
                run.parts.append(part)
                run = run._replace(stop=stop)
            else:
                if run:
                    yield run
                run = Run(slot.bucket, start, stop, direct, [part])
    if run:
        yield run


def _limit(bucket: Bucket, direct: bool, chunk: int) -> int:
    if bucket.device.type == "cpu":
        return chunk if direct else CHUNK
    return WHOLE if direct else FAR_CHUNK


def _parts(tensor: Tensor, slot: Slot, limit: int) -> Iterator[tuple[int, Tensor]]:
    """Yield a tensor's memory piece by piece, and where in flat memory each one belongs."""
    if is_dense(tensor):
        flat = tensor.as_strided((tensor.numel(),), (1,))
        for start in range(0, tensor.numel(), limit):
            yield slot.start + start, flat[start : start + limit]
    elif tensor.numel():
        yield slot.start, tensor


def _cut(run: Run, shadow: Shadow, row: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Return each part of a run with its piece of the average."""
    return zip(run.parts, _split(shadow.piece(run, row), run.parts), strict=True)


def _split(flat: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split(flat, [part.numel() for part in parts])

"""Make a stretch of an output out of the inputs' bytes: one wide sum, one rounding, one check."""

import threading
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from polyfuse.checkpoints.base import Checkpoint
from polyfuse.errors import CheckpointError, printable
from polyfuse.merge.base import BLOCK, WIDE, Linear, accumulate, divide, measured_blocks
from polyfuse.merge.buffers import Unequal
from polyfuse.streaming.base import CHUNK, Item, Plan, Treatment, listed

Sink = Callable[[int, str, int, Tensor], None]  # (number of the output, name, start, elements)
_SHOWN = 10


class Census:
    """What was found that should not be there: counted over all threads, told at once."""

    def __init__(self) -> None:
        """Nothing found yet."""
        self._lock = threading.Lock()
        self.nonfinite: dict[tuple[int, str], list[int]] = {}
        self.overflows: dict[str, int] = {}
        self.unequal: set[str] = set()

    def count(self, number: int, name: str, nans: int, infinities: int) -> None:
        """Add NaN and Inf of an input's tensor."""
        with self._lock:
            counts = self.nonfinite.setdefault((number, name), [0, 0])
            counts[0] += nans
            counts[1] += infinities

    def overflow(self, name: str, count: int) -> None:
        """Add finite results that the output's dtype cannot hold."""
        with self._lock:
            self.overflows[name] = self.overflows.get(name, 0) + count

    def differs(self, name: str) -> None:
        """Add a buffer that should be equal in all inputs."""
        with self._lock:
            self.unequal.add(name)

    def fatal(self, plan: Plan) -> bool:
        """Tell whether the merge will be refused at the end."""
        return bool(self.unequal or self.overflows or (self.nonfinite and not plan.allow_nonfinite))

    def check(self, plan: Plan) -> None:
        """Refuse what was found, all of it in one message.

        Raises:
            CheckpointError: buffers that differ, NaN or Inf, results out of range.
        """
        faults = [
            *_unequal(sorted(self.unequal)),
            *([] if plan.allow_nonfinite else _nonfinite(plan, self.nonfinite)),
            *_overflows(self.overflows),
        ]
        if faults:
            raise CheckpointError("\n".join(faults))


class Scratch:
    """Buffers of one thread, made once and used for every chunk."""

    def __init__(self) -> None:
        """No buffers yet."""
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, use: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a flat buffer; its contents are whatever they were."""
        if count > CHUNK:  # a tensor that is read in one piece: not kept
            return torch.empty(count, dtype=dtype)
        if (use, dtype) not in self._kept:
            self._kept[use, dtype] = torch.empty(CHUNK, dtype=dtype)
        kept = self._kept[use, dtype]
        return kept if count == CHUNK else kept[:count]


def compute(plan: Plan, item: Item, scratch: Scratch, census: Census, sink: Sink) -> None:
    """Make one item for all outputs.

    Raises:
        CheckpointError: an input cannot be read.
    """
    treatments = [target.treatments[item.name] for target in plan.targets]
    if all(treatment.linear for treatment in treatments):
        _combined(plan, item, treatments, scratch, census, sink)
        return
    for number, treatment in enumerate(treatments):
        _applied(plan, item, number, treatment, scratch, census, sink)


def _combined(
    plan: Plan,
    item: Item,
    treatments: Sequence[Treatment],
    scratch: Scratch,
    census: Census,
    sink: Sink,
) -> None:
    """Read every input once, and add it to the sums of all outputs."""
    [sources] = plan.sources([item.name])
    totals: list[Tensor] = []
    for i, (checkpoint, name) in enumerate(sources):
        term = _term(checkpoint, name, item, scratch, wide=i > 0)
        for number, treatment in enumerate(treatments):
            linear = _linear(treatment)
            if i == 0:
                totals.append(scratch.get(f"total {number}", WIDE, len(term)))
            accumulate(totals[number], term, linear.coefficients[i], first=i == 0)
    for number, (treatment, total) in enumerate(zip(treatments, totals, strict=True)):
        divide(total, _linear(treatment).divisor)
        sink(
            number, item.name, item.start, _narrowed(plan, item, treatment, total, scratch, census)
        )


def _applied(
    plan: Plan,
    item: Item,
    number: int,
    treatment: Treatment,
    scratch: Scratch,
    census: Census,
    sink: Sink,
) -> None:
    """Read the inputs side by side, and call the treatment's function over each chunk."""
    chunk = item.stop - item.start if treatment.whole else side_by_side(plan, treatment)
    pieces = [
        Item(item.name, start, min(start + chunk, item.stop))
        for start in range(item.start, item.stop, chunk)
    ]
    numbers = []
    if treatment.measure:
        gathered = (_gathered(plan, piece, treatment)[0] for piece in pieces)
        parts = [measured_blocks(tensors, treatment.measure) for tensors in gathered]
        numbers = [reduce(torch.add, (part for some in parts for part in some))]
    for piece in pieces:
        groups = _gathered(plan, piece, treatment)
        try:
            result = _called(plan, treatment, groups, numbers)
        except Unequal:
            census.differs(item.name)
            return
        if treatment.dtype.is_floating_point:
            result = _narrowed(plan, piece, treatment, result, scratch, census)
        sink(number, item.name, piece.start, result)


def side_by_side(plan: Plan, treatment: Treatment) -> int:
    """Return how many elements of all inputs are held at once: whole blocks, about 32 MB."""
    tensors = len(plan.inputs) * len(treatment.reads)
    return max(BLOCK, min(CHUNK, (32 << 20) // (8 * tensors) // BLOCK * BLOCK))


def _called(
    plan: Plan, treatment: Treatment, groups: Sequence[Sequence[Tensor]], numbers: Sequence[Tensor]
) -> Tensor:
    assert treatment.function is not None  # what is not linear has one
    if not treatment.whole:
        return treatment.function(*groups, *numbers)
    shape = plan.inputs[0].info(treatment.reads[0]).shape
    shaped = [[tensor.view(shape) for tensor in group] for group in groups]
    result = treatment.function(*shaped)
    if not isinstance(result, Tensor) or tuple(result.shape) != shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise CheckpointError(
            f"{treatment.label} made {got} of '{printable(treatment.reads[0])}', which has shape "
            f"{shape}; the function must return a tensor of its inputs' shape"
        )
    return result.reshape(-1)


def _gathered(plan: Plan, item: Item, treatment: Treatment) -> list[list[Tensor]]:
    """Return a stretch of every input, a list for each name that is read, in fp64 unless exact."""
    groups = plan.sources(treatment.reads)
    found = []
    for group in groups:
        raws = [checkpoint.read(name, item.start, item.stop) for checkpoint, name in group]
        found.append(raws if treatment.exact else [raw.to(WIDE) for raw in raws])
    return found


def _term(checkpoint: Checkpoint, name: str, item: Item, scratch: Scratch, *, wide: bool) -> Tensor:
    """Return a stretch of one input, wide or as it is; complex numbers as pairs."""
    info = checkpoint.info(name)
    raw = scratch.get("raw", info.dtype, item.stop - item.start)
    info.source.fill(raw, item.start)
    if raw.is_complex():
        raw = torch.view_as_real(raw).reshape(-1)
    if not wide or raw.dtype == WIDE:
        return raw
    return scratch.get("term", WIDE, len(raw)).copy_(raw)


def _linear(treatment: Treatment) -> Linear:
    assert treatment.linear is not None  # the caller has looked
    return treatment.linear


def _narrowed(
    plan: Plan,
    item: Item,
    treatment: Treatment,
    total: Tensor,
    scratch: Scratch,
    census: Census,
) -> Tensor:
    """Round to the output's dtype, and count what is not finite."""
    real = treatment.dtype.to_real() if treatment.dtype.is_complex else treatment.dtype
    limit = torch.finfo(real).max
    narrow = scratch.get("narrow", real, len(total)).copy_(total)
    low, high = torch.aminmax(narrow if narrow.element_size() > 1 else total)
    if not (float(low) >= -limit and float(high) <= limit):  # NaN compares as false
        _count(plan, item, treatment, narrow, census)
    if treatment.dtype.is_complex:
        return torch.view_as_complex(narrow.view(-1, 2))
    return narrow


def _count(plan: Plan, item: Item, treatment: Treatment, narrow: Tensor, census: Census) -> None:
    """Look for the NaN and Inf of a stretch in the inputs; else the output's dtype is too small."""
    found = False
    for group in plan.sources(treatment.reads):
        for number, (checkpoint, name) in enumerate(group):
            values = checkpoint.read(name, item.start, item.stop)
            values = values if values.dtype.itemsize > 1 else values.float()
            nans, infinities = int(values.isnan().sum()), int(values.isinf().sum())
            if nans or infinities:
                found = True
                census.count(number, name, nans, infinities)
    lost = int((~torch.isfinite(narrow.float())).sum())
    if lost and not found:
        census.overflow(item.name, lost)


def _unequal(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{len(names):,} integer or boolean tensors differ between the checkpoints: "
        f"{listed(names)}; say what becomes of them: --policy '{printable(names[0])}=first' "
        "(or last, max, sum, mean)"
    ]


def _nonfinite(plan: Plan, counts: dict[tuple[int, str], list[int]]) -> list[str]:
    if not counts:
        return []
    lines = [
        f"  '{printable(plan.inputs[number].path)}', '{printable(name)}': {nans:,} NaN, {inf:,} Inf"
        for (number, name), (nans, inf) in sorted(counts.items())
    ]
    more = [f"  and {len(lines) - _SHOWN:,} more tensors"] if len(lines) > _SHOWN else []
    total = sum(map(sum, counts.values()))
    head = f"{total:,} values of the inputs are not finite; leave those checkpoints or tensors out "
    head += "(--exclude), or let them through with --allow-nonfinite"
    return ["\n".join([head, *lines[:_SHOWN], *more])]


def _overflows(counts: dict[str, int]) -> list[str]:
    return [
        f"'{printable(name)}': {count:,} results are too large for the output's dtype; choose a "
        "wider one: --dtype float32"
        for name, count in sorted(counts.items())[:_SHOWN]
    ]

"""Make a stretch of an output out of the inputs' bytes: one wide sum, one rounding, one check."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from polyfuse.checkpoints.base import Source
from polyfuse.dtypes import DType, Elements, as_elements, as_tensor, dtype_of, is_tensor
from polyfuse.errors import CheckpointError, printable
from polyfuse.merge.base import BLOCK, WIDE, Linear, accumulate, divide, measured_blocks
from polyfuse.merge.buffers import Unequal
from polyfuse.streaming.base import CHUNK, Item, Plan, Treatment, beside, listed

if TYPE_CHECKING:
    from torch import Tensor

Sink = Callable[[int, str, int, Elements], None]  # (number of the output, name, start, elements)
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
    """Buffers of one thread, made once and used for every chunk; and how it makes its tensor."""

    def __init__(self) -> None:
        """No buffers yet."""
        self._bits: dict[tuple[str, str], Elements] = {}
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._name = ""
        self._work: Work | None = None

    def bits(self, use: str, dtype: DType, count: int) -> Elements:
        """Return room for the bits of a chunk; they are whatever they were."""
        if count > CHUNK:  # a tensor that is read in one piece: not kept
            return dtype.empty(count)
        key = (use, dtype.name)
        if key not in self._bits:
            self._bits[key] = dtype.empty(CHUNK)
        kept = self._bits[key]
        return kept if count == CHUNK else kept[:count]

    def tensor(self, use: str, dtype: DType, count: int) -> tuple[Elements, Tensor]:
        """Return room for a chunk twice: its bits, and a flat tensor over the same memory."""
        elements, key = self.bits(use, dtype, count), (use, dtype.name)
        if count != CHUNK:
            return elements, as_tensor(elements, dtype)
        if key not in self._tensors:
            self._tensors[key] = as_tensor(elements, dtype)
        return elements, self._tensors[key]

    def work(self, plan: Plan, name: str) -> Work:
        """Return what is to be done for a tensor; it has many chunks in a row."""
        if self._work is None or self._name != name:
            self._name, self._work = name, work(plan, name)
        return self._work


class Work(NamedTuple):
    """How a tensor is made, looked up once for all of its chunks.

    Attributes:
        treatments: one an output.
        linears: the coefficients of each, where all of them are linear.
        sources: where the elements come from, with their dtypes.
    """

    treatments: Sequence[Treatment]
    linears: Sequence[Linear] | None
    sources: Sequence[tuple[Source, DType]]


def work(plan: Plan, name: str) -> Work:
    """Look up how a tensor is made."""
    treatments = [target.treatments[name] for target in plan.targets]
    linears = [treatment.linear for treatment in treatments if treatment.linear]
    infos = [checkpoint.info(each) for checkpoint, each in beside(plan.inputs, plan.columns[name])]
    sources = [(info.source, info.dtype) for info in infos]
    return Work(treatments, linears if len(linears) == len(treatments) else None, sources)


def compute(plan: Plan, item: Item, scratch: Scratch, census: Census, sink: Sink) -> None:
    """Make one item for all outputs.

    Raises:
        CheckpointError: an input cannot be read.
    """
    todo = scratch.work(plan, item.name)
    if todo.linears:
        _combined(plan, item, todo, scratch, census, sink)
        return
    for number, treatment in enumerate(todo.treatments):
        _applied(plan, item, number, treatment, scratch, census, sink)


def _combined(
    plan: Plan, item: Item, todo: Work, scratch: Scratch, census: Census, sink: Sink
) -> None:
    """Read every input once, and add it to the sums of all outputs."""
    assert todo.linears is not None  # the caller has looked
    totals: list[Tensor] = []
    for i, (source, dtype) in enumerate(todo.sources):
        term = _term(source, dtype, item, scratch, wide=i > 0)
        for number, linear in enumerate(todo.linears):
            if i == 0:
                totals.append(scratch.tensor(f"total {number}", WIDE, len(term))[1])
            accumulate(totals[number], term, linear.coefficients[i], first=i == 0)
    for number, (linear, total) in enumerate(zip(todo.linears, totals, strict=True)):
        divide(total, linear.divisor)
        result = _narrowed(plan, item, todo.treatments[number], total, scratch, census)
        sink(number, item.name, item.start, result)


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
        numbers = [reduce(operator.add, (part for some in parts for part in some))]
    for piece in pieces:
        groups = _gathered(plan, piece, treatment)
        try:
            result = _called(plan, treatment, groups, numbers)
        except Unequal:
            census.differs(item.name)
            return
        if treatment.dtype.is_floating_point:
            made = _narrowed(plan, piece, treatment, result, scratch, census)
        else:
            made = as_elements(result.contiguous())
        sink(number, item.name, piece.start, made)


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
    if not is_tensor(result) or tuple(result.shape) != shape:
        got = tuple(result.shape) if is_tensor(result) else type(result).__name__
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
        found.append(raws if treatment.exact else [raw.to(WIDE.torch) for raw in raws])
    return found


def _term(source: Source, dtype: DType, item: Item, scratch: Scratch, *, wide: bool) -> Tensor:
    """Return a stretch of one input, wide or as it is; complex numbers as pairs.

    torch would widen a term by itself, in new memory each time.
    """
    elements, term = scratch.tensor("raw", dtype, item.stop - item.start)
    source.fill(elements, item.start)
    if dtype.is_complex:
        import torch

        term = torch.view_as_real(term).reshape(-1)
    if not wide or dtype == WIDE:
        return term
    return scratch.tensor("term", WIDE, len(term))[1].copy_(term)


def _narrowed(
    plan: Plan,
    item: Item,
    treatment: Treatment,
    total: Tensor,
    scratch: Scratch,
    census: Census,
) -> Elements:
    """Round to the output's dtype, and count what is not finite."""
    import torch

    real = (
        dtype_of(treatment.dtype.torch.to_real()) if treatment.dtype.is_complex else treatment.dtype
    )
    limit = torch.finfo(real.torch).max
    elements, narrow = scratch.tensor("narrow", real, len(total))
    narrow.copy_(total)
    low, high = torch.aminmax(narrow if real.itemsize > 1 else total)
    made = elements.view(treatment.dtype.raw)
    if not (float(low) >= -limit and float(high) <= limit):  # NaN compares as false
        count_nonfinite(plan, item, treatment, made, census)
    return made


def count_nonfinite(
    plan: Plan, item: Item, treatment: Treatment, made: Elements, census: Census
) -> None:
    """Look for the NaN and Inf of a stretch in the inputs; else the output's dtype is too small."""
    import torch

    found = False
    for group in plan.sources(treatment.reads):
        for number, (checkpoint, name) in enumerate(group):
            values = checkpoint.read(name, item.start, item.stop)
            values = values if values.dtype.itemsize > 1 else values.float()
            nans, infinities = int(values.isnan().sum()), int(values.isinf().sum())
            if nans or infinities:
                found = True
                census.count(number, name, nans, infinities)
    real = as_tensor(made, treatment.dtype)
    lost = int(
        (~(torch.view_as_real(real) if real.is_complex() else real).float().isfinite()).sum()
    )
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

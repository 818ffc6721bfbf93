"""Plan a merge from headers alone: every tensor of every output, all faults at once, its cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from polyfuse.checkpoints.base import Checkpoint, File, Layout, Slot
from polyfuse.checkpoints.layouts import FOLDERS, format_of, layout_for
from polyfuse.dtypes import DType
from polyfuse.errors import CheckpointError, PolyfuseError, printable
from polyfuse.merge.base import BLOCK, WIDE
from polyfuse.statedict import match_names
from polyfuse.streaming.base import (
    CHUNK,
    SHOWN,
    Item,
    Plan,
    Request,
    Target,
    beside,
    listed,
    short,
)
from polyfuse.streaming.treatments import buffer_notes, checked_options, method_named, treatment


def make_plan(
    inputs: Sequence[Checkpoint],
    requests: Sequence[Request],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_nonfinite: bool = False,
    threads: int = 1,
    lay_out: Callable[..., Layout] = layout_for,
) -> Plan:
    """Plan outputs that are made of the same inputs in one reading pass.

    Args:
        inputs: open checkpoints, in order.
        requests: the outputs.
        include: patterns (`*`, `?`) of the first checkpoint's names to take; all by default.
        exclude: patterns of names to leave out.
        allow_nonfinite: let NaN and Inf through.
        threads: that will work side by side.
        lay_out: how an output's files are laid out.

    Raises:
        CheckpointError: keys, shapes or kinds that do not match, all of them; nothing to merge.
        PolyfuseError: an unknown method, option or policy.

    Example:
        >>> make_plan([], [Request()])
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: no checkpoints to merge; name one or more
    """
    if not inputs:
        raise CheckpointError("no checkpoints to merge; name one or more")
    titles = [str(checkpoint.path) for checkpoint in inputs]
    chosen = [list(_chosen(checkpoint.names(), include, exclude)) for checkpoint in inputs]
    match = match_names(chosen, titles)
    aliases, untied = _tied(inputs, match.columns)
    columns = {name: column for name, column in match.columns.items() if name not in aliases}
    faults = [*match.faults, *_mismatches(inputs, columns)]
    if faults:
        raise CheckpointError(_all(faults))
    if not columns:
        raise CheckpointError(_nothing(inputs[0], include, exclude))
    notes = [*match.notes, *untied]
    targets = tuple(_target(r, inputs, columns, aliases, notes, lay_out) for r in requests)
    items = tuple(_items(inputs, columns, targets))
    return Plan(
        inputs=tuple(inputs),
        columns=columns,
        aliases=aliases,
        targets=targets,
        items=items,
        notes=tuple(dict.fromkeys(notes)),
        threads=threads,
        allow_nonfinite=allow_nonfinite,
        patterns={"include": tuple(include), "exclude": tuple(exclude)},
        bytes_read=_bytes_read(inputs, columns, targets),
        bytes_written=sum(slot.nbytes for target in targets for slot in target.slots.values()),
        peak_memory=threads * _largest(inputs, columns, targets, items),
    )


def _chosen(names: Iterator[str], include: Sequence[str], exclude: Sequence[str]) -> Iterator[str]:
    for name in names:
        wanted = not include or any(fnmatchcase(name, pattern) for pattern in include)
        if wanted and not any(fnmatchcase(name, pattern) for pattern in exclude):
            yield name


def _nothing(first: Checkpoint, include: Sequence[str], exclude: Sequence[str]) -> str:
    patterns = ", ".join(f"'{printable(p)}'" for p in (*include, *exclude))
    names = ", ".join(
        f"'{printable(n)}'" for _, n in zip(range(SHOWN), first.names(), strict=False)
    )
    if not patterns:
        return f"'{printable(first.path)}' holds no tensors; name another file or --key"
    return f"no tensor is left by the patterns {patterns}; names are like {names}"


def _tied(
    inputs: Sequence[Checkpoint], columns: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, str], list[str]]:
    """Return names that are tied to another one in every input, and what is tied in some only."""
    kept: dict[tuple[str, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, column in columns.items():
        own = zip(inputs, column, strict=True)
        storage = tuple(checkpoint.aliases.get(each, each) for checkpoint, each in own)
        if storage in kept:
            aliases[name] = kept[storage]
        kept.setdefault(storage, name)
    loose = [
        name
        for name, column in columns.items()
        if name not in aliases
        and any(each in checkpoint.aliases for checkpoint, each in zip(inputs, column, strict=True))
    ]
    notes = (
        [f"{listed(loose)} tied in some checkpoints only, so not in the result"] if loose else []
    )
    return aliases, notes


def _mismatches(
    inputs: Sequence[Checkpoint], columns: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """Yield shapes and kinds that differ from the first checkpoint's, grouped by checkpoint."""
    for number, other in enumerate(inputs[1:], 1):
        shapes, kinds = [], []
        for name, column in columns.items():
            ours, theirs = inputs[0].info(name), other.info(column[number])
            if ours.shape != theirs.shape:
                shapes.append(f"'{printable(name)}' {list(theirs.shape)}, not {list(ours.shape)}")
            elif _kind(ours.dtype) != _kind(theirs.dtype):
                kinds.append(f"'{printable(name)}' {short(theirs.dtype)}, not {short(ours.dtype)}")
        title = f"'{printable(other.path)}' against '{printable(inputs[0].path)}'"
        for what, found in (("shapes", shapes), ("kinds of number", kinds)):
            if found:
                more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
                shown = "; ".join(found[:SHOWN])
                yield f"{title}: {len(found):,} {what} differ: {shown}{more}"


def _all(faults: Sequence[str]) -> str:
    return (
        "these checkpoints do not match:\n"
        + "\n".join(f"  {fault}" for fault in faults)
        + "\nmerge checkpoints of one model, or leave tensors out: --exclude 'PATTERN'; "
        "`polyfuse inspect` shows every difference"
    )


def _target(
    request: Request,
    inputs: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    aliases: Mapping[str, str],
    notes: list[str],
    lay_out: Callable[..., Layout],
) -> Target:
    method = method_named(request.method)
    linear = checked_options(method, request, len(inputs))
    shares = (linear.shares() if linear else None) or (1 / len(inputs),) * len(inputs)
    unused = [p for p in request.policies if not any(fnmatchcase(n, p) for n in columns)]
    if unused:
        raise PolyfuseError(f"no tensor fits the policy pattern {listed(unused)}")
    treatments = {
        name: treatment(name, request, method, linear, shares, inputs, columns) for name in columns
    }
    notes += buffer_notes(treatments, inputs, columns, request)
    slots = {
        name: Slot(name, treatment.dtype, inputs[0].info(name).shape)
        for name, treatment in treatments.items()
    }
    layout = _layouts(lay_out, request, tuple(slots.values()), aliases, inputs[0])
    return Target(request, treatments, slots, layout)


def _layouts(
    lay_out: Callable[..., Layout],
    request: Request,
    slots: Sequence[Slot],
    aliases: Mapping[str, str],
    first: Checkpoint,
) -> Callable[[Mapping[str, str]], Layout] | None:
    """Return what lays out the files of an output, given its metadata."""
    if request.out is None:
        return None
    form = request.form or format_of(request.out, first.format)
    paths = first.facts.get("side_files", ()) if form in FOLDERS else ()
    side_files = [(Path(path).name, _contents(Path(path))) for path in paths]

    def laid_out(note: Mapping[str, str]) -> Layout:
        return lay_out(
            request.out,
            slots,
            aliases=aliases,
            note=note,
            form=form,
            max_shard_size=request.max_shard_size,
            side_files=side_files,
        )

    laid_out({})  # what the format cannot hold is known before any work
    return laid_out


def _contents(path: Path) -> bytes:
    file = File(path)
    try:
        return file.read(0, file.size)
    finally:
        file.close()


def _items(
    inputs: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    targets: Sequence[Target],
) -> Iterator[Item]:
    """Yield the work in the order of the first input's files, tensors cut into chunks."""
    for name in sorted(columns, key=lambda n: inputs[0].info(n).order):
        count = inputs[0].info(name).count
        together = any(target.treatments[name].measure for target in targets)
        size = count if together or _whole(inputs, columns, targets, name) else CHUNK
        for start in range(0, count, max(size, 1)):
            yield Item(name, start, min(start + size, count))


def _whole(
    inputs: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    targets: Sequence[Target],
    name: str,
) -> bool:
    """Tell whether a tensor is read in one piece: its source, or a function, wants that."""
    reads = {read for target in targets for read in target.treatments[name].reads}
    sources = (c.info(each).source for read in reads for c, each in beside(inputs, columns[read]))
    return any(target.treatments[name].whole for target in targets) or any(
        source.whole for source in sources
    )


def _bytes_read(
    inputs: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    targets: Sequence[Target],
) -> int:
    total = 0
    for name in columns:
        reads = {read for target in targets for read in target.treatments[name].reads}
        passes = 2 if any(target.treatments[name].measure for target in targets) else 1
        total += passes * sum(
            c.info(x).nbytes for r in reads for c, x in beside(inputs, columns[r])
        )
    return total


def _largest(
    inputs: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    targets: Sequence[Target],
    items: Sequence[Item],
) -> int:
    """Return the bytes of the buffers that one thread needs, at most."""
    most = 0
    for item in items:
        treatments = [target.treatments[item.name] for target in targets]
        whole = any(t.whole for t in treatments) or _whole(inputs, columns, targets, item.name)
        count = item.stop - item.start if whole else min(item.stop - item.start, CHUNK)
        side = max((len(inputs) * len(t.reads) for t in treatments if not t.linear), default=1)
        held = count if whole else min(count, max(BLOCK, (32 << 20) // (8 * side)))
        sums = count * (8 + WIDE.itemsize * (1 + len(targets)) + 8)
        most = max(most, sums, held * side * (8 + 2 * WIDE.itemsize))
    return most


def _kind(dtype: DType) -> str:
    """Return what may be merged with each other: any floats; integers of one dtype."""
    return "floating" if dtype.is_floating_point else str(dtype)

"""What is in checkpoints, whether they can be averaged, and whether that makes sense."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyfuse.checkpoints import open_checkpoint
from polyfuse.errors import CheckpointError, printable
from polyfuse.inspection.base import Progress
from polyfuse.inspection.comparison import Comparison, compare, farthest
from polyfuse.inspection.contents import Contents, contents
from polyfuse.inspection.distances import SAMPLE, Distances, Matrix
from polyfuse.tables import Table, amount

__all__ = ["SAMPLE", "Inspection", "inspect_checkpoints"]
_SHOWN = 8


@dataclass(frozen=True)
class Inspection:
    """What was found in one checkpoint or several.

    Attributes:
        contents: of each checkpoint.
        comparison: of all, where there are several.
    """

    contents: Sequence[Contents]
    comparison: Comparison | None

    def facts(self) -> dict[str, Any]:
        """Return all as plain data, for JSON."""
        each = [
            {"tensors": one.tensors, "bytes": one.nbytes, **_plain(asdict(one))}
            for one in self.contents
        ]
        for one in each:
            del one["nbytes"]
        found = self.comparison
        if found is None:
            return {"checkpoints": each, "comparison": None}
        return {
            "checkpoints": each,
            "comparison": {
                "averageable": found.verdict,
                "faults": list(found.faults),
                "options": list(found.options),
                "notes": list(found.notes),
                "warnings": list(found.warnings),
                "same": [list(group) for group in found.same],
                **(_measured(found.distances) if found.distances else {}),
            },
        }

    def tables(self) -> list[Table]:
        """Return what is shown as tables: the checkpoints, and how far each is from the mean."""
        if self.comparison is None:
            return []
        tables = [_overview(self.contents)]
        if self.comparison.distances and len(self.contents) > 2:
            tables.append(_from_mean(self.contents, self.comparison.distances))
        return tables

    def lines(self) -> list[str]:
        """Return what is said beside the tables, a line each."""
        if self.comparison is None:
            return [line for one in self.contents for line in _described(one)]
        several = [line for one in self.contents for line in _remarks(one)]
        return [*several, *_compared(self.contents, self.comparison)]


def inspect_checkpoints(
    paths: Sequence[str | Path],
    *,
    key: str | None = None,
    sample: int | None = SAMPLE,
    check_values: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Look into checkpoints; for several, tell whether they can be averaged and should be.

    Args:
        paths: files, folders, or `file.pt[0]`.
        key: the state dict inside each file; by default the usual one.
        sample: elements to read at most to measure distances, of all checkpoints together; None
            reads all.
        check_values: read everything and count NaN and Inf.
        progress: called with ("inspect", bytes done, all, "").

    Raises:
        CheckpointError: no checkpoint, or damaged ones; all of them are named.

    Example:
        >>> import tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> for i in (1, 2):
        ...     torch.save({"w": torch.eye(2) * i}, f"{folder}/{i}.pt")
        >>> inspect_checkpoints([f"{folder}/1.pt", f"{folder}/2.pt"]).comparison.verdict
        'yes'
    """
    with ExitStack() as stack:
        opened, faults = [], []
        for path in paths:
            try:
                opened.append(stack.enter_context(open_checkpoint(path, key)))
            except CheckpointError as error:
                faults.append(str(error))
        if faults or not opened:
            raise CheckpointError("\n".join(faults) or "no checkpoints to inspect; name one")
        found = [contents(checkpoint, check_values=check_values) for checkpoint in opened]
        if len(opened) == 1:
            return Inspection(found, None)
        told = progress or (lambda *_: None)
        return Inspection(found, compare(opened, sample=sample, progress=told))


def _described(one: Contents) -> Iterator[str]:
    """Yield what one checkpoint holds, a line each."""
    facts = one.facts
    files = "1 file" if one.files == 1 else f"{one.files:,} files"
    yield f"{printable(one.path)}: {one.format}, {files}, {amount(one.nbytes)} of tensors"
    yield _line("tensors", ", ".join(f"{dtype} {n:,}" for dtype, n in one.dtypes.items()))
    yield _line("parameters", f"{one.parameters:,}")
    yield _line("buffers", ", ".join(f"{kind} {n:,}" for kind, n in one.buffers.items()) or "none")
    for group in one.tied[:_SHOWN]:
        yield _line("tied", " = ".join(map(printable, group)))
    if facts.get("key"):
        yield _line("state dict", _keys(facts))
    for name in ("epoch", "step"):
        if name in facts:
            yield _line(name, printable(facts[name]))
    for name, value in list(facts.get("metrics", {}).items())[:_SHOWN]:
        yield _line("metric", f"{printable(name)} {value:.6g}")
    if one.nonfinite is not None:
        yield _line("values", "all finite" if not one.nonfinite else "NaN or Inf, see below")
    yield from _remarks(one)


def _line(label: str, text: str) -> str:
    return f"  {label:<12}{text}"


def _keys(facts: Mapping[str, Any]) -> str:
    keys = facts.get("keys") or {}
    others = [
        f"'{printable(name)}'{' (EMA)' if name in facts.get('ema', ()) else ''}"
        for name in keys
        if name != facts["key"]
    ]
    more = f"; --key chooses {', '.join(others[:_SHOWN])}" if others else ""
    return f"'{printable(facts['key'])}'{more}"


def _remarks(one: Contents) -> Iterator[str]:
    """Yield what is special about one checkpoint."""
    shown = printable(one.path)
    for group in one.equal[:_SHOWN]:
        names = " = ".join(map(printable, group))
        yield f"Note: {shown}: the same bytes, though not tied: {names}"
    for note in one.notes:
        yield f"Note: {shown}: {printable(note, 1000)}"
    if one.nonfinite:
        worst = list(one.nonfinite.items())[:_SHOWN]
        listing = ", ".join(f"'{printable(name)}' {count:,}" for name, count in worst)
        more = f" and {len(one.nonfinite) - len(worst):,} more" if len(one.nonfinite) > 8 else ""
        yield f"Warning: {shown}: NaN or Inf in {listing}{more}"


def _overview(found: Sequence[Contents]) -> Table:
    names = ["epoch", "step"]
    used = [name for name in names if any(name in one.facts for one in found)]
    rows = [
        [
            printable(one.path),
            one.format,
            f"{one.tensors:,}",
            f"{one.parameters:,}",
            max(one.dtypes, key=one.dtypes.__getitem__, default=""),
            amount(one.nbytes),
            *(printable(one.facts.get(name, "")) for name in used),
        ]
        for one in found
    ]
    columns = ["checkpoint", "format", "tensors", "parameters", "dtype", "size", *used]
    return Table(f"{len(found)} checkpoints", columns, rows)


def _from_mean(found: Sequence[Contents], measured: Distances) -> Table:
    rows = [
        [printable(one.path), f"{cosine:.4f}", f"{apart:.4f}"]
        for one, (cosine, apart) in zip(found, measured.from_mean, strict=True)
    ]
    return Table("Against their mean", ["checkpoint", "cosine", "distance"], rows)


def _compared(found: Sequence[Contents], comparison: Comparison) -> Iterator[str]:
    mind = "; but mind the warning" if comparison.warnings else ""
    yield f"Can they be averaged: {comparison.verdict}{mind}"
    yield from (f"  {fault}" for fault in comparison.faults)
    yield from (f"Note: {note}" for note in comparison.notes)
    measured = comparison.distances
    if measured is not None:
        i, j, cosine, apart = farthest(measured)
        pair = f"{printable(found[i].path)} and {printable(found[j].path)}"
        which = "Farthest apart: " if len(found) > 2 else ""
        part = measured.measured / measured.total
        of = "" if part == 1 else f" (from {part:.0%} of the weights; --exact reads all)"
        yield f"{which}{pair}: cosine {cosine:.4f}, relative distance {apart:.4f}{of}"
    yield from (f"Warning: {warning}" for warning in comparison.warnings)


def _measured(measured: Distances) -> dict[str, Any]:
    return {
        "measured": measured.measured,
        "weights": measured.total,
        "cosine": _numbers(measured.cosines),
        "distance": _numbers(measured.distances),
        "mean": [{"cosine": _number(c), "distance": _number(d)} for c, d in measured.from_mean],
        "lowest": [
            {"tensor": name, "cosine": _number(c)} for name, c in measured.lowest()[:_SHOWN]
        ],
    }


def _numbers(matrix: Matrix) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in matrix.tolist()]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return data as JSON has it: no NaN, names as text."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _number(value) if isinstance(value, float) else value

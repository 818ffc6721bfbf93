"""Carry out a merge for the command line: the plan as a table, the work as a bar, the result."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfuse.errors import printable

if TYPE_CHECKING:
    from polyfuse.checkpoint_sets import Chosen
    from polyfuse.checkpoints.base import Checkpoint
    from polyfuse.digests import Digests
    from polyfuse.streaming.base import Plan
    from polyfuse.weights import Averaged

ALWAYS = ("checkpoint", "tensors", "dtype", "size")  # columns that say something of every merge
HASHED = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp"}


@contextmanager
def hashing(paths: Sequence[Path], *, wanted: bool) -> "Iterator[Digests | None]":
    """Begin to hash the inputs in the background: another core is idle while torch is imported."""
    if not wanted:
        yield None
        return
    from polyfuse.digests import Digests
    from polyfuse.remembered import Remembered, cache_file

    with Digests(os.cpu_count() or 1, Remembered(cache_file())) as digests:
        digests.begin_apart(file for path in paths for file in _files(path))
        yield digests


def _files(path: Path) -> list[Path]:
    """Return the files that hold weights, as far as names tell; the engine hashes what is left."""
    if not path.is_dir():
        return [path]
    return [each for each in sorted(path.iterdir()) if each.suffix in HASHED]


def fuse(
    out: Path | None,
    chosen: "Sequence[Chosen]",
    settings: dict[str, Any],
    *,
    dry_run: bool,
    show: bool,
    quiet: bool,
) -> "Averaged":
    """Show the plan and carry it out.

    Args:
        out: file or folder to write.
        chosen: the inputs.
        settings: of `polyfuse.average`; dtype and sizes as they were typed.
        dry_run: do not carry it out.
        show: the plan.
        quiet: no progress.

    Raises:
        PolyfuseError: see `polyfuse.average`.
    """
    paths = [one.path for one in chosen]
    with hashing(paths, wanted=settings["checksums"] and not dry_run) as digests:
        from polyfuse.checkpoints.layouts.base import parse_size
        from polyfuse.terminal import Bars
        from polyfuse.weights import average as averaged

        size = settings["max_shard_size"]
        settings = settings | {
            "max_shard_size": None if size is None else parse_size(size),
        }
        if dry_run or show:
            planned = averaged(paths, out, dry_run=True, **settings)
            if show:
                _show_plan(chosen, planned)
            if dry_run:
                return planned
        with Bars(quiet=quiet, in_bytes=True) as bars:
            return averaged(paths, out, digests=digests, progress=bars, **settings)


def _shares(plan: "Plan") -> list[float | None]:
    """Return the weight of each input, where the method has weights."""
    request, treatments = plan.targets[0].request, plan.targets[0].treatments.values()
    linear = next((t.linear for t in treatments if t.linear and t.label == request.method), None)
    if linear is None:
        return [None] * len(plan.inputs)
    return [coefficient / linear.divisor for coefficient in linear.coefficients]


def facts(out: Path | None, chosen: "Sequence[Chosen]", done: "Averaged") -> dict[str, Any]:
    """Return what was done, or is planned, as plain data."""
    plan = done.plan
    target = plan.targets[0]
    return {
        "out": None if out is None else str(out),
        "written": done.seconds is not None,
        "method": target.request.method,
        "inputs": [
            {
                "path": str(one.path),
                "number": one.number,
                "metric": one.value,
                "weight": share,
                "format": checkpoint.format,
                "key": checkpoint.facts.get("key"),
                "tensors": len(checkpoint.tensors),
                "bytes": sum(info.nbytes for info in checkpoint.tensors.values()),
            }
            for one, checkpoint, share in zip(chosen, plan.inputs, _shares(plan), strict=True)
        ],
        "tensors": len(target.slots),
        "tied": len(plan.aliases),
        "dtypes": _dtypes(slot.dtype for slot in target.slots.values()),
        "treatments": dict(Counter(t.label for t in target.treatments.values())),
        "notes": list(plan.notes),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "peak_memory": plan.peak_memory,
        "threads": plan.threads,
        "seconds": done.seconds,
    }


def _dtypes(dtypes: Iterable[object]) -> dict[str, int]:
    return dict(Counter(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _show_plan(chosen: "Sequence[Chosen]", planned: "Averaged") -> None:
    from polyfuse.tables import Table, amount
    from polyfuse.terminal import show_table, show_text

    plan = planned.plan
    rows = [
        _row(one, checkpoint, share)
        for one, checkpoint, share in zip(chosen, plan.inputs, _shares(plan), strict=True)
    ]
    columns = ["checkpoint", "by", "weight", "key", "tensors", "dtype", "size"]
    used = [i for i, name in enumerate(columns) if name in ALWAYS or any(row[i] for row in rows)]
    table = Table(
        f"{len(rows)} checkpoints", [columns[i] for i in used], [[r[i] for i in used] for r in rows]
    )
    show_table(table)
    target = plan.targets[0]
    how = Counter(t.label for t in target.treatments.values())
    tied = f"; {len(plan.aliases):,} tied" if plan.aliases else ""
    dtypes = ", ".join(_dtypes(slot.dtype for slot in target.slots.values()))
    show_text("Tensors: " + ", ".join(f"{n:,} by {label}" for label, n in how.items()) + tied)
    show_text(
        f"Reads {amount(plan.bytes_read)}, writes {amount(plan.bytes_written)} of {dtypes}; "
        f"needs {amount(plan.peak_memory)} of memory, {plan.threads} threads"
    )
    for note in plan.notes:
        show_text(f"Note: {note}")


def _row(one: "Chosen", checkpoint: "Checkpoint", share: float | None) -> list[str]:
    from polyfuse.tables import amount

    infos = checkpoint.tensors.values()
    dtypes = _dtypes(info.dtype for info in infos)
    widest = max(dtypes, key=lambda name: dtypes[name], default="")
    by = one.number if one.value is None else one.value
    return [
        printable(one.path),
        "" if by is None else f"{by:.6g}" if isinstance(by, float) else str(by),
        "" if share is None else f"{share:.4g}",
        printable(checkpoint.facts.get("key") or ""),
        f"{len(infos):,}",
        widest + (f" +{len(dtypes) - 1}" if len(dtypes) > 1 else ""),
        amount(sum(info.nbytes for info in infos)),
    ]


def show_done(out: Path | None, done: "Averaged") -> None:
    """Say what was written, how fast, and what to type next."""
    from polyfuse.tables import amount
    from polyfuse.terminal import show_text

    if done.seconds is None:
        show_text("Nothing is written: this is a dry run.")
        return
    plan = done.plan
    speed = amount(plan.bytes_read / max(done.seconds, 1e-9))
    show_text(
        f"{out}: {plan.targets[0].request.method} of {len(plan.inputs)} checkpoints, "
        f"{amount(plan.bytes_written)} in {done.seconds:.2f} s ({speed}/s read)"
    )
    quoted = shlex.quote(str(out))
    show_text(f"Next: polyfuse verify {quoted}   polyfuse inspect {quoted}")

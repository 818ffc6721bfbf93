"""The verbs that look and change nothing: inspect and verify."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from polyfuse.cli.base import Argument, Json, Option, Quiet, app, told

if TYPE_CHECKING:
    from polyfuse.inspection import Inspection


@app.command(epilog="Example: polyfuse inspect checkpoints/")
def inspect(
    checkpoints: Annotated[
        list[str], Argument(metavar="CKPT", help="Files, globs, folders, file.pt[0].")
    ],
    key: Annotated[
        str | None, Option(metavar="KEY", help="The state dict inside each file [the usual one].")
    ] = None,
    check_values: Annotated[
        bool, Option("--check-values", help="Read everything, count NaN and Inf.")
    ] = False,
    exact: Annotated[
        bool, Option("--exact", help="Measure distances on all weights, not on a sample.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is in there; can these be averaged; what would it cost."""
    with told("inspect", as_json) as tell:
        from polyfuse.checkpoint_sets import choose

        paths = [one.path for one in choose(checkpoints)]
        from polyfuse.inspection import SAMPLE, inspect_checkpoints
        from polyfuse.terminal import Bars

        with Bars(quiet=quiet, in_bytes=True) as bars:
            found = inspect_checkpoints(
                paths,
                key=key,
                sample=None if exact else SAMPLE,
                check_values=check_values,
                progress=bars,
            )
        able = found.comparison is not None and not found.comparison.faults
        cost = _cost(paths, key) if able else None
        tell({**found.facts(), "cost": cost}, lambda: _show(found, cost))


def _cost(paths: Sequence[Path], key: str | None) -> dict[str, int]:
    """Return what averaging would cost."""
    from polyfuse.weights import average

    plan = average(paths, key=key, dry_run=True).plan
    names = ("bytes_read", "bytes_written", "peak_memory")
    return {name: getattr(plan, name) for name in names}


def _show(found: "Inspection", cost: dict[str, int] | None) -> None:
    from polyfuse.tables import amount
    from polyfuse.terminal import show_table, show_text

    for table in found.tables():
        show_table(table)
    for line in found.lines():
        show_text(line)
    if cost:
        read, written, memory = map(amount, cost.values())
        show_text(f"Averaging them reads {read}, writes {written}, needs {memory} of memory")


@app.command(epilog="Example: polyfuse verify averaged.safetensors")
def verify(
    out: Annotated[
        Path, Argument(metavar="OUT", help="What `polyfuse average` or `merge` has written.")
    ],
    sample: Annotated[int, Option(min=1, help="Tensors to recompute, drawn at random.")] = 16,
    everything: Annotated[bool, Option("--everything", help="Recompute all.")] = False,
    inputs: Annotated[
        list[Path] | None,
        Option("--input", metavar="CKPT", help="Where an input is now, in order. Repeatable."),
    ] = None,
    seed: Annotated[int, Option(help="Of the sample.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recompute a sample of an output from the inputs it names."""
    with told("verify", as_json) as tell:
        from polyfuse.terminal import Bars, show_text
        from polyfuse.verification import verify as verified

        with Bars(quiet=quiet) as bars:
            done = verified(
                out,
                sample=sample,
                everything=everything,
                inputs=inputs,
                seed=seed,
                progress=bars,
            )
        facts = {
            "out": str(out),
            "inputs": done.inputs,
            "recomputed": list(done.tensors),
            "tensors": done.of,
            "reestimated": list(done.reestimated),
            "provenance": dict(done.provenance),
        }
        kept = f"; {len(done.reestimated)} re-estimated ones not" if done.reestimated else ""
        line = (
            f"{out}: {len(done.tensors):,} of {done.of:,} tensors recomputed from {done.inputs} "
            f"inputs, all equal bit for bit{kept}"
        )
        tell(facts, lambda: show_text(line))

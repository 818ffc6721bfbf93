"""Verify an output: its inputs are the ones it names, and a sample of its tensors is recomputed."""

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.checkpoints import open_checkpoint
from polyfuse.checkpoints.base import Checkpoint
from polyfuse.digests import Digests
from polyfuse.dtypes import DTYPES, Elements
from polyfuse.errors import CheckpointError, printable
from polyfuse.streaming import make_plan
from polyfuse.streaming.base import Item, Plan, Progress, Request, listed, silent
from polyfuse.streaming.compute import Census, Scratch, compute
from polyfuse.streaming.provenance import UNKNOWN, read_provenance


@dataclass(frozen=True)
class Verified:
    """What was found right.

    Attributes:
        provenance: what the output says of how it was made.
        inputs: how many of its inputs were found, with the SHA-256 it names.
        tensors: names of the tensors that were recomputed, all of them equal bit for bit.
        of: how many tensors it has.
        reestimated: names of statistics that were estimated anew after the merge, so that they
            cannot be recomputed.
    """

    provenance: Mapping[str, Any]
    inputs: int
    tensors: Sequence[str]
    of: int
    reestimated: Sequence[str] = ()


def verify(
    out: str | Path,
    *,
    sample: int = 16,
    everything: bool = False,
    inputs: Sequence[str | Path] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Verified:
    """Recompute a sample of an output's tensors from the inputs that its provenance names.

    Args:
        out: file or folder that `average` or `merge` wrote.
        sample: tensors to recompute, drawn at random.
        everything: recompute all.
        inputs: where the inputs are now, in order; by default where the output says.
        seed: of the sample.
        progress: called with ("verify", tensors done, all, "").

    Raises:
        CheckpointError: no provenance, inputs that are missing or others, tensors that differ; all
            faults of a kind at once.

    Example:
        >>> verify("/no/such.safetensors")
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: ...
    """
    with ExitStack() as stack:
        output = stack.enter_context(open_checkpoint(out))
        document = read_provenance(output)
        opened = _inputs(stack, Path(out), document, inputs)
        plan = _plan(document, opened, output)
        reestimated = sorted(set(document.get("reestimated", ())) & output.tensors.keys())
        names = [name for name in plan.columns if name not in reestimated]
        chosen = names if everything else _drawn(names, sample, seed)
        for number, name in enumerate(chosen):
            _recompute(plan, output, name)
            progress("verify", number + 1, len(chosen), printable(name))
        return Verified(document, len(opened), tuple(chosen), len(plan.columns), reestimated)


def _inputs(
    stack: ExitStack, out: Path, document: Mapping[str, Any], paths: Sequence[str | Path] | None
) -> list[Checkpoint]:
    """Open the inputs, and see that their files have the SHA-256 that the output names."""
    entries = document["inputs"]
    places = paths or [out.absolute().parent / entry["path"] for entry in entries]
    if len(places) != len(entries):
        raise CheckpointError(
            f"'{printable(out)}' was made of {len(entries)} checkpoints, got {len(places)}; "
            "name all of them, in order"
        )
    digests = stack.enter_context(Digests(2))
    found, faults = [], []
    for place, entry in zip(places, entries, strict=True):
        try:
            checkpoint = stack.enter_context(open_checkpoint(place, entry.get("key")))
        except CheckpointError as error:
            faults.append(f"{error}; say where the inputs are now: --input")
            continue
        digests.begin(file.path for file in checkpoint.files)
        found.append(checkpoint)
    for checkpoint, entry in zip(found, entries, strict=not faults):
        faults += _other_files(checkpoint, entry, digests) if not faults else []
    if faults:
        raise CheckpointError("\n".join(faults))
    return found


def _other_files(checkpoint: Checkpoint, entry: Mapping[str, Any], digests: Digests) -> list[str]:
    stated = [(file["name"], file["sha256"]) for file in entry["files"]]
    if all(sha == UNKNOWN for _, sha in stated):  # made with --no-checksums
        return []
    found = [(file.path.name, digests.sha256(file.path)) for file in checkpoint.files]
    if [sha for _, sha in found] == [sha for _, sha in stated]:
        return []
    return [
        f"'{printable(checkpoint.path)}' is not the input that the output was made of: its SHA-256 "
        "differs; restore it, or make the output again"
    ]


def _plan(document: Mapping[str, Any], inputs: Sequence[Checkpoint], output: Checkpoint) -> Plan:
    """Plan the same merge again, into memory; refuse an output that has other tensors."""
    dtype = document.get("dtype")
    request = Request(
        None,
        document["method"],
        document["options"],
        DTYPES.get(dtype) if isinstance(dtype, str) else None,
        {str(pattern): str(policy) for pattern, policy in document["policies"]},
    )
    if ":" in request.method:
        raise CheckpointError(
            f"'{printable(output.path)}' was made by '{printable(request.method)}', which is code; "
            "it is not run because a file says so: make the output again and compare"
        )
    include, exclude = ([str(p) for p in document[key]] for key in ("include", "exclude"))
    plan = make_plan(inputs, [request], include=include, exclude=exclude, allow_nonfinite=True)
    slots = plan.targets[0].slots
    other = [
        name
        for name in sorted(set(slots) | output.tensors.keys())
        if name not in slots
        or name not in set(output.names())
        or (slots[name].dtype, slots[name].shape)
        != (output.info(name).dtype, output.info(name).shape)
    ]
    if other:
        raise CheckpointError(
            f"'{printable(output.path)}' has other tensors than its inputs give: {listed(other)}"
        )
    return plan


def _drawn(names: Sequence[str], sample: int, seed: int) -> list[str]:
    """Draw names, and keep their order."""
    chosen = set(random.Random(seed).sample(range(len(names)), min(sample, len(names))))
    return [name for i, name in enumerate(names) if i in chosen]


def _recompute(plan: Plan, output: Checkpoint, name: str) -> None:
    """Make one tensor again, chunk by chunk, and compare it bit for bit."""
    census, differ = Census(), 0

    def compare(number: int, name: str, start: int, values: Elements) -> None:
        nonlocal differ
        there = output.bits(name, start, start + len(values))
        ours, theirs = (each.view(np.uint8).reshape(len(values), -1) for each in (values, there))
        differ += int((ours != theirs).any(1).sum())

    for item in plan.items:
        if item.name == name:
            compute(plan, Item(*item), Scratch(), census, compare)
    census.check(plan)
    if differ:
        raise CheckpointError(
            f"'{printable(output.path)}': {differ:,} elements of '{printable(name)}' are not what "
            "its inputs give; it was changed or damaged: make it again"
        )

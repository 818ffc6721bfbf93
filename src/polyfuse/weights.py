"""Fusing weights: checkpoints in, one checkpoint out, in bounded memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfuse import durable
from polyfuse.checkpoints import open_checkpoint
from polyfuse.checkpoints.base import Checkpoint, InMemory, Slot, TensorInfo
from polyfuse.checkpoints.layouts import layout_for
from polyfuse.digests import Digests
from polyfuse.dtypes import bytes_of, dtype_of
from polyfuse.errors import CheckpointError, PolyfuseError, printable
from polyfuse.streaming import execute, make_plan
from polyfuse.streaming.base import Plan, Progress, Request, silent
from polyfuse.streaming.outputs import write_checksums

if TYPE_CHECKING:
    import torch
    from torch import Tensor

State = Mapping[str, "Tensor"]
MOST_THREADS = 8  # more do not help: memory is the limit then


@dataclass(frozen=True)
class Averaged:
    """What a merge did, or would do.

    Attributes:
        plan: inputs, treatments, notes, bytes; its inputs are closed.
        seconds: that the engine took; None where nothing was run.
        states: the state dicts of outputs that are kept in memory.
    """

    plan: Plan
    seconds: float | None
    states: Sequence[dict[str, Tensor]] = ()

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The result, where it was kept in memory."""
        return self.states[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know, a sentence each."""
        return self.plan.notes


def average(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    method: str = "mean",
    options: Mapping[str, Any] | None = None,
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    dtype: torch.dtype | str | None = None,
    key: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    policies: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
    checksums: bool = True,
    max_shard_size: int | None = None,
    form: str | None = None,
    resume: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    digests: Digests | None = None,
    progress: Progress = silent,
) -> Averaged:
    """Average checkpoints of any format and size into one.

    The result is the exact mean, rounded once: sums are kept in fp64, whatever the inputs are.
    Memory does not grow with the checkpoints, nor with their number.

    Args:
        paths: files, folders, or `file.pt[0]` for one of a list.
        out: file or folder to write; its name says the format. None keeps the result in memory.
        method: name in `METHODS`, or your own `package.module:function` over whole tensors.
        options: of the method.
        weights: one a checkpoint; they make the mean a weighted one.
        normalize: divide by the sum of the weights.
        dtype: of the floating tensors; by default as in the first checkpoint.
        key: the state dict inside each file; by default the usual one.
        include: patterns of names to take; all by default.
        exclude: patterns of names to leave out.
        policies: by pattern, what becomes of buffers: see `polyfuse.merge.buffers.POLICIES`.
        allow_nonfinite: let NaN and Inf through.
        checksums: check the CRCs that inputs state, and keep their SHA-256 in the output.
        max_shard_size: bytes of a shard at most, for a folder.
        form: of the output: `safetensors`, `hf`, `torch`, `dcp`.
        resume: go on with an interrupted merge; keep what is done if this one fails.
        threads: that work side by side; by default one a core, 8 at most.
        dry_run: plan only.
        digests: of the inputs, begun earlier.
        progress: called with ("merge", bytes done, all, "").

    Raises:
        CheckpointError: inputs that are damaged, do not match or hold NaN; all faults at once.
        PolyfuseError: weights, options or an output that cannot be.
        DiskError: the file system refused; nothing is left under a final name.

    Example:
        >>> import torch
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for i in range(2):
        ...     _ = save_checkpoint({"w": torch.tensor([float(i)])}, folder / f"{i}.safetensors")
        >>> average([folder / "0.safetensors", folder / "1.safetensors"]).state_dict["w"]
        tensor([0.5000])
    """
    name, chosen = _weighted(method, dict(options or {}), weights, normalize)
    target = None if out is None else Path(out)
    kind = None if dtype is None else dtype_of(dtype)
    asked = Request(target, name, chosen, kind, dict(policies or {}), form, max_shard_size)
    return merge(
        paths,
        [asked],
        key=key,
        include=include,
        exclude=exclude,
        allow_nonfinite=allow_nonfinite,
        checksums=checksums,
        resume=resume,
        threads=threads,
        dry_run=dry_run,
        digests=digests,
        progress=progress,
    )


def merge(
    paths: Sequence[str | Path],
    requests: Sequence[Request],
    *,
    key: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_nonfinite: bool = False,
    checksums: bool = True,
    resume: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    digests: Digests | None = None,
    progress: Progress = silent,
) -> Averaged:
    """Make several outputs of the same checkpoints in one reading pass; see `average`.

    Args:
        paths: files, folders, or addresses.
        requests: the outputs.
        key: the state dict inside each file.
        include: patterns of names to take.
        exclude: patterns of names to leave out.
        allow_nonfinite: let NaN and Inf through.
        checksums: check CRCs, keep SHA-256.
        resume: go on with an interrupted merge.
        threads: that work side by side.
        dry_run: plan only.
        digests: of the inputs, begun earlier.
        progress: called with ("merge", bytes done, all, "").

    Raises:
        PolyfuseError: see `average`.

    Example:
        >>> merge([], [Request()])
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: no checkpoints to merge; name one or more
    """
    with ExitStack() as stack:
        inputs = _opened(stack, paths, key)
        for request in requests:
            _refuse_input(request.out, inputs)
        plan = make_plan(
            inputs,
            requests,
            include=include,
            exclude=exclude,
            allow_nonfinite=allow_nonfinite,
            threads=threads or _idle_threads(),
        )
        if dry_run:
            return Averaged(plan, None)
        hashing = stack.enter_context(_hashing(digests, plan.threads)) if checksums else None
        start = time.perf_counter()
        states = execute(plan, digests=hashing, resume=resume, progress=progress)
        return Averaged(plan, time.perf_counter() - start, states)


def average_state_dicts(
    states: Sequence[State],
    weights: Sequence[float] | None = None,
    *,
    method: str = "mean",
    options: Mapping[str, Any] | None = None,
    normalize: bool = True,
    dtype: torch.dtype | None = None,
    policies: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, Tensor]:
    """Average state dicts that are in memory, with the same arithmetic as `average`.

    Args:
        states: tensors by name, on any device.
        weights: one a state dict.
        method: name in `METHODS`, or your own.
        options: of the method.
        normalize: divide by the sum of the weights.
        dtype: of the floating tensors; by default as in the first state dict.
        policies: by pattern, what becomes of buffers.
        allow_nonfinite: let NaN and Inf through.

    Returns:
        A new state dict on the CPU; tied tensors stay tied.

    Raises:
        CheckpointError: state dicts that do not match, or hold NaN.
        PolyfuseError: weights or options that cannot be.

    Example:
        >>> import torch
        >>> a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}
        >>> average_state_dicts([a, b], weights=[3, 1])
        {'w': tensor([1.2500])}
    """
    name, chosen = _weighted(method, dict(options or {}), weights, normalize)
    inputs = [in_memory(state, f"state dict {i}") for i, state in enumerate(states)]
    kind = None if dtype is None else dtype_of(dtype)
    request = Request(None, name, chosen, kind, dict(policies or {}))
    plan = make_plan(inputs, [request], allow_nonfinite=allow_nonfinite)
    return execute(plan)[0]


def save_checkpoint(
    state: State,
    out: str | Path,
    *,
    form: str | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
) -> Path:
    """Write a state dict; its name says the format, and it appears whole or not at all.

    Args:
        state: tensors by name, on any device; tied ones are written once.
        out: `.safetensors`, `.pt`, `.pth`, `.bin`, `.ckpt`, or a folder.
        form: `safetensors`, `hf`, `torch` or `dcp`, where the name does not say it.
        metadata: texts to keep beside the tensors.
        max_shard_size: bytes of a shard at most, for a folder.

    Returns:
        The path that was written.

    Raises:
        CheckpointError: a tensor or a name that the format cannot hold.
        DiskError: the file system refused.

    Example:
        >>> import torch
        >>> import tempfile
        >>> from polyfuse import load_checkpoint
        >>> target = Path(tempfile.mkdtemp()) / "model.pt"
        >>> load_checkpoint(save_checkpoint({"w": torch.ones(2)}, target))
        {'w': tensor([1., 1.])}
    """
    held = in_memory(state, "state dict")
    slots = [Slot(name, info.dtype, info.shape) for name, info in held.tensors.items()]
    note = {"format": "pt", **(metadata or {})}
    layout = layout_for(
        Path(out),
        slots,
        aliases=held.aliases,
        note=note,
        form=form,
        max_shard_size=max_shard_size,
    )
    with durable.draft(Path(out), layout.files, key="") as draft:
        for name, offset, part in layout.parts:
            draft.write(name, offset, part)
        for name, (file, offset) in layout.places.items():
            draft.write(file, offset, bytes_of(held.bits(name)))
        write_checksums(layout, draft)
    return Path(out)


def in_memory(state: State, title: str) -> Checkpoint:
    """Return a state dict as a checkpoint; tensors that share their memory are tied.

    Raises:
        CheckpointError: a value that is no dense tensor.

    Example:
        >>> import torch
        >>> w = torch.ones(2)
        >>> in_memory({"a": w, "b": w}, "mine").aliases
        {'b': 'a'}
    """
    import torch

    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    kept: dict[Any, str] = {}
    for number, (name, tensor) in enumerate(state.items()):
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.layout != torch.strided
            or tensor.is_quantized
        ):
            raise CheckpointError(
                f"'{printable(name)}' of {title} is a {_kind(tensor)}; only dense tensors can be "
                "merged or saved: take it out, or call .to_dense() / .dequantize()"
            )
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and (place, tensor.dtype) in kept:
            aliases[name] = kept[place, tensor.dtype]
            continue
        kept[place, tensor.dtype] = name
        source = InMemory(tensor.detach().cpu())
        tensors[name] = TensorInfo(dtype_of(tensor.dtype), tuple(tensor.shape), source, (0, number))
    return Checkpoint(Path(title), "memory", (), tensors, aliases)


def _kind(value: object) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return "quantised tensor" if value.is_quantized else f"{value.layout} tensor"


def _weighted(
    method: str, options: dict[str, Any], weights: Sequence[float] | None, normalize: bool
) -> tuple[str, dict[str, Any]]:
    """Return method and options with the weights put in."""
    if weights is None:
        return method, options
    if method != "mean":
        raise PolyfuseError(
            f"weights go with the method 'mean', not with '{printable(method)}'; give that its own "
            "options: --set NAME=VALUE"
        )
    name = "weighted_mean" if normalize else "weighted_sum"
    return name, {"weights": tuple(float(weight) for weight in weights)}


def _opened(stack: ExitStack, paths: Sequence[str | Path], key: str | None) -> list[Checkpoint]:
    """Open all checkpoints; what is wrong with them is told in one message."""
    inputs, faults = [], []
    for path in paths:
        try:
            inputs.append(stack.enter_context(open_checkpoint(path, key)))
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
    return inputs


def _refuse_input(out: Path | None, inputs: Sequence[Checkpoint]) -> None:
    """Refuse to write over an input, by its own or another name."""
    if out is None or not out.exists():
        return
    for checkpoint in inputs:
        for path in (checkpoint.path, *(file.path for file in checkpoint.files)):
            if path.exists() and os.path.samefile(path, out):
                raise PolyfuseError(
                    f"the output '{printable(out)}' is the input '{printable(path)}'; name another "
                    "output with -o"
                )


def _idle_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_THREADS)


@contextmanager
def _hashing(digests: Digests | None, threads: int) -> Iterator[Digests]:
    if digests is not None:  # whoever began it ends it
        yield digests
        return
    with Digests(threads) as own:
        yield own

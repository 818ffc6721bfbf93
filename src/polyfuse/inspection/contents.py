"""What is inside one checkpoint: tensors, parameters, buffers, ties, and what else it tells."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyfuse.checkpoints.base import Checkpoint
from polyfuse.determinism import threads
from polyfuse.dtypes import bytes_of
from polyfuse.inspection.base import PIECE, pieces
from polyfuse.statedict import role

BUFFERS = {
    "running_mean": "running statistics",
    "running_var": "running statistics",
    "counter": "counters",
}
_HEAD = 256  # elements by which equal tensors are first found


@dataclass(frozen=True)
class Contents:
    """What one checkpoint holds.

    Attributes:
        path: as it was named.
        format: of its files.
        files: how many.
        nbytes: of all tensors.
        dtypes: how many tensors of each.
        parameters: elements of the floating tensors that are no buffers.
        buffers: how many of each kind.
        tied: groups of names that share one tensor.
        equal: groups of matrices with the same bytes, though they are not tied.
        facts: `key`, `keys`, `ema`, `epoch`, `step`, `metrics`, where there are any.
        notes: sentences for people.
        nonfinite: how many NaN and Inf, by name; None where nobody looked.
    """

    path: str
    format: str
    files: int
    nbytes: int
    dtypes: Mapping[str, int]
    parameters: int
    buffers: Mapping[str, int]
    tied: Sequence[Sequence[str]]
    equal: Sequence[Sequence[str]]
    facts: Mapping[str, Any]
    notes: Sequence[str]
    nonfinite: Mapping[str, int] | None

    @property
    def tensors(self) -> int:
        """How many tensors it holds, tied ones counted once."""
        return sum(self.dtypes.values())


def contents(checkpoint: Checkpoint, *, check_values: bool = False) -> Contents:
    """Look into a checkpoint; only headers are read, and the heads of its matrices.

    Args:
        checkpoint: open.
        check_values: read everything and count what is not finite.

    Raises:
        CheckpointError: the bytes of a tensor are not there.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from polyfuse.checkpoints.base import InMemory, TensorInfo
        >>> info = TensorInfo(torch.float32, (2, 3), InMemory(torch.ones(2, 3)))
        >>> contents(Checkpoint(Path("mine"), "memory", (), {"w": info})).parameters
        6
    """
    infos = checkpoint.tensors
    kinds = {name: _kind(name, checkpoint) for name in infos}
    wanted = ("key", "keys", "ema", "epoch", "step", "metrics")
    return Contents(
        path=str(checkpoint.path),
        format=checkpoint.format,
        files=len(checkpoint.files),
        nbytes=sum(info.nbytes for info in infos.values()),
        dtypes=Counter(str(info.dtype).removeprefix("torch.") for info in infos.values()),
        parameters=sum(info.count for name, info in infos.items() if not kinds[name]),
        buffers=Counter(kind for kind in kinds.values() if kind),
        tied=_tied(checkpoint),
        equal=list(_equal(checkpoint)),
        facts={name: checkpoint.facts[name] for name in wanted if checkpoint.facts.get(name)},
        notes=checkpoint.facts.get("notes", []),
        nonfinite=_nonfinite(checkpoint) if check_values else None,
    )


def _kind(name: str, checkpoint: Checkpoint) -> str:
    """Return what kind of buffer a tensor is; nothing for a parameter."""
    known = BUFFERS.get(role(name, checkpoint.tensors))
    dtype = checkpoint.tensors[name].dtype
    return known or ("" if dtype.is_floating_point or dtype.is_complex else "integers")


def _tied(checkpoint: Checkpoint) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for alias, name in checkpoint.aliases.items():
        groups.setdefault(name, [name]).append(alias)
    return list(groups.values())


def _equal(checkpoint: Checkpoint) -> Iterator[list[str]]:
    """Yield matrices with the same bytes: once tied, or copied; constants are left out."""
    alike: dict[Any, list[str]] = {}
    for name, info in checkpoint.tensors.items():
        if len(info.shape) >= 2 and info.count > 1 and not info.source.whole:
            head = bytes(bytes_of(checkpoint.bits(name, 0, min(info.count, _HEAD))))
            if head != head[: info.dtype.itemsize] * (len(head) // info.dtype.itemsize):
                alike.setdefault((info.dtype, info.shape, head), []).append(name)
    for names in alike.values():
        while len(names) > 1:
            first, *rest = names
            same = [name for name in rest if is_equal(checkpoint, first, checkpoint, name)]
            names = [name for name in rest if name not in same]
            if same:
                yield [first, *same]


def is_equal(one: Checkpoint, name: str, other: Checkpoint, its_name: str) -> bool:
    """Tell whether two tensors of one dtype and shape have the same bytes.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from polyfuse.checkpoints.base import InMemory, TensorInfo
        >>> info = TensorInfo(torch.float32, (1,), InMemory(torch.ones(1)))
        >>> held = Checkpoint(Path("mine"), "memory", (), {"a": info})
        >>> is_equal(held, "a", held, "a")
        True
    """
    infos = one.info(name), other.info(its_name)
    if (infos[0].dtype, infos[0].shape) != (infos[1].dtype, infos[1].shape):
        return False
    return all(
        bytes_of(one.bits(name, start, stop)) == bytes_of(other.bits(its_name, start, stop))
        for start, stop in pieces(infos, PIECE)
    )


def _nonfinite(checkpoint: Checkpoint) -> dict[str, int]:
    counts: dict[str, int] = {}
    with threads(1):  # more would wait for each other: the pieces are small
        for name, info in checkpoint.tensors.items():
            if info.dtype.is_floating_point or info.dtype.is_complex:
                for start, stop in pieces([info], PIECE):
                    read = checkpoint.read(name, start, stop)
                    finite = (read.float() if info.dtype.itemsize == 1 else read).isfinite()
                    counts[name] = counts.get(name, 0) + (stop - start) - int(finite.sum())
    return {name: count for name, count in counts.items() if count}

"""What a merge of checkpoints is before it runs: inputs, outputs, how each tensor is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from polyfuse.checkpoints.base import Checkpoint, Layout, Slot
from polyfuse.dtypes import DType, dtype_of
from polyfuse.errors import printable
from polyfuse.merge.base import Linear

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK = 1 << 18  # elements of a work item: its buffers stay in the cache
SHOWN = 5  # names in a message
Progress = Callable[[str, float, float, str], None]


def silent(name: str, done: float, total: float, note: str = "") -> None:
    """Report progress to nobody.

    Example:
        >>> silent("average", 1, 2)
    """


@dataclass(frozen=True)
class Request:
    """One output that is asked for.

    Attributes:
        out: file or folder; None keeps the result in memory.
        method: name in `METHODS`, or `package.module:function`.
        options: of the method.
        dtype: of the floating tensors; by default as in the first checkpoint.
        policies: by pattern over names, what becomes of buffers; the first pattern that fits wins.
        form: of the output; by default as its name says.
        max_shard_size: bytes of a shard at most, for a folder.
    """

    out: Path | None = None
    method: str = "mean"
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: DType | None = None
    policies: Mapping[str, str] = field(default_factory=dict)
    form: str | None = None
    max_shard_size: int | None = None

    def __post_init__(self) -> None:
        """Take a dtype of torch as well."""
        if self.dtype is not None:
            object.__setattr__(self, "dtype", dtype_of(self.dtype))


class Treatment(NamedTuple):
    """How one tensor of an output is made of the inputs' tensors.

    Attributes:
        label: for people: the method's or the policy's name.
        dtype: of the result.
        reads: names, in the first checkpoint, of the tensors it is made of; its own comes first.
        linear: a linear combination, where it is one.
        function: else, over a chunk of all inputs' tensors, a list for each name it reads.
        measure: numbers over blocks of the whole tensors, summed, where it needs them first; the
            function then takes them as well.
        whole: the function needs whole tensors.
        exact: the function takes integers as they are.
    """

    label: str
    dtype: DType
    reads: tuple[str, ...]
    linear: Linear | None = None
    function: Callable[..., Tensor] | None = None
    measure: Callable[[Sequence[Tensor]], Tensor] | None = None
    whole: bool = False
    exact: bool = False


class Item(NamedTuple):
    """A piece of work: some elements of one tensor, for all outputs."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Target:
    """One output, planned.

    Attributes:
        request: what was asked for.
        treatments: by name, in the order of the first checkpoint.
        slots: the tensors of the output.
        layout: where everything goes, given its metadata; None for a result in memory.
    """

    request: Request
    treatments: Mapping[str, Treatment]
    slots: Mapping[str, Slot]
    layout: Callable[[Mapping[str, str]], Layout] | None


@dataclass(frozen=True)
class Plan:
    """A merge that is known in full, and has not begun.

    Attributes:
        inputs: the checkpoints, open.
        columns: by the first one's name, the name in each.
        aliases: further names of tied tensors.
        targets: the outputs.
        items: the work, in the order of the first input's file.
        notes: what a person should know, a sentence each.
        threads: that work side by side.
        allow_nonfinite: NaN and Inf in the inputs are let through.
        patterns: `include` and `exclude` patterns that chose the tensors.
        bytes_read: of tensors.
        bytes_written: of all outputs.
        peak_memory: bytes of buffers, at most.
    """

    inputs: tuple[Checkpoint, ...]
    columns: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, str]
    targets: tuple[Target, ...]
    items: tuple[Item, ...]
    notes: tuple[str, ...]
    threads: int
    allow_nonfinite: bool
    patterns: Mapping[str, tuple[str, ...]]
    bytes_read: int
    bytes_written: int
    peak_memory: int

    def sources(self, names: Sequence[str]) -> list[list[tuple[Checkpoint, str]]]:
        """Return, for each of these names, every input and the tensor's name in it."""
        return [list(zip(self.inputs, self.columns[name], strict=True)) for name in names]


def beside(
    inputs: Sequence[Checkpoint], column: tuple[str, ...]
) -> Iterator[tuple[Checkpoint, str]]:
    """Yield every input, and the name that a tensor has in it."""
    return zip(inputs, column, strict=True)


def listed(names: Sequence[str]) -> str:
    """Return names for a message: the first few, and how many more there are.

    Example:
        >>> listed(["a", "b"])
        "'a', 'b'"
    """
    shown = ", ".join(f"'{printable(name)}'" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def short(dtype: DType | torch.dtype) -> str:
    """Return a dtype's name without `torch.`.

    Example:
        >>> import torch
        >>> short(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")

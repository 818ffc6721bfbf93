"""What a checkpoint is to polyfuse: tensors by name, where their bytes lie, facts beside them.

Formats are functions that read a file's own directory and return a `Checkpoint`; no tensor data are
read then. Files come from strangers: they are read with `pread`, never mapped (a truncation under a
map kills the process), and whatever they state is checked against `LIMITS` and the file's own size
before anything is allocated.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from polyfuse.checksums import Passing
from polyfuse.dtypes import DType, Elements, as_tensor, bytes_of, dtype_of
from polyfuse.errors import CheckpointError, did_you_mean, printable

if TYPE_CHECKING:
    from torch import Tensor


class Limits(NamedTuple):
    """What a file may state, at most; the table in docs/checkpoints.md is held against this."""

    header_bytes: int = 100_000_000  # of a safetensors file
    names: int = 1_000_000  # tensors, zip entries, shards
    name_characters: int = 4096
    rank: int = 64
    index_bytes: int = 64 << 20  # of an index.json
    pickle_bytes: int = 256 << 20
    metadata_bytes: int = 64 << 20  # of a .metadata
    pickle_operations: int = 10_000_000
    pickle_depth: int = 200
    directory_bytes: int = 256 << 20  # of a zip archive
    inflation: int = 64  # unpacked to packed bytes of a zip entry


LIMITS = Limits()


class Fingerprint(NamedTuple):
    """What tells that a file was changed or replaced: device, inode, size, time of change in ns."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class File:
    """A regular file, open for reading at any offset, from any thread.

    Args:
        path: of the file; links are followed.

    Attributes:
        passing: takes note of the CRC-32 of what is read; nothing does where None.

    Raises:
        CheckpointError: missing, unreadable, or not a regular file.

    Example:
        >>> File(Path("/no/such.pt"))
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: cannot read '/no/such.pt': No such file or directory
    """

    def __init__(self, path: Path) -> None:
        """Open; a FIFO would wait for a writer, so the open does not block and fstat then tells."""
        self.path = path
        self.passing: Passing | None = None
        self.shown = printable(path)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(path, flags)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CheckpointError(f"cannot read '{self.shown}': {printable(reason)}") from None
        facts = os.fstat(self._descriptor)
        if not stat.S_ISREG(facts.st_mode):
            self.close()
            raise CheckpointError(f"'{self.shown}' is not a regular file")
        self.fingerprint = _fingerprint(facts)
        self.size = facts.st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            CheckpointError: the file ends before, or the system reports an error.
        """
        self.check_range(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `offset` on.

        Raises:
            CheckpointError: the file ends before, or the system reports an error.
        """
        rest, at = buffer, offset
        while rest:
            try:
                count = os.preadv(self._descriptor, [rest], at)
            except OSError as error:
                raise CheckpointError(f"cannot read '{self.shown}': {error.strerror}") from None
            if count == 0:
                raise CheckpointError(f"'{self.shown}' was truncated while it was read")
            rest, at = rest[count:], at + count
        if self.passing is not None:
            self.passing.note(offset, buffer)

    def check_range(self, offset: int, length: int) -> None:
        """Refuse a range that does not lie in the file.

        Raises:
            CheckpointError: it does not.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(
                f"'{self.shown}' has {self.size:,} bytes, but states data at {offset:,} to "
                f"{offset + length:,}; it is truncated or damaged: fetch it again"
            )

    def check_unchanged(self) -> None:
        """Refuse a file that was changed or replaced since it was opened.

        Raises:
            CheckpointError: it was.
        """
        try:
            now = _fingerprint(os.stat(self.path))
        except OSError as error:
            raise CheckpointError(
                f"'{self.shown}' went away while it was read: {error.strerror}"
            ) from None
        if now != self.fingerprint or _fingerprint(os.fstat(self._descriptor)) != now:
            raise CheckpointError(
                f"'{self.shown}' was changed while it was read; wait until its writer is done, "
                "then type the same command again"
            )

    def close(self) -> None:
        """Close; reading then fails."""
        os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        """Close what nobody closed."""
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


def _fingerprint(facts: os.stat_result) -> Fingerprint:
    return Fingerprint(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


class Source(Protocol):
    """Where a tensor's elements come from, in the order of `tensor.flatten()`.

    Attributes:
        whole: reading a part costs as much as reading all, so it is read in one piece.
    """

    @property
    def whole(self) -> bool: ...  # noqa: D102  # described above

    def fill(self, out: Elements, start: int) -> None:
        """Fill a flat array of the dtype's bits with elements from `start` on.

        Raises:
            CheckpointError: the bytes are not there, or are damaged.
        """
        ...


class Raw(NamedTuple):
    """Elements that lie one after the other in a file, little-endian."""

    file: File
    offset: int

    @property
    def whole(self) -> bool:
        """No: any part can be read alone."""
        return False

    def fill(self, out: Elements, start: int) -> None:
        """Read straight into the array; see `Source`."""
        self.file.read_into(self.offset + start * out.itemsize, bytes_of(out))


class InMemory(NamedTuple):
    """Elements of a tensor that is in memory already."""

    tensor: Tensor

    @property
    def whole(self) -> bool:
        """No: any part can be copied alone."""
        return False

    def fill(self, out: Elements, start: int) -> None:
        """Copy; see `Source`."""
        part = self.tensor.detach().reshape(-1)[start : start + len(out)]
        as_tensor(out, dtype_of(self.tensor.dtype)).copy_(part)


class Shaped:
    """What follows from a dtype and a shape."""

    dtype: DType
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Take a dtype of torch as well."""
        object.__setattr__(self, "dtype", dtype_of(self.dtype))

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class TensorInfo(Shaped):
    """One tensor of a checkpoint: what it is and where its elements come from."""

    dtype: DType
    shape: tuple[int, ...]
    source: Source
    order: tuple[int, int] = (0, 0)  # number of its file, offset there: the order to read in


class Check(NamedTuple):
    """A stretch of a file and the CRC-32 that its directory states for it."""

    file: File
    start: int
    length: int
    crc: int
    name: str


@dataclass
class Checkpoint:
    """A checkpoint, opened: its tensors are known, their data are still in its files.

    Attributes:
        path: what the user named.
        format: "safetensors", "torch", ...; for people and for choosing the output's format.
        files: all files that tensor data are read from.
        tensors: by name, each one once.
        aliases: further names of tied tensors, and the name in `tensors` that each stands for.
        facts: what else was found, plain: `key` and `keys` (state dicts in the file, and the one
            that was chosen), `epoch`, `step`, `metrics`, `metadata`, `side_files`, ...
        checks: what its files say of their own CRCs.

    Example:
        >>> from polyfuse.checkpoints.base import Checkpoint, InMemory, TensorInfo
        >>> import torch
        >>> info = TensorInfo(torch.float32, (2,), InMemory(torch.tensor([1.0, 2.0])))
        >>> Checkpoint(Path("mine"), "memory", (), {"w": info}).read("w", 1)
        tensor([2.])
    """

    path: Path
    format: str
    files: tuple[File, ...]
    tensors: dict[str, TensorInfo]
    aliases: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()

    def names(self) -> Iterator[str]:
        """Yield all names, those of tied tensors too."""
        yield from self.tensors
        yield from self.aliases

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's description, by any of its names.

        Raises:
            CheckpointError: there is none of this name.
        """
        try:
            return self.tensors[self.aliases.get(name, name)]
        except KeyError:
            near = did_you_mean(name, list(self.names())[:10_000])
            raise CheckpointError(
                f"'{printable(self.path)}' has no tensor '{printable(name)}'{near}"
            ) from None

    def bits(self, name: str, start: int = 0, stop: int | None = None) -> Elements:
        """Return a flat slice of a tensor as it is stored; see `read`."""
        info = self.info(name)
        out = info.dtype.empty((info.count if stop is None else stop) - start)
        info.source.fill(out, start)
        return out

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return a flat slice of a tensor.

        Args:
            name: of the tensor.
            start: first element, in the order of `flatten()`.
            stop: the element after the last one.

        Raises:
            CheckpointError: no such tensor, or its bytes are not there.
        """
        return as_tensor(self.bits(name, start, stop), self.info(name).dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors, in memory; tied ones share it."""
        state = {name: self.read(name).view(info.shape) for name, info in self.tensors.items()}
        return state | {alias: state[name] for alias, name in self.aliases.items()}

    def check_unchanged(self) -> None:
        """Refuse files that were changed since they were opened."""
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        """Close its files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        """Return itself, to be closed when the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close its files."""
        self.close()


@dataclass(frozen=True)
class Slot(Shaped):
    """One tensor of an output."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


class Checksum(NamedTuple):
    """A stretch of an output file whose CRC-32 belongs at some places of the same file."""

    file: str
    start: int
    length: int
    places: tuple[int, ...]  # offsets of little-endian 32-bit numbers


class Layout(NamedTuple):
    """Where everything of an output goes, before any of it is computed.

    Attributes:
        files: size of each file by its name in the output folder; `{"": size}` where the output is
            one file.
        parts: bytes that are known already, as (file, offset, bytes): headers, directories, an
            index. They are written before the tensors.
        places: of each tensor's first byte, as (file, offset); its elements follow in the order of
            `flatten()`, little-endian.
        checksums: what is computed and written after the tensors.
    """

    files: Mapping[str, int]
    parts: Sequence[tuple[str, int, bytes]]
    places: Mapping[str, tuple[str, int]]
    checksums: Sequence[Checksum] = ()


def is_file_name(name: object) -> bool:
    """Tell whether a name found in a file is one: a single component, not a path.

    Example:
        >>> [is_file_name(n) for n in ("model-1.safetensors", "../secret", "a/b", "", ".", 3)]
        [True, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and 0 < len(name) < 256
        and name not in (".", "..")
        and not any(c in name for c in "/\\\0:")
    )

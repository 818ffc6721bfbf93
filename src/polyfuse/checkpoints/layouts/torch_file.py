"""Where everything goes in a file of `torch.save`: a zip archive of a pickle and raw storages.

The bytes are those that torch 2.13 writes to a file object, so that `mmap=True` and torch's own
calculated offsets work. Two things differ. The record `.data/serialization_id` is left out: torch
makes it from checksums of data that are not known yet, and only logs it. And `polyfuse.json` is
added, which torch ignores. CRC-32 of the data follow once they are written.
"""

import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple, NoReturn

from polyfuse.checkpoints.base import Checksum, Layout, Slot
from polyfuse.checkpoints.layouts.base import (
    PROVENANCE,
    PROVENANCE_FILE,
    Contents,
    refuse_split,
    refuse_unwritable,
)
from polyfuse.dtypes import DTYPES
from polyfuse.errors import printable

_ROOT = "archive"  # the folder in the archive; any name does, also when the file is renamed
_ALIGNMENT = 64
_SMALL = 0xFFFFFFFF  # sizes and offsets from here on are zip64
_UTF8, _DESCRIPTOR = 0x800, 0x008  # names are UTF-8; CRC and sizes follow the data
_PICKLE_PROTOCOL = 2
_TYPED = {  # dtypes that have a storage type of their own
    "bool": "BoolStorage",
    "uint8": "ByteStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}
_UNTYPED = ["uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e4m3fnuz"]
_UNTYPED += ["float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"]


class _Name:
    """Stands for something of torch that the pickle names; torch itself is not needed for that."""

    def __init__(self, name: str, module: str = "torch") -> None:
        self.name, self.module = name, module

    def __call__(self, *arguments: object) -> NoReturn:
        """Nobody calls it here; pickle wants to see that it could be done."""
        raise TypeError(f"{self.name} is only a name")


_STORAGES = {DTYPES[dtype]: _Name(kind) for dtype, kind in _TYPED.items()}
_BARE = {DTYPES[dtype]: _Name(dtype) for dtype in _UNTYPED}
_UNTYPED_STORAGE = _Name("UntypedStorage", "torch.storage")
_REBUILD = [_Name(f"_rebuild_tensor_v{version}", "torch._utils") for version in (2, 3)]


def layout(contents: Contents) -> Layout:
    """Lay out a state dict as one torch file; tied tensors are two names of one storage.

    Raises:
        CheckpointError: larger than the limit, or a dtype that torch cannot load.

    Example:
        >>> import torch
        >>> plan = layout(Contents([Slot("w", torch.float32, (2,))], {"tied": "w"}, {}))
        >>> plan.files[""], plan.places, plan.checksums
        (1399, {'w': ('', 768)}, [Checksum(file='', start=768, length=8, places=(780, 1196))])
    """
    refuse_split(contents)
    refuse_unloadable(contents.slots)
    storages = {slot.name: _Storage(str(i), slot) for i, slot in enumerate(contents.slots)}
    kept = {**{name: name for name in storages}, **contents.aliases}
    state = OrderedDict((name, _Tensor(storages[of])) for name, of in kept.items())
    return _archive(state, contents.slots, contents.note)


def one_tensor(slot: Slot) -> Layout:
    """Lay out one tensor, as `torch.save(tensor, file)` does.

    Raises:
        CheckpointError: a dtype that torch cannot load.

    Example:
        >>> import torch
        >>> one_tensor(Slot("w", torch.uint8, (2, 3))).places
        {'w': ('', 704)}
    """
    refuse_unloadable([slot])
    return _archive(_Tensor(_Storage("0", slot)), [slot], {})


def refuse_unloadable(slots: Sequence[Slot]) -> None:
    """Refuse tensors of dtypes that `torch.load` does not load.

    Raises:
        CheckpointError: there are some; all are counted.

    Example:
        >>> import torch
        >>> refuse_unloadable([Slot("w", torch.qint8, (2,))])
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: a torch file cannot hold 1 tensor: 'w' is torch.qint8; ...
    """
    refuse_unwritable("a torch file", _faults(slots), "choose another dtype with --dtype")


class _Storage(NamedTuple):
    """What the pickle says of a storage: its record and the slot that fills it."""

    key: str
    slot: Slot

    def persistent_id(self) -> tuple[object, ...]:
        kind = _STORAGES.get(self.slot.dtype)
        if kind is None:
            return ("storage", _UNTYPED_STORAGE, self.key, "cpu", self.slot.nbytes)
        return ("storage", kind, self.key, "cpu", self.slot.count)


class _Tensor:
    """Pickles as a contiguous tensor over the whole of a storage."""

    def __init__(self, storage: _Storage) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        slot = self.storage.slot
        shape = (*slot.shape,)  # a new tuple: the pickle must not depend on what is shared
        hooks: OrderedDict[str, object] = OrderedDict()
        what = (self.storage, 0, shape, _strides(shape), False, hooks)
        if slot.dtype in _STORAGES:
            return _REBUILD[0], what
        return _REBUILD[1], (*what, _BARE[slot.dtype])


class _Pickler(pickle._Pickler):
    """Writes storages as references to records of the archive, and names without looking them up.

    It is the documented `pickle.Pickler` in Python, which can do that; the one in C cannot.
    """

    dispatch = pickle._Pickler.dispatch.copy()

    def _save_name(self, value: _Name) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[_Name] = _save_name  # type: ignore[assignment]  # typeshed knows little of this class

    def persistent_id(self, value: object) -> tuple[object, ...] | None:
        return value.persistent_id() if isinstance(value, _Storage) else None


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _archive(value: object, slots: Sequence[Slot], note: Mapping[str, str]) -> Layout:
    """Lay out an archive of a value and the storages it refers to, numbered in their order."""
    pickled = BytesIO()
    _Pickler(pickled, _PICKLE_PROTOCOL).dump(value)
    archive = _Archive()
    archive.add("data.pkl", pickled.getvalue())
    archive.add(".format_version", b"1")
    archive.add(".storage_alignment", str(_ALIGNMENT).encode())
    archive.add("byteorder", b"little")
    places = {
        slot.name: ("", archive.reserve(f"data/{number}", slot.nbytes))
        for number, slot in enumerate(slots)
    }
    if PROVENANCE in note:
        archive.add(PROVENANCE_FILE, note[PROVENANCE].encode())
    archive.add("version", b"3\n")
    return archive.close(places)


def _faults(slots: Sequence[Slot]) -> Iterator[str]:
    for slot in slots:
        if slot.dtype not in _STORAGES and slot.dtype not in _BARE:
            yield f"'{printable(slot.name)}' is {slot.dtype}"


class _Record(NamedTuple):
    """An entry of the archive's directory."""

    name: bytes
    offset: int
    start: int
    size: int
    crc: int | None  # not known yet

    @property
    def flags(self) -> int:
        return _UTF8 | _DESCRIPTOR if self.size else _UTF8

    @property
    def large(self) -> bool:
        """Whether it needs zip64."""
        return self.size >= _SMALL or self.offset >= _SMALL

    def zip64(self, packed: int) -> bytes:
        """Return the extra field of what does not fit 32 bits; none where all fits."""
        numbers = [self.size, packed] if self.size >= _SMALL else []
        numbers += [self.offset] if self.offset >= _SMALL else []
        return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""

    def descriptor(self) -> bytes:
        """Return what follows the data."""
        form = "<4sI2Q" if self.large else "<4s3I"
        return struct.pack(form, b"PK\x07\x08", self.crc or 0, self.size, self.size)

    def entry(self) -> bytes:
        """Return its line of the directory."""
        extra = self.zip64(self.size)
        size = min(self.size, _SMALL)
        facts = (0, 0, self.flags, 0, 0, 0, self.crc or 0, size, size, len(self.name), len(extra))
        tail = (0, 0, 0, 0, min(self.offset, _SMALL))
        return struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *facts, *tail) + self.name + extra


class _Archive:
    """A zip archive that grows: the bytes that are known, between the stretches that are not."""

    def __init__(self) -> None:
        self._known = bytearray()  # from `_known_at` on
        self._known_at = 0
        self._parts: list[tuple[str, int, bytes]] = []
        self._records: list[_Record] = []

    @property
    def _cursor(self) -> int:
        return self._known_at + len(self._known)

    def add(self, name: str, raw: bytes) -> None:
        """Put a record whose bytes are known."""
        record = self._begin(name, len(raw), zlib.crc32(raw))
        self._known += raw
        self._end(record)

    def reserve(self, name: str, size: int) -> int:
        """Put a record whose bytes follow later; return where they go."""
        record = self._begin(name, size, None)
        if size:
            self._flush()
            self._known_at += size
        self._end(record)
        return record.start

    def close(self, places: Mapping[str, tuple[str, int]]) -> Layout:
        """Put the directory and return the layout."""
        start, places_of_crc = self._cursor, []
        for record in self._records:
            places_of_crc.append(self._cursor + 16)
            self._known += record.entry()
        self._known += _end_of_directory(len(self._records), start, self._cursor - start)
        self._flush()
        checksums = [
            Checksum("", r.start, r.size, (r.start + r.size + 4, place))
            for r, place in zip(self._records, places_of_crc, strict=True)
            if r.crc is None and r.size
        ]
        return Layout({"": self._cursor}, self._parts, places, checksums)

    def _begin(self, name: str, size: int, crc: int | None) -> _Record:
        full = f"{_ROOT}/{name}".encode()
        record = _Record(full, self._cursor, 0, size, crc)
        zip64 = record.zip64(0)  # as torch writes it: the packed size follows the data
        start = self._cursor + 30 + len(full) + len(zip64) + 4
        padding = -start % _ALIGNMENT
        extra = zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        facts = (0, record.flags, 0, 0, 0, 0, 0, 0, len(full), len(extra))
        self._known += struct.pack("<4s5H3I2H", b"PK\x03\x04", *facts) + full + extra
        return record._replace(start=start + padding)

    def _end(self, record: _Record) -> None:
        self._records.append(record)
        if record.size:
            self._known += record.descriptor()

    def _flush(self) -> None:
        self._parts.append(("", self._known_at, bytes(self._known)))
        self._known_at, self._known = self._cursor, bytearray()


def _end_of_directory(count: int, start: int, size: int) -> bytes:
    """Return the end of an archive; torch always writes the one of zip64, too."""
    facts = (44, 0x031E, 45, 0, 0, count, count, size, start)
    short = (0, 0, min(count, 0xFFFF), min(count, 0xFFFF), min(size, _SMALL), min(start, _SMALL), 0)
    return (
        struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", *facts)
        + struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
        + struct.pack("<4s4H2IH", b"PK\x05\x06", *short)
    )

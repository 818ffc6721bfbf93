"""The directory of a zip archive: the only one we have, for checking and for reading alike.

Two readers that understand one file differently are a door: a checker sees one pickle, the loader
another. So whatever is read from an archive is found here, and an archive that could be understood
in two ways (a name twice, entries that overlap, a local header that contradicts the directory) is
refused. The archive may be a stretch of a larger file.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from polyfuse.checkpoints.base import LIMITS, File
from polyfuse.errors import CheckpointError, printable

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ALL_ONES = 0xFFFFFFFF  # the number is in the zip64 extra field
_ENCRYPTED, _DESCRIPTOR = 0x2041, 0x0008
_STORED, _DEFLATED = 0, 8
_STEP = 1 << 20
_SMALL = 1 << 20  # unpacked bytes that are no bomb, however little they were packed into


class Entry(NamedTuple):
    """One file of an archive.

    Attributes:
        name: with its folders.
        header: where its local header begins, in the file.
        offset: where its data begin, in the file.
        packed: bytes of data there.
        size: bytes of data unpacked.
        crc: CRC-32 of the unpacked data, as stated.
        deflated: packed; otherwise the data lie there as they are.
    """

    name: str
    header: int
    offset: int
    packed: int
    size: int
    crc: int
    deflated: bool


class _Window(NamedTuple):
    """The stretch of a file that is the archive; offsets in the archive count from its start."""

    file: File
    start: int
    length: int

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise self.fault(f"it states data at {offset:,} to {offset + length:,}, outside of it")
        return self.file.read(self.start + offset, length)

    def fault(self, reason: str) -> CheckpointError:
        where = f" at byte {self.start:,}" if self.start else ""
        return CheckpointError(
            f"'{self.file.shown}' holds no sound zip archive{where}: {reason}; "
            "it is truncated, damaged or forged: fetch it again, or save it again with torch.save"
        )


class _Stated(NamedTuple):
    """What the central directory says of an entry."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


def read_directory(file: File, start: int = 0, length: int | None = None) -> dict[str, Entry]:
    """Read and check the directory of a zip archive; no data are read.

    Args:
        file: that holds the archive.
        start: where the archive begins in it.
        length: of the archive; to the end of the file where not given.

    Returns:
        All entries by name, in the order of the directory.

    Raises:
        CheckpointError: truncated, encrypted, ambiguous, of an unknown packing, or beyond LIMITS.

    Example:
        >>> import tempfile, zipfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> with zipfile.ZipFile(path, "w") as archive:
        ...     archive.writestr("a/b", b"hello")
        >>> read_directory(File(path))["a/b"].size
        5
    """
    window = _Window(file, start, file.size - start if length is None else length)
    file.check_range(start, window.length)
    place, size, count = _end_record(window)
    if size > LIMITS.directory_bytes or count > LIMITS.names:
        raise window.fault(f"its directory states {count:,} entries in {size:,} bytes, too many")
    entries: dict[str, Entry] = {}
    for stated in _central(window, window.read(place, size), count):
        entry = _entry(window, stated)
        if entry.name in entries:
            raise window.fault(f"'{printable(entry.name)}' is in it twice")
        entries[entry.name] = entry
    _check_apart(window, entries, start + place)
    return entries


def _end_record(window: _Window) -> tuple[int, int, int]:
    """Return place, size and number of entries of the central directory."""
    first = max(0, window.length - (1 << 16) - _END.size)
    tail = window.read(first, window.length - first)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise window.fault("its end record is missing")
    _, disk, disk2, here, count, size, place, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise window.fault("its end record is not at its end")
    end = first + at
    if tail[max(0, at - _LOCATOR.size) : at].startswith(b"PK\6\7"):
        stated = (disk, disk2, here, count, size, place)
        end, count, size, place = _end_record64(window, end - _LOCATOR.size, stated)
    elif (disk, disk2, here) != (0, 0, count):
        raise window.fault("it is one of several parts")
    if place + size != end:
        raise window.fault("its directory does not end where its end record begins")
    return place, size, count


def _end_record64(window: _Window, at: int, stated: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return place of the zip64 end record, and number, size and place that it states."""
    _, disk, end, disks = _LOCATOR.unpack(window.read(at, _LOCATOR.size))
    if disk or disks > 1 or end + _END64.size > at:
        raise window.fault("its zip64 locator is damaged")
    found = _END64.unpack(window.read(end, _END64.size))
    if found[0] != b"PK\6\6" or found[1] + 12 != at - end:
        raise window.fault("its zip64 end record is damaged")
    numbers = found[4:]  # disk, disk of the directory, entries here, entries, size, place
    if numbers[:2] != (0, 0) or numbers[2] != numbers[3]:
        raise window.fault("it is one of several parts")
    ones = (0xFFFF,) * 4 + (_ALL_ONES,) * 2
    if any(a not in (b, full) for a, b, full in zip(stated, numbers, ones, strict=True)):
        raise window.fault("its two end records contradict each other")
    return end, numbers[3], numbers[4], numbers[5]


def _central(window: _Window, raw: bytes, count: int) -> Iterator[_Stated]:
    """Yield what the central directory says of each entry."""
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(raw) or raw[at : at + 4] != b"PK\1\2":
            raise window.fault(f"its directory is damaged at byte {at:,}")
        fields = _CENTRAL.unpack_from(raw, at)
        _, _, _, flags, method, _, _, crc, packed, size, named, extra, note, disk, _, _, header = (
            fields
        )
        name_end = at + _CENTRAL.size + named
        raw_name, after = raw[at + _CENTRAL.size : name_end], name_end + extra
        if _ALL_ONES in (packed, size, header):
            wide = _zip64(raw[name_end:after], (size, packed, header))
            if wide is None:
                raise window.fault(f"'{_shown(raw_name)}' lacks its zip64 sizes")
            size, packed, header = wide
        at = after + note
        if at > len(raw) or disk not in (0, 0xFFFF):
            raise window.fault(f"its directory is damaged at '{_shown(raw_name)}'")
        yield _Stated(raw_name, flags, method, crc, packed, size, header)
    if at != len(raw):
        raise window.fault(f"its directory holds more than the {count:,} entries that it states")


def _zip64(extra: bytes, numbers: tuple[int, ...]) -> list[int] | None:
    """Return the numbers, those that are all ones taken from the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = [extra[i : i + 8] for i in range(at + 4, min(at + 4 + length, len(extra)), 8)]
            values = iter([int.from_bytes(w, "little") for w in wide if len(w) == 8])
            full = [next(values, None) if n == _ALL_ONES else n for n in numbers]
            return None if None in full else [n for n in full if n is not None]
        at += 4 + length
    return None


def _shown(raw_name: bytes) -> str:
    return printable(raw_name.decode("utf-8", "replace"))


def _entry(window: _Window, stated: _Stated) -> Entry:
    """Check what is said of an entry, and find its data through its local header."""
    name = _name(window, stated.raw_name)
    if stated.flags & _ENCRYPTED:
        raise window.fault(f"'{name}' is encrypted")
    if stated.method not in (_STORED, _DEFLATED):
        raise window.fault(f"'{name}' is packed by method {stated.method}, not stored or deflated")
    deflated = stated.method == _DEFLATED
    if not deflated and stated.packed != stated.size:
        raise window.fault(f"'{name}' is stored, but states two sizes")
    if stated.size > max(_SMALL, LIMITS.inflation * stated.packed):
        raise window.fault(
            f"'{name}' would unpack {stated.packed:,} bytes to {stated.size:,}, "
            f"more than {LIMITS.inflation} times as many"
        )
    offset = stated.header + _data_place(window, stated, name)
    if offset + stated.packed > window.length:
        raise window.fault(f"the data of '{name}' end after it")
    header, place = window.start + stated.header, window.start + offset
    return Entry(name, header, place, stated.packed, stated.size, stated.crc, deflated)


def _name(window: _Window, raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise window.fault(f"the name '{_shown(raw)}' is not UTF-8") from None
    if not name.isprintable() or not 0 < len(name) <= LIMITS.name_characters:
        raise window.fault(f"'{printable(name)}' is no name: it is empty, too long or unprintable")
    return name


def _data_place(window: _Window, stated: _Stated, name: str) -> int:
    """Return how far after its local header an entry's data begin; the two headers must agree."""
    named = len(stated.raw_name)
    raw = window.read(stated.header, _LOCAL.size + named)
    sign, _, flags, method, _, _, crc, packed, size, local_named, extra = _LOCAL.unpack_from(raw)
    if sign != b"PK\3\4" or raw[_LOCAL.size :] != stated.raw_name or local_named != named:
        raise window.fault(f"the directory's place of '{name}' holds no such entry")
    if method != stated.method or (flags ^ stated.flags) & (_ENCRYPTED | _DESCRIPTOR):
        raise window.fault(f"'{name}' is packed in another way than the directory says")
    if _ALL_ONES in (packed, size):
        found = window.read(stated.header + _LOCAL.size + named, extra)
        size, packed = _zip64(found, (size, packed)) or (size, packed)
    wanted = (stated.crc, stated.packed, stated.size)
    # With a data descriptor the writer did not know them yet, and left zeros.
    zeros = flags & _DESCRIPTOR
    pairs = zip((crc, packed, size), wanted, strict=True)
    if any(a != b and not (zeros and a == 0) for a, b in pairs):
        raise window.fault(f"'{name}' has another size or CRC than the directory says")
    return _LOCAL.size + named + int(extra)


def _check_apart(window: _Window, entries: dict[str, Entry], directory: int) -> None:
    """Refuse entries that share bytes with each other or with the directory."""
    end, before = window.start, ""
    for entry in sorted(entries.values(), key=lambda entry: entry.header):
        if entry.header < end:
            raise window.fault(f"'{before}' and '{entry.name}' overlap")
        end, before = entry.offset + entry.packed, entry.name
    if end > directory:
        raise window.fault(f"'{before}' and the directory overlap")


def read_entry(file: File, entry: Entry, limit: int) -> bytes:
    """Return the data of an entry, unpacked; its CRC is checked.

    Raises:
        CheckpointError: larger than `limit`, or damaged.
    """
    if entry.size > limit:
        raise CheckpointError(
            f"'{entry.name}' in '{file.shown}' has {entry.size:,} bytes; at most {limit:,} are read"
        )
    out = bytearray(entry.size)
    fill(file, entry, 0, memoryview(out))
    if zlib.crc32(out) != entry.crc:
        raise _damaged(file, entry, "its CRC is wrong")
    return bytes(out)


def fill(file: File, entry: Entry, start: int, out: memoryview) -> None:
    """Fill a buffer with the unpacked data of an entry, from byte `start` of them on.

    Stored data are read in place, and their CRC is left to the caller, who may read them in parts;
    deflated ones are unpacked whole, piece by piece, and checked.

    Raises:
        CheckpointError: damaged, or they end before.
    """
    if start < 0 or start + len(out) > entry.size:
        raise _damaged(file, entry, f"it has only {entry.size:,} bytes")
    if not entry.deflated:
        file.read_into(entry.offset + start, out)
        return
    at = crc = 0
    for piece in _inflated(file, entry):
        low, high = max(at, start), min(at + len(piece), start + len(out))
        if low < high:
            out[low - start : high - start] = piece[low - at : high - at]
        at, crc = at + len(piece), zlib.crc32(piece, crc)
        if at > entry.size:
            raise _damaged(file, entry, f"it unpacks to more than the {entry.size:,} bytes stated")
    if at != entry.size or crc != entry.crc:
        raise _damaged(file, entry, f"it unpacks to {at:,} bytes, or its CRC is wrong")


def _inflated(file: File, entry: Entry) -> Iterator[bytes]:
    """Yield the unpacked data of an entry, at most a megabyte at a time."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    at, end = entry.offset, entry.offset + entry.packed
    while not engine.eof:
        packed = engine.unconsumed_tail
        if not packed and at < end:
            packed = file.read(at, min(_STEP, end - at))
            at += len(packed)
        try:
            piece = engine.decompress(packed, _STEP)
        except zlib.error as error:
            raise _damaged(file, entry, f"it cannot be unpacked ({error})") from None
        if not packed and not piece:
            raise _damaged(file, entry, "its packed data end too early")
        yield piece
    if engine.unused_data or at != end:
        raise _damaged(file, entry, "its packed data go on after their end")


def _damaged(file: File, entry: Entry, reason: str) -> CheckpointError:
    return CheckpointError(
        f"'{entry.name}' in '{file.shown}' is damaged: {reason}; fetch the file again"
    )

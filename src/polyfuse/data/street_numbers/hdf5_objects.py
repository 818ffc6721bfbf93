"""Small objects of an HDF5 file, read straight from its bytes: many times as fast as by h5py.

Only what MATLAB 7.3 writes (and h5py by default): object headers of version 1, groups of symbol
tables, plain values in one piece. All else is `Unusual`, and for h5py to read or to refuse. The
layout is that of the "HDF5 File Format Specification Version 3.0".
"""

import os
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

_SPACE, _TYPE, _EXTERNAL, _LAYOUT, _MORE, _TABLE = 0x01, 0x03, 0x07, 0x08, 0x10, 0x11  # messages
_BLOCKS, _MESSAGES, _NODES = 8, 64, 64  # of one object
_LARGEST = 1 << 16  # bytes of a header, or of a group's names
_PAGE, _PAGES = 1 << 16, 64  # bytes read at once, and how many such are kept
_DOUBLE = bytes.fromhex("11203f000800000000004000340b0034ff030000")  # IEEE, little endian
_SHORT = bytes.fromhex("1000000002000000")  # class, bits and size of uint16, little endian
_REFERENCE = bytes.fromhex("1700000008000000")  # to an object: its address


class Unusual(Exception):
    """Something that is not laid out as MATLAB does."""


class Plain(NamedTuple):
    """The values of a dataset: what they are, how many, and their bytes."""

    kind: str  # d double, H character, Q address
    length: int
    raw: bytes


class Bytes:
    """The bytes of an open file, read where they are asked for.

    Not a memory map: a file that is cut short while it is mapped kills the process.

    Args:
        descriptor: of the file.
    """

    def __init__(self, descriptor: int) -> None:
        """Look how long it is."""
        self.descriptor, self.size = descriptor, os.fstat(descriptor).st_size
        self._page = lru_cache(_PAGES)(self._read)

    def __len__(self) -> int:
        """Return how many there were when it was opened."""
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        """Return the bytes from `part.start` to `part.stop`; fewer where the file has ended."""
        page, start = divmod(part.start, _PAGE)
        if part.stop <= (page + 1) * _PAGE:
            return self._page(page)[start : part.stop - page * _PAGE]
        return os.pread(self.descriptor, part.stop - part.start, part.start)

    def _read(self, page: int) -> bytes:
        return os.pread(self.descriptor, _PAGE, page * _PAGE)


class Objects:
    """The objects of a file, by their addresses.

    Args:
        file: its bytes.
        base: the byte that addresses count from.
        most: values of a dataset at most.

    Example:
        >>> Objects(b"", 0, 64).values(96)
        Traceback (most recent call last):
        polyfuse.data.street_numbers.hdf5_objects.Unusual: no object header at 96
    """

    def __init__(self, file: bytes | Bytes, base: int, most: int) -> None:
        """Read nothing yet."""
        self.file, self.base, self.most = file, base, most

    def text(self, address: int) -> str:
        """Return the characters of a dataset.

        Raises:
            Unusual: it is no such dataset.
        """
        found = self.values(address)
        if found.kind != "H":
            raise Unusual("no characters")
        return found.raw.decode("utf-16-le", "surrogatepass")

    def numbers(self, address: int) -> list[float]:
        """Return the numbers of a dataset, or those that its references point to.

        Raises:
            Unusual: it is no such dataset.
        """
        found = self.values(address)
        if found.kind == "H":
            raise Unusual("characters")
        values = struct.unpack(f"<{found.length}{found.kind}", found.raw)
        return [self._number(value) for value in values] if found.kind == "Q" else list(values)

    def _number(self, address: int) -> float:
        found = self.values(address)
        if found.kind != "d" or found.length != 1:
            raise Unusual("no number")
        return float(struct.unpack("<d", found.raw)[0])

    def values(self, address: int) -> Plain:
        """Return what a dataset holds.

        Raises:
            Unusual: it is no dataset of numbers, characters or references in one piece.
        """
        parts = dict(self._messages(address))
        if not {_SPACE, _TYPE, _LAYOUT} <= parts.keys() or _EXTERNAL in parts:
            raise Unusual("no plain dataset")
        kind, size = _kind(parts[_TYPE])
        count = _count(parts[_SPACE])
        if count > self.most:
            raise Unusual("many values")
        raw = self._held(parts[_LAYOUT], count * size)
        return Plain(kind, count, raw)

    def members(self, address: int, names: Sequence[bytes]) -> dict[bytes, int]:
        """Return the addresses of those of a group's members that have one of these names.

        Raises:
            Unusual: it is no group of a symbol table, or a member is a link.
        """
        parts = dict(self._messages(address))
        if _TABLE not in parts:
            raise Unusual("no symbol table")
        tree, heap = struct.unpack_from("<QQ", parts[_TABLE])
        if self._at(heap, 4) != b"HEAP":
            raise Unusual("no heap")
        size, _, texts = struct.unpack("<QQQ", self._at(heap + 8, 24))
        held = self._at(texts, min(size, _LARGEST))
        found = {}
        for offset, member, link in self._symbols(tree):
            name = held[offset : held.find(b"\0", offset)]
            if name in names and link:
                raise Unusual("a link")
            if name in names:
                found[name] = member
        return found

    def _symbols(self, tree: int) -> Iterator[tuple[int, int, bool]]:
        """Yield the place of its name, the address, and whether it is a link, of each symbol."""
        left, seen = [tree], 0
        while left:
            node, seen = left.pop(), seen + 1
            head = self._at(node, 8)
            if seen > _NODES:
                raise Unusual("many nodes")
            if head[:4] == b"TREE" and head[4] == 0:
                count = int.from_bytes(head[6:8], "little")
                keys = struct.unpack(f"<{2 * count}Q", self._at(node + 24, 16 * count))
                left += keys[1::2]
            elif head[:5] == b"SNOD\1":
                count = int.from_bytes(head[6:8], "little")
                for entry in struct.iter_unpack("<QQI20x", self._at(node + 8, 40 * count)):
                    yield entry[0], entry[1], entry[2] == 2
            else:
                raise Unusual("no node")

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Yield the kind and the contents of each message of an object header."""
        try:
            head = self._at(address, 16)
        except Unusual:
            head = b""
        if head[:2] != b"\1\0":
            raise Unusual(f"no object header at {address}")
        blocks, count = [(address + 16, int.from_bytes(head[8:12], "little"))], 0
        while blocks:
            start, size = blocks.pop()
            if size > _LARGEST:
                raise Unusual("a long header")
            block, place = self._at(start, size), 0
            while place + 8 <= size:
                kind, length = struct.unpack_from("<HH", block, place)
                contents = block[place + 8 : place + 8 + length]
                if len(contents) < length:
                    raise Unusual("a message that is cut")
                place, count = place + 8 + length, count + 1
                if count > _MESSAGES:
                    raise Unusual("many messages")
                if kind == _MORE:
                    blocks.append(struct.unpack("<QQ", contents))
                else:
                    yield kind, contents

    def _held(self, layout: bytes, size: int) -> bytes:
        """Return the bytes of values that lie in one piece."""
        if layout[:2] == b"\3\0":  # in the header itself
            raw = layout[4 : 4 + size]
        elif layout[:2] == b"\3\1":
            raw = self._at(int.from_bytes(layout[2:10], "little"), size)
        else:
            raise Unusual("values in several pieces")
        if len(raw) < size:
            raise Unusual("values that are cut")
        return raw

    def _at(self, address: int, size: int) -> bytes:
        start = self.base + address
        if not 0 <= start <= start + size <= len(self.file):
            raise Unusual("an address outside the file")
        read = self.file[start : start + size]
        if len(read) < size:
            raise Unusual("a file that was cut")
        return read


def _kind(datatype: bytes) -> tuple[str, int]:
    """Return what values of a datatype are, and the bytes of one."""
    if datatype[:20] == _DOUBLE:
        return "d", 8
    if datatype[:8] == _SHORT:
        return "H", 2
    if datatype[:8] == _REFERENCE:
        return "Q", 8
    raise Unusual("another datatype")


def _count(space: bytes) -> int:
    """Return how many values a dataspace has."""
    if space[:1] != b"\1" or len(space) < 8 + 8 * space[1] or space[1] > 4:
        raise Unusual("another dataspace")
    count = 1
    for side in struct.unpack_from(f"<{space[1]}Q", space, 8):
        count *= side
    return count

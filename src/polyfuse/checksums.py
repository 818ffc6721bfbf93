"""CRC-32 of stretches of a file: read for it, or taken of what passes by anyway and joined.

A CRC is a remainder of polynomials over GF(2), so that of two stretches follows from each one's:
`crc(a + b) = crc(a) * x^(8 len(b)) + crc(b)` (Peterson and Brown, Proc. IRE 1961). This file
imports nothing heavy.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

try:
    from isal.isal_zlib import crc32 as _crc32  # three times as fast
except ImportError:  # there is no wheel for every machine
    from zlib import crc32 as _crc32

PIECE = 1 << 20
_ONE, _X = 1 << 31, 1 << 30  # the polynomials 1 and x: the highest bit is the lowest power
_MODULUS = 0xEDB88320  # that of zip, zlib and PNG
ReadInto = Callable[[int, memoryview], None]


def crc32(read_into: ReadInto, start: int, length: int) -> int:
    """Return the CRC-32 of a stretch of a file.

    Args:
        read_into: `(offset, buffer)` fills the buffer with the bytes from `offset` on.
        start: first byte.
        length: bytes.

    Example:
        >>> def read_into(offset, buffer):
        ...     buffer[:] = b"123456789"[offset : offset + len(buffer)]
        >>> crc32(read_into, 0, 9) == 0xCBF43926
        True
    """
    crc, buffer = 0, memoryview(bytearray(min(PIECE, length)))
    for offset in range(start, start + length, PIECE):
        piece = buffer[: start + length - offset]
        read_into(offset, piece)
        crc = _crc32(piece, crc)
    return crc


def joined(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of two stretches in a row.

    Args:
        first: CRC-32 of the one.
        second: CRC-32 of the one after it.
        length: bytes of the second one.

    Example:
        >>> import zlib
        >>> joined(zlib.crc32(b"poly"), zlib.crc32(b"fuse"), 4) == zlib.crc32(b"polyfuse")
        True
    """
    return _times(first, _shift(length)) ^ second


class Passing:
    """The CRC-32 of what is read from a file or written to it, piece by piece, by any threads.

    Example:
        >>> passing = Passing()
        >>> passing.note(4, b"56789")
        >>> passing.crc32(0, 9) is None
        True
        >>> passing.note(0, b"1234")
        >>> passing.crc32(0, 9) == 0xCBF43926
        True
    """

    def __init__(self) -> None:
        """Nothing has passed yet."""
        self._pieces: dict[int, _Piece] = {}
        self._lock = threading.Lock()

    def note(self, offset: int, buffer: bytes | memoryview) -> None:
        """Take note of bytes that lie at `offset`; of two notes of one place the later one counts.

        The lock is held only to keep the result.
        """
        piece = _Piece(len(buffer), _crc32(buffer))
        with self._lock:
            self._pieces[offset] = piece

    def crc32(self, start: int, length: int) -> int | None:
        """Return the CRC-32 of a stretch; None where its pieces do not lie end to end."""
        crc, at = 0, start
        while at < start + length:
            piece = self._pieces.get(at)
            if piece is None or not piece.length or at + piece.length > start + length:
                return None
            crc, at = joined(crc, piece.crc, piece.length), at + piece.length
        return crc


class _Piece(NamedTuple):
    length: int
    crc: int


def _times(a: int, b: int) -> int:
    """Return the product of two polynomials, modulo that of the CRC."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_MODULUS if b & 1 else 0)
    return product


@cache
def _square(power: int) -> int:
    """Return x to the power of 2^power."""
    return _X if power == 0 else _times(_square(power - 1), _square(power - 1))


@cache
def _shift(length: int) -> int:
    """Return x to the power of 8 * length; chunks have few lengths."""
    found = _ONE
    for power in range(length.bit_length()):
        if length >> power & 1:
            found = _times(found, _square(power + 3))
    return found

"""Plain `.npy` arrays: written whole, and read or memory-mapped without trust."""

import io
import math
import mmap
import os
import sys
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.errors import DataError, RunError, printable
from polyfuse.predictions.files import open_file

KINDS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})
HEAD = 1 << 16  # bytes that hold any header that is read
# A private map is not promised memory for copies that nobody makes: it may be larger than that.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
# What NumPy's header reader raises for damaged headers.
_HEADER_FAULTS = (
    ValueError,
    TypeError,
    SyntaxError,
    RecursionError,
    IndexError,
    MemoryError,
    tokenize.TokenError,
)


class Header(NamedTuple):
    """What the first bytes of a `.npy` file say of the rest."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


def write(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`.

    Args:
        path: final name; its folder exists.
        array: numbers or booleans, any shape.

    Raises:
        DataError: an array of objects or text.
        DiskError: the file system refused.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.npy"
        >>> write(target, np.arange(3))
        >>> read(target)
        array([0, 1, 2])
    """
    _check_kind(printable(path), array.dtype)
    header = io.BytesIO()
    plain = np.ascontiguousarray(array).reshape(array.shape)
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(plain))
    durable.write_bytes(path, header.getvalue(), plain.reshape(-1).view(np.uint8).data)


def read(path: Path) -> NDArray[Any]:
    """Read a `.npy` file of numbers: no pickle, and the header must account for every byte.

    Raises:
        DataError: missing, no `.npy`, truncated, trailing bytes, objects or text.

    Example:
        >>> read(Path("/no/such.npy"))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such.npy': No such file or directory
    """
    try:
        raw = durable.read_bytes(path)
    except RunError as error:
        raise DataError(str(error)) from None
    return parse(raw, printable(path))


def parse(raw: bytes, name: str) -> NDArray[Any]:
    """Return the array that these bytes of a `.npy` file hold; `name` is for the error.

    Raises:
        DataError: no `.npy`, truncated, trailing bytes, objects or text.

    Example:
        >>> parse(b"hello", "mine.npy")
        Traceback (most recent call last):
        polyfuse.errors.DataError: 'mine.npy' is not a .npy array (EOF: reading magic string, ...
    """
    head = read_header(raw, len(raw), name)
    flat = np.frombuffer(raw, head.dtype, offset=head.start)
    return shaped(flat.astype(head.dtype.newbyteorder("=")), head, name)


def map_array(path: Path, *, follow: bool = True, text: bool = False) -> NDArray[Any]:
    """Map a `.npy` file of numbers into memory: nothing is read but what is looked at.

    The array may be written to; the file never changes. Where another program cuts the file short
    while it is mapped, the system ends this one: map what nobody writes.

    Args:
        path: of the file.
        follow: a link to it.
        text: is taken, too.

    Raises:
        DataError: missing, no `.npy`, truncated, trailing bytes, objects or text.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.npy"
        >>> write(target, np.arange(3))
        >>> map_array(target)
        array([0, 1, 2])
    """
    name = printable(path)
    descriptor, size = open_file(path, follow=follow)
    try:
        head = read_header(os.read(descriptor, HEAD), size, name, text=text)
        flat = _mapped(descriptor, head, size)
    finally:
        os.close(descriptor)
    return shaped(flat, head, name)


def _mapped(descriptor: int, head: Header, size: int) -> NDArray[Any]:
    native = head.dtype.newbyteorder("=")
    if size == head.start:
        return np.empty(0, native)
    if hasattr(mmap, "MAP_PRIVATE"):
        access = mmap.PROT_READ | mmap.PROT_WRITE
        pages = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE | _NO_RESERVE, access)
    else:
        pages = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    flat: NDArray[Any] = np.frombuffer(pages, head.dtype, offset=head.start)
    return flat.astype(native, copy=False)


def header_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of an array whose numbers follow in C order, little-endian.

    Example:
        >>> len(header_bytes(np.dtype("f4"), (3, 2)))
        128
    """
    stream = io.BytesIO()
    descr = dtype.newbyteorder("<").str
    facts = {"descr": descr, "fortran_order": False, "shape": tuple(map(int, shape))}
    npy.write_array_header_1_0(stream, facts)
    return stream.getvalue()


def read_header(raw: bytes, size: int, name: str, *, text: bool = False) -> Header:
    """Return what a `.npy` file's header says, once it accounts for every byte of the file.

    Args:
        raw: the file's first bytes.
        size: of the whole file.
        name: of it, for the error.
        text: is taken, too.

    Raises:
        DataError: no `.npy`, truncated, trailing bytes, objects or text.

    Example:
        >>> read_header(header_bytes(np.dtype("f4"), (3,)), 140, "a.npy").start
        128
    """
    head = _header(raw, name)
    if not (text and head.dtype.kind in "US"):
        _check_kind(name, head.dtype)
    expected = head.start + math.prod(head.shape) * head.dtype.itemsize
    if expected != size or min(head.shape, default=0) < 0:
        raise DataError(
            f"'{name}' should have {expected:,} bytes by its header but has {size:,}; "
            "it is truncated or damaged: restore it or write it again"
        )
    return head


def shaped(flat: NDArray[Any], head: Header, name: str) -> NDArray[Any]:
    """Return flat numbers in the shape that a header states.

    Raises:
        DataError: more axes or longer ones than an array can have.

    Example:
        >>> shaped(np.zeros(4), Header((2, 2), False, np.dtype("f8"), 128), "a.npy").shape
        (2, 2)
    """
    try:
        return flat.reshape(head.shape, order="F" if head.fortran else "C")
    except (ValueError, TypeError) as error:  # more axes or longer ones than an array can have
        raise _no_array(name, error) from None


def _header(raw: bytes, name: str) -> Header:
    stream = io.BytesIO(raw)
    try:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except _HEADER_FAULTS as error:
        raise _no_array(name, error) from None
    return Header(shape, fortran, dtype, stream.tell())


def _no_array(name: str, error: Exception) -> DataError:
    return DataError(
        f"'{name}' is not a .npy array ({printable(error)}); write it with numpy.save(path, array)"
    )


def _check_kind(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.str[1:] not in KINDS:
        raise DataError(
            f"'{name}' holds {printable(dtype)}, not numbers; convert it first: "
            "array.astype('float32')"
        )

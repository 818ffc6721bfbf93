"""Predictions on disk: plain `.npy` arrays, written whole and read without trust."""

import io
import math
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.errors import DataError, RunError, printable

_KINDS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})
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
    shape, fortran, dtype, start = _header(raw, name)
    _check_kind(name, dtype)
    expected = start + math.prod(shape) * dtype.itemsize
    if expected != len(raw) or min(shape, default=0) < 0:
        raise DataError(
            f"'{name}' should have {expected:,} bytes by its header but has {len(raw):,}; "
            "it is truncated or damaged: restore it or write it again"
        )
    flat = np.frombuffer(raw, dtype, offset=start).astype(dtype.newbyteorder("="))
    try:
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError) as error:  # more axes or longer ones than an array can have
        raise _no_array(name, error) from None


def _header(raw: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    stream = io.BytesIO(raw)
    try:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except _HEADER_FAULTS as error:
        raise _no_array(name, error) from None
    return shape, fortran, dtype, stream.tell()


def _no_array(name: str, error: Exception) -> DataError:
    return DataError(
        f"'{name}' is not a .npy array ({printable(error)}); write it with numpy.save(path, array)"
    )


def _check_kind(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.str[1:] not in _KINDS:
        raise DataError(
            f"'{name}' holds {printable(dtype)}, not numbers; convert it first: "
            "array.astype('float32')"
        )

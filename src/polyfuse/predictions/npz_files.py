"""Archives of NumPy arrays: what an entry states is checked before it is unpacked."""

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.predictions.files import open_file
from polyfuse.predictions.npy_files import HEAD, read_header, shaped

LIMIT = 8 << 30  # bytes of an array
_BEARABLE = 256 << 20  # bytes that are unpacked however little they were packed into
_INFLATION = 200
# What zipfile and its decompressors raise for damaged archives.
FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)


def read_npz(path: Path, key: str | None = None, *, text: bool = False) -> NDArray[Any]:
    """Read one array of an `.npz` file.

    Args:
        path: of the file.
        key: name of the array; needed where there are several.
        text: is taken, too.

    Raises:
        DataError: no `.npz`, damaged, no such array, several to choose from, objects, or an array
            that unpacks to more than 8 GB, or out of all proportion.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.npz"
        >>> np.savez_compressed(target, logits=np.zeros((3, 2)))
        >>> read_npz(target).shape
        (3, 2)
    """
    shown = printable(path)
    descriptor, _ = open_file(path)
    with open(descriptor, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                entry = _chosen(shown, archive.infolist(), key)
                return _read(archive, entry, f"{shown}[{_name(entry)}]", text)
        except FAULTS as error:
            raise DataError(
                f"'{shown}' is no sound .npz of arrays ({printable(error)}); write it again: "
                "numpy.savez(path, logits=array)"
            ) from None


def _name(entry: zipfile.ZipInfo) -> str:
    return printable(entry.filename.removesuffix(".npy"))


def _chosen(shown: str, entries: list[zipfile.ZipInfo], key: str | None) -> zipfile.ZipInfo:
    named = [entry.filename.removesuffix(".npy") for entry in entries]
    if len(set(named)) < len(named):
        raise DataError(f"'{shown}' holds an array twice; write it again: numpy.savez(path, ...)")
    if key in named:
        return entries[named.index(key)]
    if key is None and len(named) == 1:
        return entries[0]
    listed = printable(", ".join(named)) or "nothing"
    missing = f"no array '{printable(key)}'{did_you_mean(key, named)}" if key else "several arrays"
    first = printable(named[0]) if named else "name"
    raise DataError(f"'{shown}' has {missing}; it holds {listed}: name one: '{shown}[{first}]'")


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, shown: str, text: bool) -> NDArray[Any]:
    size = entry.file_size
    if size > min(LIMIT, max(_BEARABLE, _INFLATION * entry.compress_size)):
        raise DataError(
            f"'{shown}' would unpack {entry.compress_size:,} bytes to {size:,}; where you trust "
            "it, save it plainly: numpy.save(path, numpy.load(file)[name])"
        )
    with archive.open(entry) as stream:
        begin = stream.read(min(HEAD, size))
        head = read_header(begin, size, shown, text=text)
        raw = np.empty(size - head.start, np.uint8)
        have = begin[head.start :]
        raw[: len(have)] = np.frombuffer(have, np.uint8)
        rest = memoryview(raw)[len(have) :]  # type: ignore[arg-type]  # NumPy's stub
        while rest:
            count = stream.readinto(rest)  # type: ignore[attr-defined]  # typeshed: IO[bytes]
            if not count:
                raise EOFError(f"it ends {len(rest):,} bytes too early")
            rest = rest[count:]
        if stream.read(1):
            raise EOFError("it is longer than it states")
    flat = raw.view(head.dtype) if raw.size else np.empty(0, head.dtype)
    return shaped(flat.astype(head.dtype.newbyteorder("="), copy=False), head, shown)

"""What safetensors files state of themselves in JSON, read by code of our own and not believed.

It accepts what the safetensors library accepts, but for: fields it does not know, an entry written
as a list, the same name twice, more than `LIMITS` allow, shapes that torch cannot have, and (when
they are read) bools that are neither 0 nor 1. -0 is 0.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from polyfuse import dtypes
from polyfuse.checkpoints.base import LIMITS, File, Raw, TensorInfo
from polyfuse.dtypes import DType, Elements
from polyfuse.errors import CheckpointError, printable

NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",  # since torch 2.7
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPES: Mapping[str, DType] = {code: dtypes.DTYPES[name] for code, name in NAMES.items()}
PACKED = {"F4", "F6_E2M3", "F6_E3M2"}
FIELDS = {"dtype", "shape", "data_offsets"}
MOST = 2**63 - 1  # elements of a torch tensor
SHOWN = 5  # faults told at once


class Flags(NamedTuple):
    """Bools that lie one after the other in a file, a byte each."""

    file: File
    offset: int
    name: str

    @property
    def whole(self) -> bool:
        """No: any part can be read alone."""
        return False

    def fill(self, out: Elements, start: int) -> None:
        """Read, and refuse what is neither 0 nor 1: two equal bools may else differ in bytes."""
        Raw(self.file, self.offset).fill(out, start)
        if len(out) and (worst := int(out.view(np.uint8).max())) > 1:
            raise CheckpointError(
                f"'{self.file.shown}', tensor '{printable(self.name)}': a bool is stored as 0 or "
                f"1, found {worst}; the file is damaged: fetch or save it again"
            )


class Header(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(file: File) -> Header:
    """Read and check the header of a safetensors file; the time is linear in its names.

    Raises:
        CheckpointError: a header that is damaged, or that states what the file does not hold.

    Example:
        >>> import tempfile; from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "a.safetensors")
        >>> _ = path.write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}")
        >>> read_header(File(path))
        Header(tensors={}, metadata={})
    """
    length = _header_length(file)
    try:
        document = parse_json(file.read(8, length))
        metadata = _metadata(document.pop("__metadata__", None))
        return Header(_tensors(file, 8 + length, document), metadata)
    except RecursionError:
        refuse(file, "the header is nested too deeply")
    except ValueError as error:
        refuse(file, str(error))


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return a JSON object as strict as Rust reads it: UTF-8, no name twice, no NaN.

    Raises:
        ValueError: it is none; the message says what it has instead.
        RecursionError: nested too deeply.

    Example:
        >>> parse_json(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: it names 'a' twice
    """
    text = raw.decode("utf-8")
    document = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
    if not isinstance(document, dict):
        raise ValueError(f"a JSON object expected, found {type(document).__name__}")
    if re.search(r"\\u[dD]", text):
        json.dumps(document, ensure_ascii=False).encode()  # refuses half a surrogate pair
    return document


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it names '{printable(twice)}' twice")
    return document


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def refuse(file: File, *faults: str) -> NoReturn:
    """Raise the error for a damaged safetensors file; the first few faults are told."""
    more = f" (and {len(faults) - SHOWN:,} more)" if len(faults) > SHOWN else ""
    raise CheckpointError(
        f"'{file.shown}' is not a sound safetensors file: "
        f"{'; '.join(printable(fault, 400) for fault in faults[:SHOWN])}{more}; "
        "fetch or save it again"
    )


def _header_length(file: File) -> int:
    """Return the stated length of the header, checked before anything of that size is allocated."""
    if file.size < 8:
        refuse(file, f"it has {file.size} bytes, the length of its header alone takes 8")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > LIMITS.header_bytes:
        refuse(file, f"a header of {length:,} bytes, at most {LIMITS.header_bytes:,} expected")
    if 8 + length > file.size:
        refuse(file, f"a header of {length:,} bytes in a file of {file.size:,}: it is truncated")
    return length


def _metadata(metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise ValueError(f"__metadata__ is no object but {type(metadata).__name__}")
    for name, text in metadata.items():
        if not isinstance(text, str):
            raise ValueError(
                f"__metadata__ '{printable(name)}' is no text but {type(text).__name__}"
            )
    return metadata


def _tensors(file: File, base: int, entries: dict[str, Any]) -> dict[str, TensorInfo]:
    """Return what the entries describe; `base` is where the data begin."""
    if len(entries) > LIMITS.names:
        raise ValueError(f"{len(entries):,} tensors, at most {LIMITS.names:,} expected")
    faults = [
        f"tensor '{printable(name)}': {fault}"
        for name, entry in entries.items()
        if (fault := _fault(name, entry))
    ]
    faults = faults or _misplaced(file.size - base, entries)
    if faults:
        refuse(file, *faults)
    return {name: _info(file, base, name, entry) for name, entry in entries.items()}


def _fault(name: str, entry: Any) -> str | None:
    """Tell what is wrong with an entry by itself."""
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        return "an entry of dtype, shape and data_offsets expected, and nothing else"
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if len(name) > LIMITS.name_characters:
        return f"a name of {len(name):,} characters, at most {LIMITS.name_characters:,} expected"
    if dtype is None:
        return _unknown(code)
    if not _are_sizes(shape) or len(shape) > LIMITS.rank:
        return f"a shape of at most {LIMITS.rank} sizes expected, found {printable(shape)}"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets of start and stop expected, found {printable(offsets)}"
    if math.prod(max(size, 1) for size in shape) > MOST:
        return f"torch has no tensor of shape {printable(shape)}"
    if (needed := math.prod(shape) * dtype.itemsize) != offsets[1] - offsets[0]:
        found = f"data_offsets {offsets} hold {offsets[1] - offsets[0]:,}"
        return f"{code} of shape {printable(shape)} takes {needed:,} bytes, {found}"
    return None


def _unknown(code: Any) -> str:
    """Tell why a dtype is none that can be read."""
    if isinstance(code, str) and code in PACKED:
        return f"{code} packs several elements into a byte, and arithmetic on it is not defined"
    return f"unknown dtype '{printable(code)}'; known are {', '.join(DTYPES)}"


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MOST for n in numbers)


def _misplaced(size: int, entries: dict[str, Any]) -> list[str]:
    """Tell what is wrong with the entries together: they tile the `size` bytes of data."""
    places = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    end = 0
    for start, stop, name in places:
        if start != end:
            what = "overlap those before" if start < end else "leave a hole before"
            return [f"tensor '{printable(name)}': its bytes {start:,} to {stop:,} {what} {end:,}"]
        end = stop
    if end > size:
        return [f"its tensors take {end:,} bytes, but it has {size:,}: it is truncated"]
    return [f"{size - end:,} bytes after the last tensor"] if end < size else []


def _info(file: File, base: int, name: str, entry: dict[str, Any]) -> TensorInfo:
    dtype, offset = DTYPES[entry["dtype"]], base + entry["data_offsets"][0]
    source = Flags(file, offset, name) if dtype.name == "bool" else Raw(file, offset)
    return TensorInfo(dtype, tuple(entry["shape"]), source, (0, offset))

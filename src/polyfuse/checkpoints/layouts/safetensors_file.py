"""Where everything goes in a safetensors file: a JSON header, then the tensors without gaps.

The bytes are those of `safetensors.torch.save_file`: widest dtypes first, then by name, and the
header padded with spaces, so that every tensor is aligned. (With several metadata entries that
function's order is random; ours is by name.)
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from polyfuse import dtypes
from polyfuse.checkpoints.base import Layout, Slot
from polyfuse.checkpoints.layouts.base import Contents, refuse_split, refuse_unwritable
from polyfuse.dtypes import DType
from polyfuse.errors import CheckpointError, printable

_METADATA = "__metadata__"
# In the order in which tensors are written.
_NAMES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "F4": "float4_e2m1fn_x2",
    "BOOL": "bool",
}
DTYPES: dict[DType, str] = {dtypes.DTYPES[dtype]: name for name, dtype in _NAMES.items()}
_ORDER = {dtype: number for number, dtype in enumerate(DTYPES)}


def layout(contents: Contents) -> Layout:
    """Lay out one safetensors file; tied tensors are written once and named in its metadata.

    Raises:
        CheckpointError: larger than the limit, or a dtype or name that the format cannot hold.

    Example:
        >>> import torch
        >>> plan = layout(Contents([Slot("w", torch.float32, (2,))], {"tied": "w"}, {}))
        >>> plan.files, plan.places, plan.parts[0][2][8:].decode()
        ({'': 104}, {'w': ('', 96)},
         '{"__metadata__":{"tied":"w"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}      ')
    """
    refuse_split(contents)
    return one_file(contents.slots, with_ties(contents.note, contents.aliases))


def one_file(slots: Sequence[Slot], metadata: Mapping[str, str]) -> Layout:
    r"""Lay out tensors and metadata as one file.

    Args:
        slots: tensors, in any order.
        metadata: texts by name; none writes no such entry.

    Raises:
        CheckpointError: a dtype or name that the format cannot hold.

    Example:
        >>> one_file([], {}).parts
        [('', 0, b'\x08\x00\x00\x00\x00\x00\x00\x00{}      ')]
    """
    refuse_unwritable("safetensors", _faults(slots), "write a .pt file instead")
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    starts, end = {}, 0
    for slot in sorted(slots, key=lambda slot: (_ORDER[slot.dtype], slot.name)):
        starts[slot.name], end = end, end + slot.nbytes
        header[slot.name] = _entry(slot, starts[slot.name])
    raw = _framed(header)
    places = {name: ("", len(raw) + start) for name, start in starts.items()}
    return Layout({"": len(raw) + end}, [("", 0, raw)], places)


def with_ties(note: Mapping[str, str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return metadata that name tied tensors, as `safetensors.torch.save_model` does.

    Raises:
        CheckpointError: a tied tensor has the name of another entry of the note.

    Example:
        >>> with_ties({"format": "pt"}, {"head.weight": "embed.weight"})
        {'format': 'pt', 'head.weight': 'embed.weight'}
    """
    clash = sorted(note.keys() & aliases.keys())
    if clash:
        raise CheckpointError(
            f"the tied tensors {[printable(name) for name in clash]} have names that safetensors "
            "files use for other metadata; write a .pt file instead"
        )
    return {**note, **aliases}


def _entry(slot: Slot, start: int) -> dict[str, object]:
    shape = list(slot.shape)
    if DTYPES[slot.dtype] == "F4":  # torch counts pairs of half bytes, safetensors counts halves
        shape[-1] *= 2
    return {
        "dtype": DTYPES[slot.dtype],
        "shape": shape,
        "data_offsets": [start, start + slot.nbytes],
    }


def _framed(header: dict[str, object]) -> bytes:
    """Return the header's length and its JSON, padded to a multiple of 8 bytes."""
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _faults(slots: Sequence[Slot]) -> Iterator[str]:
    for slot in slots:
        shown = f"'{printable(slot.name)}'"
        if slot.dtype not in DTYPES or (DTYPES[slot.dtype] == "F4" and not slot.shape):
            yield f"{shown} is {slot.dtype}"
        if slot.name == _METADATA:
            yield f"{shown} is a reserved name"
        if any("\ud800" <= c <= "\udfff" for c in slot.name):
            yield f"{shown} has half a character in its name"

"""The `.metadata` of torch.distributed.checkpoint: a pickle, read without running anything.

Our own inert reader knows the few names that torch writes there, and refuses all others. What it
returns is checked here, once, and is plain tuples then.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from polyfuse.checkpoints import pickles
from polyfuse.checkpoints.base import LIMITS, File, is_file_name
from polyfuse.checkpoints.boxes import Place, untiled
from polyfuse.checkpoints.pickles import Opaque
from polyfuse.checkpoints.torch_zip import NAMES
from polyfuse.dtypes import DType
from polyfuse.errors import CheckpointError, printable

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint.metadata"
_INERT = {
    *((_MODULE, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((_MODULE, f"{kind}StorageMetadata") for kind in ("Tensor", "Chunk", "Bytes")),
    *((_MODULE, name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *(("pathlib", f"{kind}Path") for kind in ("Posix", "Windows")),
    *(("pathlib._local", f"{kind}Path") for kind in ("Posix", "Windows")),  # of Python 3.13
}


class _Names(Mapping[tuple[str, str], Any]):
    """What stands for the names in a `.metadata`; others are errors."""

    def __getitem__(self, name: tuple[str, str]) -> Any:
        known = NAMES.get(name)
        if isinstance(known, DType) or name in pickles.PLAIN:
            return known
        if name in _INERT:
            raise KeyError(name)
        raise ValueError(f"{printable('.'.join(name))} in it, which no checkpoint needs")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(_INERT)

    def __len__(self) -> int:
        return len(_INERT)


class Saved(NamedTuple):
    """A tensor as the metadata state it, and the boxes that tile it."""

    dtype: DType
    shape: tuple[int, ...]
    places: list[Place]


class Window(NamedTuple):
    """The part of a file that a box was saved in."""

    file: str
    offset: int
    length: int


class Metadata(NamedTuple):
    """What a `.metadata` holds."""

    tensors: dict[str, Saved]
    others: list[str]  # what are no tensors
    windows: dict[tuple[str, tuple[int, ...]], Window]  # by name and offsets
    paths: dict[str, tuple[str, ...]]  # of each name, the keys that led to it


def read_metadata(folder: Path) -> Metadata:
    """Read and check the metadata of a folder; nothing else in it is looked at.

    Raises:
        CheckpointError: damaged or malicious.

    Example:
        >>> read_metadata(Path("/no/such"))
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: cannot read '/no/such/.metadata': No such file or directory
    """
    file = File(folder / METADATA)
    try:
        if file.size > LIMITS.metadata_bytes:
            raise ValueError(f"{file.size:,} bytes, at most {LIMITS.metadata_bytes:,} expected")
        raw = file.read(0, file.size)
        return _parsed(pickles.load(raw, names=_Names(), shown=file.shown))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"'{file.shown}' is not the metadata of a checkpoint: {printable(reason, 400)}; "
            "fetch or save the folder again"
        ) from None
    finally:
        file.close()


def _parsed(document: Any) -> Metadata:
    fields = _fields(document, "Metadata")
    entries, storage = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(storage, dict):
        raise ValueError("state_dict_metadata and storage_data expected, found none")
    if max(len(entries), len(storage)) > LIMITS.names:
        raise ValueError(f"more than {LIMITS.names:,} tensors")
    if bad := [n for n in entries if not isinstance(n, str) or len(n) > LIMITS.name_characters]:
        raise ValueError(f"a tensor named {printable(bad[0])}")
    others = [name for name, entry in entries.items() if _is(entry, "BytesStorageMetadata")]
    tensors = {
        name: _tensor(name, _fields(entry, "TensorStorageMetadata"))
        for name, entry in entries.items()
        if not _is(entry, "BytesStorageMetadata")
    }
    paths = fields.get("planner_data")
    keys = {name: _path(name, paths) for name in entries}
    return Metadata(tensors, others, _windows(storage), keys)


def _path(name: str, paths: Any) -> tuple[str, ...]:
    """Return the keys that led to what was saved; without them it was not nested."""
    path = paths.get(name) if isinstance(paths, dict) else None
    if not isinstance(path, tuple) or not all(isinstance(part, str | int) for part in path):
        return (name,)
    return tuple(map(str, path)) or (name,)


def _is(record: Any, kind: str) -> bool:
    return isinstance(record, Opaque) and record.made_by.name == kind


def _fields(record: Any, kind: str) -> dict[Any, Any]:
    if not _is(record, kind):
        raise ValueError(f"{kind} expected, found {printable(record)}")
    return record.attributes  # type: ignore[no-any-return]


def _sizes(numbers: Any) -> tuple[int, ...]:
    """Return a torch.Size, which was read as a tuple."""
    good = isinstance(numbers, tuple) and len(numbers) <= LIMITS.rank
    if not good or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"sizes expected, found {printable(numbers)}")
    return numbers  # type: ignore[no-any-return]


def _tensor(name: str, fields: dict[Any, Any]) -> Saved:
    """Return a tensor whose boxes tile it."""
    shown, properties = printable(name), fields.get("properties")
    state = properties.state if _is(properties, "TensorProperties") else None  # type: ignore[union-attr]
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[0], DType):
        raise ValueError(f"tensor '{shown}' has a dtype that cannot be averaged")
    if not isinstance(state[1], Opaque) or state[1].arguments != ("torch.strided",):
        raise ValueError(f"tensor '{shown}' is sparse; save its to_dense() in its place")
    shape, chunks = _sizes(fields["size"]), fields["chunks"]
    if math.prod(max(size, 1) for size in shape) >= 2**63:
        raise ValueError(f"torch has no tensor of shape {printable(shape)}, as '{shown}' states")
    places = [_place(_fields(chunk, "ChunkStorageMetadata"), len(shape)) for chunk in chunks]
    places = [place for place in places if math.prod(place[1])]  # a rank may have none of it
    if math.prod(shape) and (fault := untiled(places, shape)):
        raise ValueError(f"the chunks of '{shown}' do not tile {printable(shape)}: {fault}")
    return Saved(state[0], shape, sorted(places))


def _place(fields: dict[Any, Any], rank: int) -> Place:
    offsets, sizes = _sizes(fields["offsets"]), _sizes(fields["sizes"])
    if len(offsets) != rank or len(sizes) != rank:
        raise ValueError(f"a chunk of {len(sizes)} dimensions in a tensor of {rank}")
    return offsets, sizes


def _windows(storage: dict[Any, Any]) -> dict[tuple[str, tuple[int, ...]], Window]:
    """Return where each box lies, by the name of its tensor and its offsets."""
    windows: dict[tuple[str, tuple[int, ...]], Window] = {}
    for index, info in storage.items():
        box, stored = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        if box.get("offset") is None:
            continue  # no tensor
        if stored.get("transform_descriptors"):
            raise ValueError("its data were transformed when saved; save it without extensions")
        name, where = stored["relative_path"], (box["fqn"], _sizes(box["offset"]))
        if where in windows:
            raise ValueError(f"two places for one chunk of '{printable(where[0])}'")
        if not is_file_name(name):
            raise ValueError(f"the name of a file beside it expected, found '{printable(name)}'")
        windows[where] = Window(name, *_sizes((stored["offset"], stored["length"])))
    return windows

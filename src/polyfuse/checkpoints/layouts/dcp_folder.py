"""Where everything goes in a folder of torch.distributed.checkpoint (DCP).

polyfuse.json       where the weights come from; beside it what is carried along
__0_0.distcp ...    each tensor as `torch.save` writes it, one after the other
.metadata           which tensor is where, a pickle of torch's own records; written last
"""

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any

from polyfuse.checkpoints.base import Layout, Slot
from polyfuse.checkpoints.layouts.base import Contents, Folder, folder_beside, in_shards
from polyfuse.checkpoints.layouts.torch_file import one_tensor, refuse_unloadable

METADATA = ".metadata"
_VERSION = "1.0.0"
_PICKLE_PROTOCOL = 4  # what every Python that runs torch 2.6 reads
Spot = tuple[str, int, int]  # file, offset, length


def layout(contents: Contents) -> Layout:
    """Lay out a folder that `torch.distributed.checkpoint.load` reads, as one rank writes it.

    Tied tensors are written once: DCP has no ties, but both names may point to the same bytes.

    Raises:
        CheckpointError: a dtype that torch cannot load, or too many side files.

    Example:
        >>> import torch
        >>> list(layout(Contents([Slot("w", torch.float32, (2,))], {}, {})).files)
        ['__0_0.distcp', '.metadata']
    """
    refuse_unloadable(contents.slots)
    shards = in_shards(contents.slots, contents.limit)
    names = [f"__0_{number}.distcp" for number in range(len(shards))]
    folder = folder_beside(contents, [*names, METADATA])
    spots: dict[str, Spot] = {}
    for name, shard in zip(names, shards, strict=True):
        spots |= {slot.name: _put(folder, name, slot) for slot in shard}
    slots = {slot.name: slot for slot in contents.slots}
    for alias, kept in contents.aliases.items():
        slots[alias], spots[alias] = slots[kept], spots[kept]
    folder.add_bytes(METADATA, _metadata(slots, spots))
    return folder.layout()


def _put(folder: Folder, name: str, slot: Slot) -> Spot:
    offset, length = folder.add(name, one_tensor(slot))
    return name, offset, length


def _metadata(slots: Mapping[str, Slot], spots: Mapping[str, Spot]) -> bytes:
    """Return the pickle of torch's records; torch's classes are loaded only here (1.5 s)."""
    from torch.distributed.checkpoint import filesystem, metadata

    storage = {
        metadata.MetadataIndex(name, [0] * len(slots[name].shape), 0): (
            filesystem._StorageInfo(*spot)
        )
        for name, spot in spots.items()
    }
    tensors = {name: _tensor_record(metadata, slot) for name, slot in slots.items()}
    paths = {name: (name,) for name in slots}  # where it is in the state dict
    known = {field.name for field in dataclasses.fields(metadata.Metadata)}
    version: Any = {"version": _VERSION} if "version" in known else {}  # older torch has none
    record = metadata.Metadata(tensors, paths, storage, **version)
    return pickle.dumps(record, protocol=_PICKLE_PROTOCOL)


def _tensor_record(metadata: Any, slot: Slot) -> Any:
    import torch

    origin, shape = torch.Size([0] * len(slot.shape)), torch.Size(slot.shape)
    chunk = metadata.ChunkStorageMetadata(offsets=origin, sizes=shape)
    properties = metadata.TensorProperties(dtype=slot.dtype.torch)
    return metadata.TensorStorageMetadata(properties=properties, size=shape, chunks=[chunk])

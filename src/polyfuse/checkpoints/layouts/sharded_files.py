"""Where everything goes in a Hugging Face folder: safetensors shards, an index, files beside them.

config.json ...                       carried along
polyfuse.json                         where the weights come from
model-00001-of-00003.safetensors ...  or model.safetensors, where all fits one file
model.safetensors.index.json          which tensor is in which shard; written last
"""

import json
from collections.abc import Mapping, Sequence

from polyfuse.checkpoints.base import Layout, Slot
from polyfuse.checkpoints.layouts.base import PROVENANCE, Contents, folder_beside, in_shards
from polyfuse.checkpoints.layouts.safetensors_file import one_file, with_ties

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def layout(contents: Contents) -> Layout:
    """Lay out a folder of safetensors files of at most the limit each, and what lies beside them.

    Tied tensors are written once; the other names are in the metadata of the shard that holds
    them. (Hugging Face's index leaves them out: the model's class knows what it ties.)

    Raises:
        CheckpointError: a dtype or name that the format cannot hold, or too many side files.

    Example:
        >>> import torch
        >>> slots = [Slot(name, torch.float32, (250,)) for name in "abc"]
        >>> list(layout(Contents(slots, {}, {}, limit=2000)).files)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors',
         'model.safetensors.index.json']
    """
    shards = in_shards(contents.slots, contents.limit)
    names = shard_names(len(shards))
    folder = folder_beside(contents, [*names, WHOLE, INDEX])
    note = {"format": "pt", **{k: v for k, v in contents.note.items() if k != PROVENANCE}}
    for name, shard in zip(names, shards, strict=True):
        folder.add(name, one_file(shard, with_ties(note, _of(shard, contents.aliases))))
    if len(shards) > 1:
        folder.add_bytes(INDEX, _index(dict(zip(names, shards, strict=True))))
    return folder.layout()


def shard_names(count: int) -> list[str]:
    """Return the names of the shards, as Hugging Face gives them.

    Example:
        >>> shard_names(1), shard_names(12)[1]
        (['model.safetensors'], 'model-00002-of-00012.safetensors')
    """
    if count == 1:
        return [WHOLE]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _of(shard: Sequence[Slot], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return the aliases of what this shard holds."""
    held = {slot.name for slot in shard}
    return {alias: kept for alias, kept in aliases.items() if kept in held}


def _index(shards: Mapping[str, Sequence[Slot]]) -> bytes:
    slots = [slot for shard in shards.values() for slot in shard]
    document = {
        "metadata": {"total_size": sum(slot.nbytes for slot in slots)},
        "weight_map": {slot.name: name for name, shard in shards.items() for slot in shard},
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

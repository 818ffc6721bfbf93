"""Where everything of an output goes, before any of it is computed; one format, one file."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from polyfuse.checkpoints.base import Layout, Slot
from polyfuse.checkpoints.layouts import dcp_folder, safetensors_file, sharded_files, torch_file
from polyfuse.checkpoints.layouts.base import Contents, parse_size
from polyfuse.errors import CheckpointError, did_you_mean, printable

LAYOUTS: dict[str, Callable[[Contents], Layout]] = {
    "safetensors": safetensors_file.layout,
    "hf": sharded_files.layout,
    "torch": torch_file.layout,
    "dcp": dcp_folder.layout,
}
FOLDERS = ("hf", "dcp")  # formats whose output is a folder
SUFFIXES = {".safetensors": "safetensors"} | dict.fromkeys(
    (".pt", ".pth", ".bin", ".ckpt"), "torch"
)
_SUFFIX = re.compile(r"\.[a-z]\w*", re.IGNORECASE)  # `llama-3.2-1B` has none


def layout_for(
    out: str | Path,
    slots: Sequence[Slot],
    *,
    aliases: Mapping[str, str],
    note: Mapping[str, str],
    form: str | None = None,
    max_shard_size: int | str | None = None,
    side_files: Sequence[tuple[str, bytes]] = (),
) -> Layout:
    """Lay out an output; nothing is written.

    Texts of the same lengths in `note` give the same files and places, so that what is not known
    yet may be filled in later.

    Args:
        out: the output's name; see `format_of`.
        slots: tensors, in the order in which shards take them.
        aliases: further names of tied tensors, and the slot each stands for.
        note: texts to keep with the tensors. The provenance is the one named "polyfuse": it is
            in the metadata of a single safetensors file, in `polyfuse.json` elsewhere. The others
            are metadata of safetensors files; torch and DCP have no place for them.
        form: a name in `LAYOUTS`; by default `out` tells.
        max_shard_size: bytes of tensors in one file, at most; or a text like "5GB".
        side_files: (name, bytes) of files that are carried along where the output is a folder.

    Raises:
        CheckpointError: an unknown format or size, or contents that the format cannot hold.

    Example:
        >>> import torch
        >>> slots = [Slot("w", torch.float32, (2,))]
        >>> layout_for("soup.safetensors", slots, aliases={}, note={}).files
        {'': 72}
        >>> layout_for("soup/", slots, aliases={}, note={}, side_files=[("c.json", b"{}")]).files
        {'c.json': 2, 'model.safetensors': 104}
    """
    chosen = form or format_of(out, "hf")
    if chosen not in LAYOUTS:
        raise CheckpointError(
            f"there is no format '{printable(chosen)}'; the formats are {', '.join(LAYOUTS)}"
            f"{did_you_mean(chosen, LAYOUTS)}"
        )
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    return LAYOUTS[chosen](Contents(slots, aliases, note, limit, side_files))


def format_of(out: str | Path, default: str) -> str:
    """Return the format that an output's name asks for.

    Args:
        out: a name that ends in a known suffix is a file; one that ends in "/", is a folder
            already, or has no suffix, is a folder. (A `Path` forgets a "/" at its end.)
        default: format of the first input; a folder is DCP where that is, Hugging Face's if not.

    Raises:
        CheckpointError: a suffix of no known format.

    Example:
        >>> [format_of(out, "torch") for out in ("a.pth", "b.safetensors", "llama-3.2-1B", "v1/")]
        ['torch', 'safetensors', 'hf', 'hf']
        >>> format_of("averaged", "dcp")
        'dcp'
        >>> format_of("a.safetensor", "torch")
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: 'a.safetensor' has the suffix of no known format; ...
    """
    path, suffix = Path(out), Path(out).suffix
    if os.fspath(out).endswith(("/", os.sep)) or path.is_dir() or not _SUFFIX.fullmatch(suffix):
        return "dcp" if default == "dcp" else "hf"
    try:
        return SUFFIXES[suffix.lower()]
    except KeyError:
        raise CheckpointError(
            f"'{printable(out)}' has the suffix of no known format; end a file's name in "
            f"{', '.join(SUFFIXES)}, or a folder's in '/'{did_you_mean(suffix, SUFFIXES)}"
        ) from None

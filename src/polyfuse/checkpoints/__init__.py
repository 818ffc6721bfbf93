"""Weights on disk, one format a file; `open_checkpoint` is the door to all of them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from polyfuse.checkpoints import dcp, foreign, safetensors, sharded, torch_files
from polyfuse.checkpoints.base import LIMITS, Checkpoint, File
from polyfuse.checkpoints.dcp_metadata import METADATA
from polyfuse.checkpoints.layouts.base import PROVENANCE, PROVENANCE_FILE
from polyfuse.checksums import crc32
from polyfuse.errors import CheckpointError, printable

if TYPE_CHECKING:
    from torch import Tensor

_ADDRESS = re.compile(r"(.+)\[(\d{1,9})\]")


def open_checkpoint(path: str | Path, key: str | None = None) -> Checkpoint:
    """Open weights, whatever their format; what it is is told by content, not by name.

    Nothing is executed, and only headers are read.

    Args:
        path: a safetensors or torch file, an index of shards (`*.index.json`), a Hugging Face
            directory, a folder of torch.distributed.checkpoint, or any folder with one checkpoint;
            `file.pt[0]` is the first state dict of a list in a file.
        key: of the state dict in a training state, such as "model_state_dict"; by default the first
            usual one, and the fact `key` says which.

    Returns:
        The checkpoint. Facts, where there are any: `key`, `keys`, `epoch`, `step`, `metrics`,
        `metadata`, `side_files`, `shards`, `ignored`, and `notes`, to be told to people.

    Raises:
        CheckpointError: no checkpoint, or a damaged one; it says what it is instead.

    Example:
        >>> import tempfile, torch
        >>> torch.save({"model": {"w": torch.ones(2)}}, f"{tempfile.gettempdir()}/a.pt")
        >>> with open_checkpoint(f"{tempfile.gettempdir()}/a.pt") as checkpoint:
        ...     checkpoint.format, checkpoint.facts["key"], checkpoint.read("w")
        ('torch', 'model', tensor([1., 1.]))
    """
    place, index = _address(Path(path).expanduser())
    foreign.refuse_no_file(place)
    if not place.is_dir():
        return _open_file(place, key, index)
    if index is not None:
        raise CheckpointError(f"'{printable(place)}' is a folder, no list; leave [{index}] away")
    if (place / METADATA).exists():
        checkpoint = dcp.read_dcp(place, key)
    else:
        checkpoint = sharded.read_folder(place, partial(_open_weights, key=key))
    return _with_provenance(place, checkpoint)


def load_checkpoint(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Load weights into memory, whatever their format, and check them against their files' CRCs.

    Args:
        path: as for `open_checkpoint`.
        key: as for `open_checkpoint`.

    Returns:
        Tensors by name, on the CPU; tied ones share their memory.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one that changed while it was read.

    Example:
        >>> import tempfile, torch
        >>> torch.save({"w": torch.ones(2)}, f"{tempfile.gettempdir()}/b.pt")
        >>> load_checkpoint(f"{tempfile.gettempdir()}/b.pt")
        {'w': tensor([1., 1.])}
    """
    with open_checkpoint(path, key) as checkpoint:
        state = checkpoint.state_dict()
        for check in checkpoint.checks:
            if crc32(check.file.read_into, check.start, check.length) != check.crc:
                raise CheckpointError(
                    f"'{check.file.shown}', '{printable(check.name)}': its CRC is not the stated "
                    "one; the file is damaged: fetch or save it again"
                )
        checkpoint.check_unchanged()
        return state


def _address(path: Path) -> tuple[Path, int | None]:
    """Return a path and the number behind it in brackets, unless a file is named so."""
    match = _ADDRESS.fullmatch(path.name)
    if match is None or path.exists():
        return path, None
    return path.with_name(match[1]), int(match[2])


def _open_file(path: Path, key: str | None, index: int | None) -> Checkpoint:
    """Open one file: weights, or an index of shards."""
    if not _head(path).lstrip().startswith(b"{"):
        return _open_weights(path, key, index)
    return sharded.read_index(path, partial(_open_weights, key=key, index=index))


def _open_weights(path: Path, key: str | None = None, index: int | None = None) -> Checkpoint:
    """Open one file of weights."""
    head = _head(path)
    suffix = path.suffix.lower()
    foreign.refuse_foreign(path, head)
    is_torch = head.startswith((b"PK\3\4", b"\x80")) and head[8:9] != b"{"
    is_safetensors = head[8:].lstrip().startswith(b"{") or suffix == ".safetensors"
    if is_torch or not is_safetensors:
        checkpoint = torch_files.read_torch(path, key, index)
    else:
        asked = f"--key {key}" if key is not None else f"[{index}]"
        if key is not None or index is not None:
            raise CheckpointError(
                f"'{printable(path)}' is a safetensors file, which holds one state dict only; "
                f"leave {printable(asked)} away"
            )
        checkpoint = safetensors.read_safetensors(path)
    if (suffix == ".safetensors") != (checkpoint.format == "safetensors"):
        note = f"'{printable(path.name)}' is in the format {checkpoint.format}, despite its name"
        checkpoint.facts.setdefault("notes", []).append(note)
    return checkpoint


def _head(path: Path) -> bytes:
    file = File(path)
    try:
        return file.read(0, min(file.size, foreign.HEAD))
    finally:
        file.close()


def _with_provenance(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """Add what an earlier run of polyfuse noted of a folder's weights."""
    if (folder / PROVENANCE_FILE).is_file():
        file = File(folder / PROVENANCE_FILE)
        raw = file.read(0, min(file.size, LIMITS.metadata_bytes))
        metadata = checkpoint.facts.get("metadata", {})
        checkpoint.facts["metadata"] = metadata | {PROVENANCE: raw.decode("utf-8", "replace")}
        file.close()
    return checkpoint

"""safetensors: a state dict as one file, read and written without running code.

`read` and `write` keep whole files of our own in memory; `read_safetensors` opens anyone's, and
reads its header only.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from polyfuse import durable
from polyfuse.checkpoints.base import Checkpoint, File
from polyfuse.checkpoints.headers import read_header
from polyfuse.errors import CheckpointError, RunError, printable

if TYPE_CHECKING:
    from torch import Tensor

COUNTERS = {"epoch": "epoch", "global_step": "step", "step": "step"}  # metadata: fact


def write(path: Path, tensors: dict[str, Tensor], note: Any = None) -> None:
    """Write tensors, and optionally one JSON document in the header, as a safetensors file.

    Args:
        path: final name; its folder exists.
        tensors: by name, on any device; copied, so shared storage is no fault.
        note: JSON-ready data to keep beside them.

    Raises:
        DiskError: the file system refused.

    Example:
        >>> import tempfile, torch
        >>> target = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write(target, {"w": torch.ones(2)}, note={"epoch": 3})
        >>> read(target)
        ({'w': tensor([1., 1.])}, {'epoch': 3})
    """
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = None if note is None else {"polyfuse": json.dumps(note, allow_nan=False)}
    durable.write_bytes(path, save(plain, metadata))


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read a safetensors file: its tensors, and the JSON document that `write` put beside them.

    The file is read, not mapped, so that nothing that happens to it later changes the tensors.

    Raises:
        CheckpointError: missing, truncated, or no safetensors file.

    Example:
        >>> read(Path("/no/such.safetensors"))
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: cannot read '/no/such.safetensors': No such file ...
    """
    try:
        raw = durable.read_bytes(path)
    except RunError as error:
        raise CheckpointError(str(error)) from None
    return parse(raw, printable(path))


def parse(raw: bytes, name: str) -> tuple[dict[str, Tensor], Any]:
    """Return what these bytes of a safetensors file hold; `name` is for the error.

    Raises:
        CheckpointError: truncated, or no safetensors file.

    Example:
        >>> parse(b"hello", "mine.safetensors")
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: 'mine.safetensors' is not a whole safetensors file ...
    """
    from safetensors.torch import load

    try:
        tensors = load(raw)
        return tensors, _note(raw)
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"'{name}' is not a whole safetensors file ({printable(error)}); "
            "restore it, or delete its folder and run again"
        ) from None


def _note(raw: bytes) -> Any:
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    note = header.get("__metadata__", {}).get("polyfuse")
    return None if note is None else json.loads(note)


def read_safetensors(path: Path) -> Checkpoint:
    """Open a safetensors file of whatever size and origin; no tensor data are read.

    Facts are its `metadata`, and `epoch` and `step` where the metadata have them as whole numbers.
    The names that `safetensors.torch.save_model` left out because their tensors are tied become
    aliases.

    Raises:
        CheckpointError: missing, damaged, stating what it does not hold, or with parts of tensors.

    Example:
        >>> import tempfile, torch
        >>> target = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write(target, {"w": torch.ones(2)})
        >>> read_safetensors(target).read("w")
        tensor([1., 1.])
    """
    file = File(path)
    tensors, metadata = read_header(file)
    _refuse_parts(file, metadata.get("DCP_SHARDING_INFO", ""))
    aliases = {
        alias: kept
        for alias, kept in metadata.items()
        if kept in tensors and alias not in tensors and _is_tie(alias, kept)
    }
    facts: dict[str, Any] = {"metadata": metadata} if metadata else {}
    for name, fact in COUNTERS.items():
        facts |= {fact: int(metadata[name])} if _is_count(metadata.get(name)) else {}
    return Checkpoint(path, "safetensors", (file,), tensors, aliases, facts)


def _refuse_parts(file: File, sharding: str) -> None:
    """Refuse what a rank of a distributed run saved with parts of tensors under their names."""
    if re.search(r'"saved_offsets": \[[^]]*[1-9]', sharding):
        raise CheckpointError(
            f"'{file.shown}' holds parts of tensors that one rank saved; join them with torch: "
            "HuggingFaceStorageWriter(..., save_distributed=True, enable_consolidation=True)"
        )


def _is_tie(alias: str, kept: str) -> bool:
    """Tell a tie from metadata that happen to equal a tensor's name, as `epoch: 3` of a list's."""
    return alias not in ("format", "polyfuse") and (alias.isdigit() or not kept.isdigit())


def _is_count(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) < 19

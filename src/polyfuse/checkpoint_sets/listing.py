"""What the words on a command line stand for: files, globs, folders, one state dict of a list."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from polyfuse.checkpoint_sets.base import ADDRESS, SUFFIXES
from polyfuse.errors import CheckpointError, did_you_mean, printable

# The files by which a model folder is known; a test holds them against `checkpoints.sharded`.
MODELS = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


def listed(names: Sequence[str]) -> list[Path]:
    """Return all checkpoints that the names stand for; the matches of one name in natural order.

    Raises:
        CheckpointError: a name that stands for nothing (all such names at once), or two names that
            stand for one file.

    Example:
        >>> listed(["no/*.pt"])
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: nothing matches 'no/*.pt'; there is no folder 'no'
    """
    found: list[Path] = []
    faults: list[str] = []
    for name in names:
        try:
            found += _expanded(name)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
    _check_distinct(found)
    return found


def natural(name: str) -> list[tuple[int, str]]:
    """Return the key that sorts `epoch9` before `epoch10`.

    Example:
        >>> sorted(["epoch10", "epoch9"], key=natural)
        ['epoch9', 'epoch10']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _expanded(name: str) -> list[Path]:
    if os.path.lexists(name) or _is_address(name) or not glob.has_magic(name):
        return _there(Path(name))
    matches = sorted(glob.glob(name, recursive=True), key=natural)
    if not matches:
        raise CheckpointError(f"nothing matches '{printable(name)}'{_near(Path(name))}")
    return [path for match in matches for path in _there(Path(match))]


def _is_address(name: str) -> bool:
    match = ADDRESS.fullmatch(name)
    return match is not None and Path(match[1]).is_file()


def _there(path: Path) -> list[Path]:
    if path.is_dir():
        return [path] if is_one_checkpoint(path) else _in_folder(path)
    if not path.exists() and not _is_address(str(path)):
        fact = "is a link to nothing" if path.is_symlink() else f"is not there{_near(path)}"
        raise CheckpointError(f"'{printable(path)}' {fact}")
    return [path]


def is_one_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint: Hugging Face, sharded, or of torch's DCP.

    Example:
        >>> is_one_checkpoint(Path(__file__).parent)
        False
    """
    names = _names(folder)
    weights = [name for name in names if name.endswith(SUFFIXES)]
    indexed = any(name.endswith(".json") and ".index." in name for name in names)
    configured = any(name.endswith("config.json") for name in names)
    usual = any(name in MODELS for name in weights)
    return ".metadata" in names or indexed or (usual and (configured or len(weights) == 1))


def _in_folder(folder: Path) -> list[Path]:
    found = _directly_in(folder)
    if not found:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        deeper = next((path for path in folders if _directly_in(path)), None)
        hint = f"; did you mean '{printable(deeper)}'?" if deeper else ""
        raise CheckpointError(f"the folder '{printable(folder)}' holds no checkpoint{hint}")
    return found


def _directly_in(folder: Path) -> list[Path]:
    paths = [folder / name for name in sorted(_names(folder), key=natural)]
    return [p for p in paths if (is_one_checkpoint(p) if p.is_dir() else _is_named_so(p.name))]


def _is_named_so(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise CheckpointError(f"cannot read '{printable(folder)}': {error.strerror}") from None


def _near(path: Path) -> str:
    try:
        return did_you_mean(path.name, os.listdir(path.parent))
    except OSError:
        return f"; there is no folder '{printable(path.parent)}'"


def _check_distinct(paths: Iterable[Path]) -> None:
    """Refuse one file under two names: it would count twice."""
    seen: dict[object, Path] = {}
    faults = []
    for path in paths:
        address = ADDRESS.fullmatch(str(path))
        part = None if path.exists() or not address else path.name
        facts = os.stat(path if part is None or not address else address[1])
        first = seen.setdefault((facts.st_dev, facts.st_ino, part), path)
        if first is not path:
            faults.append(f"'{printable(path)}' is the same file as '{printable(first)}'")
    if faults:
        raise CheckpointError("\n".join([*faults, "name each checkpoint once; weights count more"]))

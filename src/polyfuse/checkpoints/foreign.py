"""What a file is that was named as a checkpoint and is none, and what to type then."""

import os
import stat
from pathlib import Path

from polyfuse.errors import CheckpointError, did_you_mean, printable

HEAD = 512  # bytes that tell what a file is
_CONVERT = "save its tensors with safetensors.torch.save_file, and name that file"
_UNPACK = "unpack it, and name what was in it"
# How a file begins, what it is then, and what helps.
BEGINNINGS: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": ("a git-lfs pointer, not the file itself", "type: git lfs pull"),
    b"\x1f\x8b": ("packed with gzip", _UNPACK),
    b"BZh": ("packed with bzip2", _UNPACK),
    b"\xfd7zXZ\0": ("packed with xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"GGUF": ("a GGUF file, made for llama.cpp", "name the files that it was converted from"),
    b"\x89HDF\r\n\x1a\n": (
        "an HDF5 file, as Keras writes them",
        f"load it with Keras, and {_CONVERT}",
    ),
    b"\x93NUMPY": ("a numpy array", _CONVERT),
}
PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
SUFFIXES: dict[str, tuple[str, str]] = {
    ".npz": ("a numpy archive", _CONVERT),
    ".keras": ("a Keras archive", f"load it with Keras, and {_CONVERT}"),
    ".onnx": ("an ONNX model", "name the checkpoint that it was exported from"),
    ".tflite": ("a TensorFlow Lite model", "name the checkpoint that it was converted from"),
    ".pb": ("a TensorFlow graph", f"load it with TensorFlow, and {_CONVERT}"),
    ".msgpack": ("a Flax checkpoint", f"load it with Flax, and {_CONVERT}"),
}
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def refuse_no_file(path: Path) -> None:
    """Refuse what is neither a regular file nor a folder.

    Raises:
        CheckpointError: it names what is there instead.

    Example:
        >>> refuse_no_file(Path("/dev/null"))
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: '/dev/null' is a device, not a file; name the checkpoint
    """
    shown = printable(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = printable(getattr(error, "strerror", None) or error)
        raise CheckpointError(f"cannot read '{shown}': {reason}{_hint(path)}") from None
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise CheckpointError(f"'{shown}' is {kind}, not a file; name the checkpoint")


def _hint(path: Path) -> str:
    """Say why a path leads nowhere: a link, or a name misspelt."""
    try:
        if path.is_symlink():
            return f"; it is a link to '{printable(os.readlink(path))}': fetch what it leads to"
        return did_you_mean(path.name, [beside.name for beside in path.parent.iterdir()])
    except (OSError, ValueError):
        return ""


def refuse_foreign(path: Path, head: bytes) -> None:
    """Refuse a file that is known to be something else than a checkpoint.

    Args:
        path: of the file.
        head: its first `HEAD` bytes.

    Raises:
        CheckpointError: what it is, and what to do.

    Example:
        >>> refuse_foreign(Path("model.bin"), b"version https://git-lfs.github.com/spec/v1")
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: 'model.bin' is a git-lfs pointer, not the file itself; ...
    """
    if fact := _foreign(path, head):
        raise CheckpointError(f"'{printable(path)}' is {'; '.join(fact)}")


def _foreign(path: Path, head: bytes) -> tuple[str, str] | None:
    if not head:
        return "empty", "fetch or save it again"
    if head.lstrip().lower().startswith(PAGES):
        return "a web page, not the file behind it", "download the file itself"
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if head.startswith(b"PK\3\4") and head[30:].partition(b"PK")[0].find(b".npy") > 0:
        return SUFFIXES[".npz"]
    for beginning, fact in BEGINNINGS.items():
        if head.startswith(beginning):
            return fact
    return SUFFIXES.get(path.suffix.lower())

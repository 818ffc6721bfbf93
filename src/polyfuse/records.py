"""Commit records: sizes and digests that one file, written last, vouches for."""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from polyfuse import durable
from polyfuse.errors import RunError, printable


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file below a folder, by its path in the folder.

    Example:
        >>> import tempfile
        >>> digests(Path(tempfile.mkdtemp()))
        {}
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): {
            "bytes": p.stat().st_size,
            "sha256": hashlib.sha256(durable.read_bytes(p)).hexdigest(),
        }
        for p in files
    }


def are_files(files: Any) -> bool:
    """Tell whether a record's files are names that stay in its folder, with size and digest.

    Example:
        >>> are_files({"../secret": {"bytes": 1, "sha256": "0"}})
        False
    """
    return (
        isinstance(files, dict)
        and all(
            name == PurePosixPath(name).as_posix()
            and ".." not in name
            and not name.startswith("/")
            and len(name) < 256
            for name in files
        )
        and all(
            isinstance(facts, dict)
            and isinstance(facts.get("bytes"), int)
            and isinstance(facts.get("sha256"), str)
            for facts in files.values()
        )
    )


def checked(folder: Path, name: str, files: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the bytes of a file that its record vouches for, and its path for an error message.

    Args:
        folder: that the record stands in.
        name: path in the folder.
        files: as `digests` returned them.

    Raises:
        RunError: in no record, missing, or changed since.

    Example:
        >>> checked(Path("RUN"), "a.npy", {})
        Traceback (most recent call last):
        polyfuse.errors.RunError: 'RUN/a.npy' is in no record of 'RUN'
    """
    shown = printable(folder / name)
    if name not in files:
        raise RunError(f"'{shown}' is in no record of '{printable(folder)}'")
    raw = durable.read_bytes(folder / name)
    if hashlib.sha256(raw).hexdigest() != files[name]["sha256"]:
        raise RunError(
            f"'{shown}' was changed after it was committed (SHA-256 differs); restore it, or "
            f"delete '{printable(folder)}' and run the same command again"
        )
    return raw, shown

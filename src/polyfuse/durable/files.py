"""Files: one appears whole, on disk, under its final name, or not at all."""

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from polyfuse.durable.base import (
    JSON_LIMIT,
    Buffer,
    disk_errors,
    forget,
    reserve,
    sync_folder,
    temporary_name,
)
from polyfuse.errors import RunError, printable


def write_bytes(path: Path, *buffers: Buffer, new: bool = False) -> None:
    """Write buffers, one after the other, as one file.

    Args:
        path: final name; its folder exists.
        buffers: contents.
        new: fail where the name exists already (first commit wins) instead of replacing it.

    Raises:
        DiskError: the file system refused; no trace of the new file is left, the old one is intact.
        FileExistsError: `new` and the name exists.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_bytes(target, b"one ", b"two")
        >>> target.read_text(), [p.name for p in target.parent.iterdir()]
        ('one two', ['a.txt'])
    """
    temporary = path.with_name(temporary_name(path.name))
    size = sum(memoryview(buffer).nbytes for buffer in buffers)
    with disk_errors(path, size):
        try:
            _write_and_sync(temporary, buffers, size)
            if new:
                os.link(temporary, path)
                os.unlink(temporary)
            else:
                os.replace(temporary, path)
        except BaseException:
            forget(temporary)
            raise
        sync_folder(path.parent)


def write_json(path: Path, document: Any, *, new: bool = False) -> None:
    """Write a document as JSON: UTF-8, one-space indent, no NaN, the same bytes every time.

    Args:
        path: final name; its folder exists.
        document: dicts, lists, strings, finite numbers, booleans, None.
        new: fail where the name exists already.

    Raises:
        DiskError: the file system refused.
        FileExistsError: `new` and the name exists.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(target, {"a": 1})
        >>> read_json(target)
        {'a': 1}
    """
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(), new=new)


def read_bytes(path: Path, *, limit: int | None = None) -> bytes:
    """Read a regular file whole, at most `limit` bytes of it.

    Raises:
        RunError: missing, not a regular file, or larger than `limit`.

    Example:
        >>> read_bytes(Path("/dev/zero"))
        Traceback (most recent call last):
        polyfuse.errors.RunError: '/dev/zero' is not a regular file
    """
    shown = printable(path)
    try:
        # Opening a FIFO would wait for a writer; O_NONBLOCK returns, and fstat then tells.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise RunError(f"cannot read '{shown}': {error.strerror}") from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):  # before open(), which raises its own error for a folder
        os.close(descriptor)
        raise RunError(f"'{shown}' is not a regular file")
    with open(descriptor, "rb") as file:
        if limit is not None and facts.st_size > limit:
            raise RunError(f"'{shown}' has {facts.st_size:,} bytes; at most {limit:,} are read")
        return file.read()


def read_json(path: Path) -> Any:
    """Read a JSON document of at most 16 MB.

    Raises:
        RunError: missing, too large, or not JSON.

    Example:
        >>> read_json(Path("/no/such/file.json"))
        Traceback (most recent call last):
        polyfuse.errors.RunError: cannot read '/no/such/file.json': No such file or directory
    """
    raw = read_bytes(path, limit=JSON_LIMIT)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"'{printable(path)}' is not JSON ({printable(error)}); restore it"
        ) from None


def remove(path: Path) -> None:
    """Remove a file if it is there, durably.

    Raises:
        DiskError: the file system refused.

    Example:
        >>> remove(Path("/tmp/no-such-file-here"))
    """
    with disk_errors(path, 0):
        if path.exists():
            with contextlib.suppress(FileNotFoundError):  # another process removed it just now
                os.unlink(path)
            sync_folder(path.parent)


def _write_and_sync(path: Path, buffers: tuple[Buffer, ...], size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        reserve(descriptor, size)
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while rest:  # a write may be short
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)  # an error here is final: the same descriptor is never synced again
    finally:
        os.close(descriptor)

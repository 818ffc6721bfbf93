"""The only file that writes: a file appears whole, on disk, under its final name, or not at all.

Order of a write: temporary name beside the target, reserve the space, write in a loop, fsync,
rename, fsync of the folder. A power cut at any moment leaves the old version or the new one.
Nothing else in polyfuse opens a file for writing; a test holds this.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from polyfuse.errors import DiskError, PolyfuseError, RunError, printable

Buffer = bytes | bytearray | memoryview
JSON_LIMIT = 16 << 20
_MARK = ".polyfuse-"
_ATTEMPT = re.compile(rf"\.([^/]+){re.escape(_MARK)}[0-9]+-[0-9a-f]+\.tmp")  # a temporary name
_FACTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this account or file system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "the operation is not permitted",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}
_FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EIO: "check the disk, or name another output folder",
}


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
    with _disk_errors(path, size):
        try:
            _write_and_sync(temporary, buffers, size)
            if new:
                os.link(temporary, path)
                os.unlink(temporary)
            else:
                os.replace(temporary, path)
        except BaseException:
            _forget(temporary)
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


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, each one durably in its own parent.

    Raises:
        DiskError: the file system refused, or a file stands in the way.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a" / "b"
        >>> make_folder(target)
        >>> target.is_dir()
        True
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with _disk_errors(path, 0):
        with contextlib.suppress(FileExistsError):  # another process may have made it just now
            os.mkdir(path)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file stands in the way", str(path))
        sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; when the block ends it appears whole, or not at all.

    The first commit wins: where `path` exists already when the block ends, ours is thrown away.

    Args:
        path: final name; its parent exists.

    Yields:
        The temporary folder to fill.

    Raises:
        DiskError: the file system refused; no trace is left.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "member"
        >>> with new_folder(target) as folder:
        ...     write_bytes(folder / "a.txt", b"1")
        >>> [p.name for p in target.iterdir()]
        ['a.txt']
    """
    temporary = path.with_name(temporary_name(path.name))
    with _disk_errors(path, 0):
        os.mkdir(temporary)
        try:
            yield temporary
            sync_folder(temporary)
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not path.is_dir():
                    raise
                _forget(temporary)
        except BaseException:
            _forget(temporary)
            raise
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file if it is there, durably.

    Raises:
        DiskError: the file system refused.

    Example:
        >>> remove(Path("/tmp/no-such-file-here"))
    """
    with _disk_errors(path, 0):
        if path.exists():
            os.unlink(path)
            sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder if it is there: its name goes at once, its contents after.

    Raises:
        DiskError: the file system refused.

    Example:
        >>> remove_folder(Path("/tmp/no-such-folder-here"))
    """
    if not path.is_dir():
        return
    doomed = path.with_name(temporary_name(path.name))
    with _disk_errors(path, 0):
        os.rename(path, doomed)
        try:
            sync_folder(path.parent)
        finally:
            _forget(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of killed writers; call it under the folder's lock.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / temporary_name("a.txt")).touch()
        >>> remove_leftovers(folder)
        >>> list(folder.iterdir())
        []
    """
    with _disk_errors(folder, 0):
        for leftover in sorted(folder.rglob(f".*{_MARK}*.tmp")):
            _forget(leftover)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process ends, however it ends.

    Raises:
        RunError: another process holds it.
        DiskError: the file system refused.

    Example:
        >>> import tempfile
        >>> with locked(Path(tempfile.mkdtemp())):
        ...     pass
    """
    # One lock a path and thread: a run that holds it may call what takes it again.
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    with _disk_errors(folder / ".lock", 0):
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"'{folder}' is in use by another polyfuse process; wait until it ends, "
                "or name another folder with --out"
            ) from None
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (where the system can: not on Windows).

    Example:
        >>> sync_folder(Path("."))
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(name: str) -> str:
    """Return a name for an attempt at `name`: hidden, unique, known as ours.

    Example:
        >>> temporary_name("a.txt").startswith(".a.txt.polyfuse-")
        True
    """
    return f".{name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _write_and_sync(path: Path, buffers: tuple[Buffer, ...], size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        _reserve(descriptor, size)
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while rest:  # a write may be short
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)  # an error here is final: the same descriptor is never synced again
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, size: int) -> None:
    """Ask for the space at once, so that a full disk says so before anything is written."""
    if size == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _forget(path: Path) -> None:
    """Remove our own temporary file or folder; what cannot be removed now is a leftover."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def _disk_errors(path: Path, size: int) -> Iterator[None]:
    """Turn the system's refusal into a DiskError that names the file, the fact and the fix."""
    try:
        yield
    except PolyfuseError:
        raise
    except FileExistsError:
        raise
    except OSError as error:
        code = error.errno or 0
        fact = _FACTS.get(code, error.strerror or str(error))
        fix = _FIXES.get(code, "name another output folder")
        shown = printable(_ATTEMPT.sub(r"\1", str(path)))
        raise DiskError(f"cannot write '{shown}': {fact}{_space(path, size)}; {fix}") from error


def _space(path: Path, size: int) -> str:
    """Return what a write needs and what its file system has, where that can be told."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return ""
    return f" ({size:,} bytes needed, {free:,} free)" if size else ""

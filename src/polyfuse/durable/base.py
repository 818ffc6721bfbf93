"""What all durable writes share: temporary names, disk errors that help, syncs, locks."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from polyfuse.errors import DiskError, PolyfuseError, printable

if sys.platform != "win32":
    import fcntl

Buffer = bytes | bytearray | memoryview
JSON_LIMIT = 16 << 20
OURS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)  # how temporary files are opened
MARK = ".polyfuse-"
_ATTEMPT = re.compile(rf"\.([^/]+){re.escape(MARK)}[0-9]+-[0-9a-f]+\.tmp")  # a temporary name
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK}
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


def temporary_name(name: str) -> str:
    """Return a name for an attempt at `name`: hidden, unique, known as ours.

    Example:
        >>> temporary_name("a.txt").startswith(".a.txt.polyfuse-")
        True
    """
    return f".{name}{MARK}{os.getpid()}-{secrets.token_hex(4)}.tmp"


def draft_names(path: Path) -> tuple[Path, Path]:
    """Return where a draft of `path` and its journal lie: always the same, known as ours.

    Example:
        >>> [str(name) for name in draft_names(Path("out/a.bin"))]
        ['out/.a.bin.polyfuse-0-0.tmp', 'out/.a.bin.polyfuse-0-1.tmp']
    """
    first = f".{path.name}{MARK}0-"
    return path.with_name(f"{first}0.tmp"), path.with_name(f"{first}1.tmp")


def final_name(path: Path) -> Path:
    """Return the name that a temporary one, here or in a folder above, stands for.

    Example:
        >>> str(final_name(Path("out/.a.bin.polyfuse-17-9f.tmp")))
        'out/a.bin'
    """
    return Path(_ATTEMPT.sub(r"\1", str(path)))


def hold(path: Path) -> int | None:
    """Open a file, made where it is missing, and lock it; None where another process has it.

    The system gives the lock back when the process ends, however it ends.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | OURS, 0o666)
        try:
            if not _lock(descriptor):
                os.close(descriptor)
                return None
            if _is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it removed it just now: this is no longer that file


def _lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks is written without them
        if error.errno not in _UNSUPPORTED:
            raise
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def sync_data(descriptor: int) -> None:
    """Put a file's data on disk, and of its facts what reading them back needs."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def write_at(descriptor: int, buffer: Buffer, offset: int) -> None:
    """Write a buffer at an offset, all of it: a write may be short."""
    rest = memoryview(buffer)
    rest = rest.cast("B") if rest.nbytes else rest[:0]
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


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


def reserve(descriptor: int, size: int) -> None:
    """Ask for the space at once, so that a full disk says so before anything is written."""
    if size == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def forget(path: Path) -> None:
    """Remove our own temporary file or folder; what cannot be removed now is a leftover."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def disk_errors(path: Path, size: int) -> Iterator[None]:
    """Turn the system's refusal into a DiskError that names the file, the fact and the fix."""
    try:
        yield
    except PolyfuseError:
        raise
    except FileExistsError:
        raise
    except OSError as error:
        raise disk_error(error, path, size) from error


def disk_error(error: OSError, path: Path, size: int = 0) -> DiskError:
    """Return what to raise for the system's refusal: it names the file, the fact and the fix."""
    code = error.errno or 0
    fact = _FACTS.get(code, error.strerror or str(error))
    fix = _FIXES.get(code, "name another output folder")
    shown = printable(final_name(path))
    return DiskError(f"cannot write '{shown}': {fact}{_space(path, size)}; {fix}")


def _space(path: Path, size: int) -> str:
    """Return what a write needs and what its file system has, where that can be told."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return ""
    return f" ({size:,} bytes needed, {free:,} free)" if size else ""

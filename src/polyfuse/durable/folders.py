"""Folders: made, filled, locked, removed and tidied up, each step durable."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from polyfuse.durable.base import (
    MARK,
    disk_errors,
    draft_names,
    final_name,
    forget,
    hold,
    sync_folder,
    temporary_name,
)
from polyfuse.errors import RunError


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
    with disk_errors(path, 0):
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
        ...     (folder / "a.txt").touch()
        >>> [p.name for p in target.iterdir()]
        ['a.txt']
    """
    temporary = path.with_name(temporary_name(path.name))
    with disk_errors(path, 0):
        os.mkdir(temporary)
        try:
            yield temporary
            sync_folder(temporary)
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not path.is_dir():
                    raise
                forget(temporary)
        except BaseException:
            forget(temporary)
            raise
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
    with disk_errors(path, 0):
        os.rename(path, doomed)
        try:
            sync_folder(path.parent)
        finally:
            forget(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of killed writers; call it under the folder's lock.

    Drafts that a living process writes stay.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / temporary_name("a.txt")).touch()
        >>> remove_leftovers(folder)
        >>> list(folder.iterdir())
        []
    """
    with disk_errors(folder, 0):
        for leftover in sorted(folder.rglob(f".*{MARK}*.tmp")):
            place, journal = draft_names(leftover.parent / final_name(Path(leftover.name)))
            if leftover not in (place, journal):
                forget(leftover)
            elif (descriptor := hold(journal)) is not None:
                forget(place)
                forget(journal)
                os.close(descriptor)


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
    with disk_errors(folder / ".lock", 0):
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

"""The files of a draft: made with their space reserved, opened again, thrown away."""

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from polyfuse.durable.base import OURS, reserve, sync_folder
from polyfuse.errors import RunError, printable

Files = dict[str, int]  # open descriptors by name; the name of a lone file is ""


def check_names(sizes: Mapping[str, int]) -> None:
    """Refuse names that are paths; who read them from a stranger's file has told the user."""
    if sizes.keys() == {""}:
        return
    for name in sizes:
        if name in ("", "..") or Path(name).name != name:
            raise ValueError(f"'{printable(name)}' is not the name of a file in a folder")


def check_target(path: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a target that the rename would not, or should not, replace."""
    shown = printable(path)
    if "" in sizes:
        if path.exists() and not path.is_file():
            raise RunError(f"'{shown}' is not a regular file; name another output file")
    elif path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RunError(f"'{shown}' is not a folder; name another output folder")
    elif path.exists() and any(path.iterdir()):
        raise RunError(f"'{shown}' is not empty; remove it, or name another output folder")


def check_space(folder: Path, needed: int) -> None:
    """Refuse before any work what will not fit; a percent is for the file system's own books."""
    disk = shutil.disk_usage(folder)
    if disk.total and needed + needed // 100 > disk.free:  # some cannot tell, and say 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def create(place: Path, sizes: Mapping[str, int], files: Files) -> None:
    """Make the files, each with its space reserved; their names and sizes are on disk then."""
    if "" not in sizes:
        os.mkdir(place)
    for name, size in sizes.items():
        files[name] = os.open(place / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | OURS, 0o666)
        reserve(files[name], size)
        os.ftruncate(files[name], size)  # for file systems that cannot reserve
        os.fsync(files[name])
    if "" not in sizes:
        sync_folder(place)


def reopen(place: Path, sizes: Mapping[str, int], files: Files, access: int) -> bool:
    """Open the files that are there already, all of them or, if they are not those, none."""
    if "" not in sizes and not _holds(place, sizes):
        return False
    for name, size in sizes.items():
        try:
            files[name] = os.open(place / name, access | OURS)
            facts = os.fstat(files[name])
        except OSError:
            break
        if not stat.S_ISREG(facts.st_mode) or (facts.st_size, facts.st_nlink) != (size, 1):
            break
    else:
        return True
    close(files)
    return False


def _holds(place: Path, sizes: Mapping[str, int]) -> bool:
    """Tell whether this is a folder, no link to one, and holds just these names."""
    return not place.is_symlink() and place.is_dir() and set(os.listdir(place)) == sizes.keys()


def close(files: Files) -> None:
    """Close the files."""
    while files:
        os.close(files.popitem()[1])


def discard(place: Path) -> None:
    """Remove an old draft; unlike `forget`, say so where that fails."""
    if place.is_dir() and not place.is_symlink():
        for name in os.listdir(place):
            os.unlink(place / name)
        os.rmdir(place)
    elif os.path.lexists(place):
        os.unlink(place)

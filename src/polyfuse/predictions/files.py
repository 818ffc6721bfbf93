"""Open a file that somebody named: a regular one, nothing that hangs, nothing behind a bad link."""

import os
import stat
from pathlib import Path

from polyfuse.errors import DataError, printable


def open_file(path: Path, *, follow: bool = True) -> tuple[int, int]:
    """Open a regular file for reading.

    Args:
        path: of the file.
        follow: a link, where the last part of the path is one.

    Returns:
        Its descriptor, to be closed by the caller, and its size.

    Raises:
        DataError: missing, unreadable, or not a regular file.

    Example:
        >>> open_file(Path("/no/such.npy"))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such.npy': No such file or directory
    """
    # Opening a FIFO would wait for a writer; O_NONBLOCK returns, and fstat then tells.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read '{printable(path)}': {printable(reason)}") from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise DataError(f"'{printable(path)}' is not a regular file")
    return descriptor, facts.st_size

"""A pickle reader that runs nothing: it builds plain data, and inert records of all the rest.

A pickle is a program whose operations may import and call anything. Here a name that the caller did
not list stays a `Global`, a pair of strings; calling it, or filling it with state, makes an
`Opaque`, which remembers what was asked for. Nothing that a file names is ever imported or called.
Nothing is allocated by a stated size, and no operation copies what an earlier one built, so memory
and time grow with the length of the pickle and not with what it says.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

from polyfuse.checkpoints.base import LIMITS
from polyfuse.checkpoints.pickle_machine import SHOWN, Machine
from polyfuse.checkpoints.pickle_values import PLAIN, Global, Opaque
from polyfuse.errors import CheckpointError, printable

__all__ = ["PLAIN", "Global", "Opaque", "load"]


def load(
    raw: bytes,
    *,
    names: Mapping[tuple[str, str], Callable[..., Any] | Any] = PLAIN,
    persistent: Callable[[Any], Any] | None = None,
    shown: str = "pickle",
) -> Any:
    """Read a pickle of any protocol, without running it.

    Args:
        raw: the pickle; what follows its end is ignored.
        names: what stands for (module, name). A callable is called with the arguments that the
            pickle gives; it must build in constant time, and raises ValueError for arguments that
            make no sense. Anything else stands for itself.
        persistent: called with each persistent id; without it, there must be none.
        shown: name of the file, printable, for errors.

    Returns:
        Plain data, what `names` and `persistent` returned, `Global` and `Opaque`. Lists and dicts
        may contain themselves, and nest deeper than a recursive function can follow.

    Raises:
        CheckpointError: damaged, or beyond LIMITS; it names the operation and its place.

    Example:
        >>> import pickle, pathlib
        >>> load(pickle.dumps({"epoch": 3, "folder": pathlib.PurePosixPath("/tmp")}))
        {'epoch': 3, 'folder': <pathlib.PurePosixPath>}
    """
    if len(raw) > LIMITS.pickle_bytes:
        raise CheckpointError(
            f"the pickle in '{shown}' has {len(raw):,} bytes; "
            f"at most {LIMITS.pickle_bytes:,} are read"
        )
    machine = Machine(raw, names, persistent)
    try:
        return machine.run()
    except IndexError:
        reason = "it ends too early" if machine.at >= len(raw) else "something is missing"
    except (ValueError, TypeError, struct.error) as error:
        reason = printable(error)
    operation = SHOWN.get(raw[machine.at], "unknown") if machine.at < len(raw) else "end"
    raise CheckpointError(
        f"the pickle in '{shown}' is damaged: {reason} (byte {machine.at:,}, {operation}); "
        "fetch the file again"
    )

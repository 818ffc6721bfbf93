"""A soup's journal: the scores of finished trials, on disk before the next one begins."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyfuse import durable
from polyfuse.errors import RunError, printable
from polyfuse.selection import Members
from polyfuse.soups.base import Source, opened
from polyfuse.statedict import digest

SCHEMA = 1


class Journal(dict[Members, float]):
    """Scores by members; a score that is set is written before the assignment returns.

    Args:
        path: of the file; None keeps them in memory only.
        identity: of what was scored, as `key` returns it.

    Raises:
        RunError: the file is damaged, or about something else.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "soup.json"
        >>> Journal(file, "mine")[(0, 1)] = 0.5
        >>> Journal(file, "mine")
        {(0, 1): 0.5}
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        """Read what is there."""
        super().__init__()
        self.path, self.identity = path, identity
        if path is not None and path.exists():
            super().update(_read(path, identity))

    def __setitem__(self, members: Members, score: float) -> None:
        """Keep a score, on disk."""
        if self.get(members) == score:
            return
        super().__setitem__(members, score)
        if self.path is not None:
            trials = [{"members": list(m), "score": s} for m, s in self.items()]
            document = {"schema": SCHEMA, "key": self.identity, "trials": trials}
            durable.make_folder(self.path.parent)
            durable.write_json(self.path, document)


def key(sources: Sequence[Source], *functions: Callable[..., Any] | None) -> str:
    """Return a SHA-256 over the checkpoints, in order, and the names of functions.

    Example:
        >>> key([], len) == key([], max)
        False
    """
    facts = [*map(_digest, sources), *map(_name, functions)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _digest(source: Source) -> str:
    with opened(source) as checkpoint:
        infos = ((name, checkpoint.info(name)) for name in checkpoint.names())
        return digest((name, checkpoint.read(name).view(info.shape)) for name, info in infos)


def _read(path: Path, identity: str) -> dict[Members, float]:
    document = durable.read_json(path)
    try:
        if document["schema"] != SCHEMA:
            raise ValueError
        same = document["key"] == identity
        trials = {tuple(map(int, t["members"])): float(t["score"]) for t in document["trials"]}
    except (TypeError, KeyError, ValueError):
        raise RunError(
            f"'{printable(path)}' is no journal of a soup; delete it, or name another file"
        ) from None
    if not same:
        raise RunError(
            f"'{printable(path)}' is the journal of other checkpoints, or of another evaluation; "
            "delete it to begin anew, or name another file"
        )
    return trials


def _name(function: Callable[..., Any] | None) -> str:
    """Name a function by what it is, not by where it lies in memory."""
    inner = getattr(function, "func", None)  # of a functools.partial
    if inner is not None:
        return f"partial {_name(inner)}"
    named = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{named}"

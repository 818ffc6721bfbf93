"""SHA-256 of files that were hashed before, kept in the user's cache folder.

The same checkpoints are averaged again and again, with other weights or another range, and hashing
them takes longer than averaging. A hash is used again as long as the file's device, inode, size,
time of change and time of status change are the same to the nanosecond; no program can set the last
one. A file that was changed within two seconds before it was hashed is not remembered: on a coarse
clock it could be changed again unseen. `polyfuse verify` never looks here.

Data sets of image files are remembered as a whole: that each of them was read and found good.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from polyfuse import durable
from polyfuse.errors import PolyfuseError

VARIABLE = "POLYFUSE_CACHE"  # a folder; "off" remembers nothing
FILE = "digests.json"
MOST = 10_000
SETTLED = 2.0  # seconds that a file must have been left alone
SCHEMA = 1


class Remembered:
    """The hashes that are known, and those that will be.

    Args:
        file: where they are kept; None remembers nothing.

    Example:
        >>> Remembered(None).get(Path(__file__)) is None
        True
    """

    def __init__(self, file: Path | None) -> None:
        """Read what is there; a file that is damaged or not ours is as good as none."""
        self._file = file
        self._began = time.time()
        self._known = _read(file)
        self._new: dict[str, str] = {}

    def get(self, path: Path) -> str | None:
        """Return the SHA-256 of a file, where it is known and the file is the same."""
        key = self._key(path)
        return None if key is None else self._known.get(key)

    def put(self, path: Path, digest: str) -> None:
        """Remember a hash that was made since this object was."""
        key = self._key(path)
        if key is not None and key not in self._known:
            self._new[key] = digest

    def together(self, paths: Iterable[Path], facts: bytes = b"") -> str | None:
        """Return by what the digest of many files is known; None where nothing is certain.

        Args:
            paths: of the files, in an order that counts.
            facts: what else the digest depends on.

        Returns:
            64 hexadecimal digits, others when any of the files is another one.
        """
        digest = hashlib.sha256(facts)
        for path in paths:
            key = self._key(path)
            if key is None:
                return None
            digest.update(f"{key};".encode())
        return digest.hexdigest()

    def known(self, key: str | None) -> str | None:
        """Return the digest of many files by their key, where it is known."""
        return None if key is None else self._known.get(key)

    def learn(self, key: str | None, digest: str) -> None:
        """Remember the digest of many files by their key."""
        if key is not None and key not in self._known:
            self._new[key] = digest

    def save(self) -> None:
        """Keep what is new; where that cannot be done, nothing is lost but time."""
        if self._file is None or not self._new:
            return
        digests = _read(self._file) | self._new  # another process may have been here
        newest = dict(list(digests.items())[-MOST:])
        try:
            durable.make_folder(self._file.parent)
            durable.write_json(self._file, {"schema": SCHEMA, "digests": newest})
        except (PolyfuseError, OSError):
            return

    def _key(self, path: Path) -> str | None:
        """Return what tells a version of a file from all others; None where nothing is certain."""
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            return None
        touched = max(facts.st_mtime, facts.st_ctime)
        if self._file is None or os.name == "nt" or touched > self._began - SETTLED:
            return None
        numbers = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        return ":".join(map(str, numbers))


def cache_file() -> Path | None:
    """Return where hashes are kept, by the variable POLYFUSE_CACHE or as XDG has it.

    Example:
        >>> cache_file() is None or cache_file().name == "digests.json"
        True
    """
    chosen = os.environ.get(VARIABLE)
    if chosen == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) / FILE if chosen else Path(home) / "polyfuse" / FILE


def _read(file: Path | None) -> dict[str, str]:
    try:
        document = durable.read_json(file) if file is not None and file.exists() else None
    except (PolyfuseError, OSError):
        return {}
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return {}
    found = document.get("digests")
    pairs = found.items() if isinstance(found, dict) else ()
    return {k: v for k, v in pairs if isinstance(v, str) and len(v) == 64}

"""A journal: a line a claim, each with its checksum, on disk before `append` returns."""

import json
import os
import zlib
from typing import Any

from polyfuse.durable.base import JSON_LIMIT, sync_data, write_at


class Journal:
    """The journal in an open file.

    A line counts where its checksum is right and all lines before it count; what follows the last
    one, torn by a crash, is written over.

    Args:
        descriptor: of a file, open for reading and writing.

    Attributes:
        values: what the lines claim, at most 16 MB of them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     Journal(file.fileno()).append({"chunk": 3})
        ...     Journal(file.fileno()).values
        [{'chunk': 3}]
    """

    def __init__(self, descriptor: int) -> None:
        """Read what is there."""
        self._descriptor = descriptor
        self.values: list[Any] = []
        self._end = 0
        for line in os.pread(descriptor, JSON_LIMIT, 0).splitlines(keepends=True):
            try:
                value = json.loads(line)["value"]
                if _line(value) != line:
                    break
            except (ValueError, TypeError, KeyError, RecursionError):
                break
            self.values.append(value)
            self._end += len(line)

    def restart(self) -> None:
        """Take back all claims, durably: what they were about may be overwritten then."""
        os.ftruncate(self._descriptor, 0)
        os.fsync(self._descriptor)
        self.values, self._end = [], 0

    def append(self, value: Any) -> None:
        """Claim something; it is on disk when this returns."""
        line = _line(value)
        os.ftruncate(self._descriptor, self._end)  # a torn line may be longer than this one
        write_at(self._descriptor, line, self._end)
        sync_data(self._descriptor)
        self._end += len(line)
        self.values.append(value)


def _line(value: Any) -> bytes:
    """Return the one way to write a claim."""
    claim = _canonical(value)
    return _canonical({"crc": zlib.crc32(claim), "value": value}) + b"\n"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

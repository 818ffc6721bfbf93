"""SHA-256 of whole files, in the background; it may begin before torch is imported.

One core hashes the inputs while another imports torch. This file imports nothing heavy.
"""

import hashlib
import mmap
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from polyfuse.errors import CheckpointError, printable
from polyfuse.remembered import Remembered

_HASHED = 4 << 20  # bytes a call: Python's lock is given up for so long
_FREE, _THEIRS, _OURS = 0, 1, 2
Identity = tuple[int, int, int, int]  # device, inode, size, time of change in ns


class Digests:
    """Hashes of files, each made once and kept as long as the file stays the same.

    Args:
        threads: that hash side by side.
        remembered: hashes that are known from earlier.

    Example:
        >>> with Digests() as digests:
        ...     digests.sha256(Path(__file__)) == digests.sha256(Path(__file__))
        True
    """

    def __init__(self, threads: int = 1, remembered: Remembered | None = None) -> None:
        """Start nothing yet."""
        self._remembered = remembered or Remembered(None)
        self._pool = ThreadPoolExecutor(threads, "digest")
        self._begun: dict[Identity, Future[str]] = {}
        self._apart: BaseProcess | None = None
        self._shared: list[tuple[Identity, Path]] = []  # what the other process hashes
        self._claims: Any = b""  # who has taken each of these
        self._ended = False

    def begin(self, paths: Iterable[Path]) -> None:
        """Begin to hash these files; what cannot be read is told when it is asked for."""
        for path in paths:
            identity = _identity(path)
            if identity is not None and not self._is_known(identity, path):
                self._begun[identity] = self._pool.submit(self._sha256, path)

    def _is_known(self, identity: Identity, path: Path) -> bool:
        """Tell whether a hash is there or on its way; one that is remembered is taken."""
        if identity not in self._begun and (digest := self._remembered.get(path)):
            self._begun[identity] = Future()
            self._begun[identity].set_result(digest)
        return identity in self._begun

    def begin_apart(self, paths: Iterable[Path]) -> None:
        """Begin to hash these files in a process of its own, where one can be forked safely.

        A thread would wait for Python's lock, which the import of torch holds for long stretches:
        it gets through half as many bytes meanwhile.
        """
        found = {identity: path for path in paths if (identity := _identity(path)) is not None}
        todo = {i: path for i, path in found.items() if not self._is_known(i, path)}
        if not todo:
            return
        if not _may_fork():
            self.begin(todo.values())
            return
        self._shared = list(todo.items())
        self._claims = mmap.mmap(-1, len(todo))  # shared with the other process
        self._begun |= {identity: Future() for identity in todo}
        context = multiprocessing.get_context("fork")
        seen, say = context.Pipe(duplex=False)
        arguments = ([path for _, path in self._shared], self._claims, say)
        self._apart = context.Process(target=_hash_apart, args=arguments)
        self._apart.start()
        say.close()  # ours; the end of theirs is then seen
        self._pool.submit(self._listen, seen)

    def _listen(self, seen: Connection) -> None:
        """Take the hashes as they come; make those that the other process took and did not send."""
        while True:
            try:
                number, digest = seen.recv()
            except (EOFError, OSError):
                break
            if digest:
                self._settle(number, digest)
            else:
                self._hash_here(number)
        for number, (identity, _) in enumerate(self._shared):
            if self._claims[number] != _OURS and not self._begun[identity].done():
                self._hash_here(number)

    def _help(self) -> None:
        """Hash what the other process has not come to, from the end: somebody waits for it."""
        for number in reversed(range(len(self._shared))):
            if self._claims[number] == _FREE and not self._ended:
                self._claims[number] = _OURS
                self._hash_here(number)

    def _hash_here(self, number: int) -> None:
        try:
            self._settle(number, self._sha256(self._shared[number][1]))
        except CheckpointError as error:
            self._settle(number, error)

    def _settle(self, number: int, found: str | CheckpointError) -> None:
        future = self._begun[self._shared[number][0]]
        with suppress(InvalidStateError):  # both took the file at the same moment
            future.set_result(found) if isinstance(found, str) else future.set_exception(found)

    def sha256(self, path: Path) -> str:
        """Return a file's SHA-256 as 64 hexadecimal digits, once it is there.

        Raises:
            CheckpointError: the file cannot be read, or was changed meanwhile.
        """
        self.begin([path])
        identity = _identity(path)
        if identity is None or identity not in self._begun:
            raise CheckpointError(f"cannot read '{printable(path)}': it is no regular file")
        if not self._begun[identity].done():
            self._help()
        digest = self._begun[identity].result()
        if _identity(path) != identity:
            raise CheckpointError(
                f"'{printable(path)}' was changed while it was read; wait until its writer is "
                "done, then type the same command again"
            )
        self._remembered.put(path, digest)
        return digest

    def close(self) -> None:
        """Give up what is not done, and keep what is."""
        self._ended = True
        self._remembered.save()
        if self._apart is not None:
            self._apart.kill()
            self._apart.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        """Return itself, to be closed when the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give up what is not done."""
        self.close()

    def _sha256(self, path: Path) -> str:
        return _sha256(path, lambda: self._ended)


def _sha256(path: Path, ended: Callable[[], bool] = lambda: False) -> str:
    digest = hashlib.sha256()
    try:
        buffer = bytearray(min(_HASHED, path.stat().st_size + 1))
        with open(path, "rb", buffering=0) as file:
            while (count := file.readinto(buffer)) and not ended():
                digest.update(memoryview(buffer)[:count])
    except OSError as error:
        raise CheckpointError(f"cannot read '{printable(path)}': {error.strerror}") from None
    return digest.hexdigest()


def _hash_apart(paths: Sequence[Path], claims: Any, say: Connection) -> None:
    """Send the number and the hash of each file, or no hash for one that cannot be read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for number, path in enumerate(paths):
        if claims[number] != _FREE:
            continue
        claims[number] = _THEIRS
        try:
            digest = _sha256(path)
        except CheckpointError:
            digest = ""
        try:
            say.send((number, digest))
        except OSError:  # the parent is gone
            return


def _may_fork() -> bool:
    """Tell whether a fork is safe: no other threads, and none of torch's."""
    able = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    return able and threading.active_count() == 1 and "torch" not in sys.modules


def _identity(path: Path) -> Identity | None:
    """Return what tells a file from others; None where it is no regular file."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    if not path.is_file():  # a FIFO would wait for a writer
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns

"""Drafts: large outputs, written in place under a temporary name, that a crash does not undo.

A draft lies beside its target with a journal of what was claimed about it. A claim is made only
after its data are on disk, so that the next attempt may build on it.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polyfuse.durable.base import (
    Buffer,
    disk_error,
    disk_errors,
    draft_names,
    forget,
    hold,
    sync_data,
    sync_folder,
    write_at,
)
from polyfuse.durable.folders import make_folder
from polyfuse.durable.journals import Journal
from polyfuse.durable.staging import (
    Files,
    check_names,
    check_space,
    check_target,
    close,
    create,
    discard,
    reopen,
)
from polyfuse.errors import RunError, printable


class Draft:
    """A large output in the making; any thread may write, read and claim.

    Attributes:
        claims: what an earlier attempt claimed; its data are on disk.
        done: an earlier attempt was stopped when the output was in place already: there is nothing
            left to write.
    """

    def __init__(
        self, path: Path, sizes: Mapping[str, int], files: Files, journal: Journal, *, done: bool
    ) -> None:
        """Take over open files; see `draft`."""
        self.claims, self.done = journal.values[1:], done
        self._path, self._sizes, self._files, self._journal = path, sizes, files, journal
        self._unsynced = dict.fromkeys(files, False)
        self._turn = threading.Lock()
        self._broken: OSError | None = None

    def write(self, name: str, offset: int, buffer: Buffer) -> None:
        """Write a buffer, not copied, at its final place.

        Args:
            name: of the file in the output folder; "" where the output is one file.
            offset: of its first byte.
            buffer: any contiguous one.

        Raises:
            DiskError: the file system refused.
        """
        size = memoryview(buffer).nbytes
        self._check_range(name, offset, size)
        try:
            write_at(self._files[name], buffer, offset)
        except OSError as error:
            raise disk_error(error, self._path / name, size) from error
        self._unsynced[name] = True  # only now: a claim meanwhile could not have synced it

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with bytes that were written.

        Raises:
            RunError: they are not there, or the system reports an error.
        """
        self._check_range(name, offset, len(buffer))
        while buffer:
            try:
                count = os.preadv(self._files[name], [buffer], offset)
            except OSError as error:
                raise RunError(
                    f"cannot read '{printable(self._path / name)}': {error.strerror}"
                ) from None
            if not count:
                raise RunError(
                    f"'{printable(self._path / name)}' was truncated while it was written"
                )
            buffer, offset = buffer[count:], offset + count

    def claim(self, value: Any) -> None:
        """Put on disk what was written, then note in the journal what it is.

        Args:
            value: any JSON document; the next attempt finds it in `claims`.

        Raises:
            DiskError: the file system refused; the draft can then no longer be finished.
        """
        with self._turn, self._last_errors():
            for name, descriptor in self._files.items():
                if self._unsynced[name]:
                    self._unsynced[name] = False
                    sync_data(descriptor)
            self._journal.append(value)

    def _check_range(self, name: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._sizes[name]:
            raise ValueError(
                f"bytes {offset} to {offset + length} of '{name}', which has {self._sizes[name]}"
            )

    @contextlib.contextmanager
    def _last_errors(self) -> Iterator[None]:
        """Let no sync follow on one that failed: the system may have dropped the data by then."""
        with _errors(self._path):
            if self._broken is not None:
                raise self._broken
            try:
                yield
            except OSError as error:
                self._broken = error
                raise

    def _finish(self) -> None:
        if self.done:
            return
        place, _ = draft_names(self._path)
        with self._turn, self._last_errors():
            for descriptor in self._files.values():
                os.fsync(descriptor)
            if "" not in self._files:
                sync_folder(place)
            check_target(self._path, self._sizes)  # something may have appeared meanwhile
            os.replace(place, self._path)
            sync_folder(self._path.parent)


@contextlib.contextmanager
def draft(
    path: Path, sizes: Mapping[str, int], *, key: str, resume: bool = False, keep: bool = False
) -> Iterator[Draft]:
    """Write a large output in place; when the block ends it appears whole, or not at all.

    Args:
        path: final name, of a file (an old one is replaced) or of a folder (missing or empty).
            Missing folders above it are made.
        sizes: bytes of each file by its name in the folder; `{"": size}` for one file.
        key: says what is written: a digest of inputs, options and layout.
        resume: go on with the draft of an attempt that was stopped, if there is one. Without it,
            an old draft is thrown away.
        keep: keep the draft when an error ends the block, so that `resume` can go on with it. A
            draft with claims is kept in any case when the user interrupts.

    Yields:
        The draft to write.

    Raises:
        DiskError: the file system refused, or has too little space.
        RunError: something stands under the final name; another process is writing there; or
            `resume` and the draft there has another key.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.bin"
        >>> with draft(target, {"": 8}, key="two words") as output:
        ...     output.write("", 4, b"here")
        ...     output.write("", 0, b"now ")
        ...     output.claim("all of it")
        >>> target.read_bytes(), [p.name for p in target.parent.iterdir()]
        (b'now here', ['a.bin'])
    """
    check_names(sizes)
    files: Files = {}
    make_folder(path.parent)
    try:
        with _held_journal(path) as journal:
            with _errors(path, sum(sizes.values())):
                done = _begin(path, sizes, files, journal, key, resume)
            begun = Draft(path, sizes, files, journal, done=done)
            try:
                yield begun
                begun._finish()
            except BaseException as error:
                _keep_or_forget(path, journal, error, keep)
                raise
    finally:
        close(files)


def _keep_or_forget(path: Path, journal: Journal, error: BaseException, keep: bool) -> None:
    """Decide about a draft that was not finished; the error says if it is kept."""
    place, _ = draft_names(path)
    wanted = keep or isinstance(error, KeyboardInterrupt | SystemExit)
    if wanted and len(journal.values) > 1 and os.path.lexists(place):
        error.add_note(
            f"what was done is kept beside '{printable(path)}'; "
            "type the same command with --resume to go on"
        )
    else:
        forget(place)


@contextlib.contextmanager
def _held_journal(path: Path) -> Iterator[Journal]:
    """Open and lock the journal; it goes when the draft is gone."""
    place, name = draft_names(path)
    with _errors(path):
        descriptor = hold(name)
    if descriptor is None:
        raise RunError(
            f"'{printable(path)}' is being written by another polyfuse process; "
            "wait until it ends, or name another output"
        )
    try:
        with _errors(path):
            journal = Journal(descriptor)
        yield journal
        with _errors(path):
            os.unlink(name)
            sync_folder(path.parent)
    except BaseException:
        if not os.path.lexists(place):
            forget(name)
        raise
    finally:
        os.close(descriptor)


def _begin(
    path: Path, sizes: Mapping[str, int], files: Files, journal: Journal, key: str, resume: bool
) -> bool:
    """Open the draft that is there, if it is to be resumed, or a new one; True: it is in place."""
    place, _ = draft_names(path)
    there, same = os.path.lexists(place), journal.values[:1] == [key]
    if resume and there and journal.values and not same:
        raise RunError(
            f"what was begun of '{printable(path)}' had other inputs or options; type the command "
            "that began it, or leave --resume out to start anew"
        )
    goes_on = resume and same
    if goes_on and not there and "" not in sizes and reopen(path, sizes, files, os.O_RDONLY):
        return True  # the attempt was stopped after the rename
    check_target(path, sizes)
    if not (goes_on and reopen(place, sizes, files, os.O_RDWR)):
        _start_anew(path, sizes, files, journal, key)
    return False


def _start_anew(
    path: Path, sizes: Mapping[str, int], files: Files, journal: Journal, key: str
) -> None:
    """Take old claims back, durably, before the draft that they are about goes; make a new one."""
    place, _ = draft_names(path)
    try:
        journal.restart()
        discard(place)
        check_space(path.parent, sum(sizes.values()))
        create(place, sizes, files)
        sync_folder(path.parent)
        journal.append(key)
    except BaseException:
        forget(place)
        raise


@contextlib.contextmanager
def _errors(path: Path, size: int = 0) -> Iterator[None]:
    """Turn every refusal into a DiskError, also that something is there already."""
    try:
        with disk_errors(path, size):
            yield
    except FileExistsError as error:
        raise disk_error(error, path, size) from error

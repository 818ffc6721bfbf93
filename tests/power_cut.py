"""Cut the power in the middle of a write: an ext4 image, copied while it is mounted and in use.

The copy is what a disk holds at that moment; mounting it replays the journal, as the next boot
does. Another file is synced before each copy, because a commit of the journal is what exposes a
rename whose data never reached the disk. It needs root, `mkfs.ext4` and loop mounts.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from polyfuse import durable
from polyfuse.durable.journals import Journal

CALLS = ("open", "posix_fallocate", "write", "fsync", "replace")
CALLS_OF_DRAFTS = ("pwrite", "fdatasync", "replace", "unlink")
OLD, NEW = b"old " * 10_000, b"new " * 20_000
HALF = len(NEW) // 2


class CannotMount(Exception):
    """This machine cannot mount images; the message says why."""


@contextlib.contextmanager
def disk(folder: Path) -> Iterator["Disk"]:
    """Make and mount an image of 32 MB; unmount it however the block ends."""
    image, mounted = folder / "image", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    _system("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    with _mounted(image, mounted):
        yield Disk(image, mounted)


class Disk:
    """A mounted image, and what was seen on it after power cuts."""

    def __init__(self, image: Path, mounted: Path) -> None:
        self.image, self.mounted = image, mounted

    def cut(self, *, commit: bool) -> dict[str, bytes]:
        """Return the files, by relative name, that a power cut now would leave."""
        if commit:
            _sync_something_else(self.mounted)
        with tempfile.TemporaryDirectory(dir=self.image.parent) as name:
            copy = Path(name) / "copy"
            shutil.copyfile(self.image, copy)
            with _mounted(copy, Path(name) / "mounted") as found:
                files = (p for p in found.rglob("*") if p.is_file())
                return {str(p.relative_to(found)): p.read_bytes() for p in files}


def faults(disk: Disk, monkeypatch: Any, **mutations: Any) -> list[str]:
    """Write over an old file and to a new name; cut before each call, and at the end.

    Args:
        disk: is written to.
        monkeypatch: pytest's.
        mutations: functions of `os`, as `durable` sees it, that are replaced.

    Returns:
        What a cut left that is neither old nor new, or that was lost after `write_bytes` returned.
    """
    durable.write_bytes(disk.mounted / "old.bin", OLD)
    found: list[str] = []
    names = {name: getattr(os, name) for name in dir(os)} | mutations
    with monkeypatch.context() as patch:
        _patch(patch, _cutting(lambda when: _judge(disk.cut(commit=True), found, when), names))
        durable.write_bytes(disk.mounted / "old.bin", NEW)
        durable.write_bytes(disk.mounted / "new.bin", NEW)
        _judge(disk.cut(commit=True), found, "at the end")
        _patch(patch, SimpleNamespace(**names))
        durable.write_bytes(disk.mounted / "last.bin", NEW)
    if disk.cut(commit=False).get("last.bin") != NEW:
        found.append("last.bin was written, and is not there")
    return found


def draft_faults(disk: Disk, monkeypatch: Any, **mutations: Any) -> list[str]:
    """Write a file and a folder as drafts, with claims; cut before each call, and at the end.

    Args:
        disk: is written to.
        monkeypatch: pytest's.
        mutations: functions of `os`, as `durable` sees it, that are replaced.

    Returns:
        What a cut left that is neither old nor new, claims whose data are not in the draft beside
        them, and what was lost after the block ended.
    """
    durable.write_bytes(disk.mounted / "old.bin", OLD)
    found: list[str] = []
    names = {name: getattr(os, name) for name in dir(os)} | mutations

    def judge(when: str) -> None:
        left = disk.cut(commit=True)
        _judge(left, found, when)
        _judge_claims(left, found, when)

    with monkeypatch.context() as patch:
        _patch(patch, _cutting(judge, names, CALLS_OF_DRAFTS))
        _write_draft(disk.mounted / "old.bin", {"": len(NEW)})
        _patch(patch, _cutting(judge, names, ("replace", "unlink")))
        _write_draft(disk.mounted / "m", {"new.bin": len(NEW)})
        _patch(patch, SimpleNamespace(**names))
        _write_draft(disk.mounted / "last.bin", {"": len(NEW)})
    if disk.cut(commit=False).get("last.bin") != NEW:
        found.append("last.bin was written, and is not there")
    return found


def _write_draft(path: Path, sizes: dict[str, int]) -> None:
    (name,) = sizes
    with durable.draft(path, sizes, key="cut") as output:
        for start in (0, HALF):
            output.write(name, start, NEW[start : start + HALF])
            output.claim([name, start])


def _judge_claims(left: dict[str, bytes], found: list[str], when: str) -> None:
    for journal, raw in left.items():
        draft = journal.replace("0-1.tmp", "0-0.tmp")
        for name, start in _claims(raw) if draft != journal else ():
            data = left.get(os.path.normpath(os.path.join(draft, name)), NEW)
            if data[start : start + HALF] != NEW[start : start + HALF]:
                found.append(f"{when}: claimed, and not there: {name} from {start}")


def _claims(journal: bytes) -> list[Any]:
    with tempfile.TemporaryFile() as file:
        file.write(journal)
        file.flush()
        return Journal(file.fileno()).values[1:]


def path_of(descriptor: int) -> str:
    """Return the path of an open file."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _patch(patch: Any, system: SimpleNamespace) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith(durable.__name__) and hasattr(module, "os"):
            patch.setattr(module, "os", system)


def _cutting(
    judge: Callable[[str], None], names: dict[str, Any], calls: tuple[str, ...] = CALLS
) -> SimpleNamespace:
    def before(name: str) -> Any:
        def call(*args: Any) -> Any:
            judge(f"before {name}")
            return names[name](*args)

        return call

    return SimpleNamespace(**names | {name: before(name) for name in calls})


def _judge(left: dict[str, bytes], found: list[str], when: str) -> None:
    if left.get("old.bin") not in (OLD, NEW):
        found.append(f"{when}: old.bin has {len(left.get('old.bin', b''))} other bytes")
    for name in {"new.bin", "m/new.bin"} & left.keys():
        if left[name] != NEW:
            found.append(f"{when}: {name} has {len(left[name])} other bytes")


def _sync_something_else(folder: Path) -> None:
    descriptor = os.open(folder / ".other", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"x")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    # noauto_da_alloc: no heuristic of the file system's may make up for a missing fsync.
    _system("mount", "-o", "loop,noauto_da_alloc", str(image), str(folder))
    try:
        yield folder
    finally:
        _system("umount", str(folder))


def _system(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise CannotMount(f"{command[0]}: {said.strip()}") from None

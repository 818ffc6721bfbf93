"""Cut the power in the middle of a write: an ext4 image, copied while it is mounted and in use.

The copy is what a disk holds at that moment; mounting it replays the journal, as the next boot
does. Another file is synced before each copy, because a commit of the journal is what exposes a
rename whose data never reached the disk. It needs root, `mkfs.ext4` and loop mounts.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from polyfuse import durable

CALLS = ("open", "posix_fallocate", "write", "fsync", "replace")
OLD, NEW = b"old " * 10_000, b"new " * 20_000


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
        """Return the files, hidden ones apart, that a power cut now would leave."""
        if commit:
            _sync_something_else(self.mounted)
        with tempfile.TemporaryDirectory(dir=self.image.parent) as name:
            copy = Path(name) / "copy"
            shutil.copyfile(self.image, copy)
            with _mounted(copy, Path(name) / "mounted") as found:
                files = (p for p in found.iterdir() if p.is_file() and p.name[0] != ".")
                return {p.name: p.read_bytes() for p in files}


def faults(disk: Disk, monkeypatch: Any, **mutations: Any) -> list[str]:
    """Write over an old file and to a new name; cut before each call, and at the end.

    Args:
        disk: is written to.
        monkeypatch: pytest's.
        mutations: functions of `os`, as durable.py sees it, that are replaced.

    Returns:
        What a cut left that is neither old nor new, or that was lost after `write_bytes` returned.
    """
    durable.write_bytes(disk.mounted / "old.bin", OLD)
    found: list[str] = []
    names = {name: getattr(os, name) for name in dir(os)} | mutations
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", _cutting(disk, found, names))
        durable.write_bytes(disk.mounted / "old.bin", NEW)
        durable.write_bytes(disk.mounted / "new.bin", NEW)
        _judge(disk.cut(commit=True), found, "at the end")
        patch.setattr(durable, "os", SimpleNamespace(**names))
        durable.write_bytes(disk.mounted / "last.bin", NEW)
    if disk.cut(commit=False).get("last.bin") != NEW:
        found.append("last.bin was written, and is not there")
    return found


def _cutting(disk: Disk, found: list[str], names: dict[str, Any]) -> SimpleNamespace:
    def before(name: str) -> Any:
        def call(*args: Any) -> Any:
            _judge(disk.cut(commit=True), found, f"before {name}")
            return names[name](*args)

        return call

    return SimpleNamespace(**names | {name: before(name) for name in CALLS})


def _judge(left: dict[str, bytes], found: list[str], when: str) -> None:
    if left.get("old.bin") not in (OLD, NEW):
        found.append(f"{when}: old.bin has {len(left.get('old.bin', b''))} other bytes")
    if left.get("new.bin", NEW) != NEW:
        found.append(f"{when}: new.bin has {len(left['new.bin'])} other bytes")


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

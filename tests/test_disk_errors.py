"""Durable files on real full, limited and read-only disks: the error names file, fact and fix."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polyfuse import durable
from polyfuse.errors import DiskError, RunError

DRAFT = """
import resource, sys
from pathlib import Path
from polyfuse import durable, errors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with durable.draft(Path(sys.argv[1]), {"a": 50_000, "b": 200_000}, key="k") as output:
        print("begun")
        output.write("b", 0, bytes(200_000))
except errors.DiskError as error:
    print(error)
"""
LIMITED = """
import resource, sys
from pathlib import Path
from polyfuse import durable, errors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    durable.write_bytes(Path(sys.argv[1]), bytes(200_000))
except errors.DiskError as error:
    print(error)
"""


def python(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def mounted(folder, options):
    """Mount a memory file system, or skip where this account may not."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.name == "nt" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_size_limit_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    message = python(LIMITED, tmp_path / "a")
    assert f"cannot write '{tmp_path / 'a'}'" in message
    assert "larger than this account or file system allows (200,000 bytes needed" in message
    assert "name another output folder" in message
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_size_limit_is_named_where_space_cannot_be_reserved(tmp_path):
    message = python("import os; del os.posix_fallocate\n" + LIMITED, tmp_path / "a")
    assert "larger than this account or file system allows" in message
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_with_what_is_needed_and_free(tmp_path):
    with mounted(tmp_path, "size=1m"):
        durable.write_bytes(tmp_path / "a", b"old")
        with pytest.raises(DiskError, match=r"disk is full \(2,000,000 bytes needed, .* free\)"):
            durable.write_bytes(tmp_path / "a", bytes(2_000_000))
        assert (tmp_path / "a").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a"]


def test_a_file_size_limit_is_named_before_a_draft_is_begun(tmp_path):
    message = python(DRAFT, tmp_path / "m")
    assert f"cannot write '{tmp_path / 'm'}': the file is larger than this account" in message
    assert "(250,000 bytes needed" in message
    assert "begun" not in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("sizes", [{"": 2_000_000}, {"a": 600_000, "b": 600_000}])
def test_a_draft_that_does_not_fit_is_named_before_it_is_begun(tmp_path, monkeypatch, told, sizes):
    if not told:  # other writers may take the space in between
        monkeypatch.setattr(durable.drafts, "check_space", lambda folder, needed: None)
    needed = f"{sum(sizes.values()):,}"
    with mounted(tmp_path, "size=1m"):
        with (
            pytest.raises(DiskError, match=rf"out': the disk is full \({needed} bytes needed, .*"),
            durable.draft(tmp_path / "out", sizes, key="k"),
        ):
            pytest.fail("the block was entered")
        assert os.listdir(tmp_path) == []
        durable.write_bytes(tmp_path / "a", bytes(900_000))  # the space is free again


def test_a_disk_that_fills_up_while_a_draft_is_written_is_named(tmp_path, monkeypatch):
    def fill(*, keep):
        with durable.draft(tmp_path / "out", {"": 2_000_000}, key="k", keep=keep) as output:
            for start in range(0, 2_000_000, 200_000):
                output.write("", start, bytes(200_000))
                output.claim(start)

    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(durable.drafts, "check_space", lambda folder, needed: None)
    with mounted(tmp_path, "size=1m"):
        with pytest.raises(DiskError, match=r"out': the disk is full \(200,000 bytes needed"):
            fill(keep=False)
        assert os.listdir(tmp_path) == []
        with pytest.raises(
            DiskError, match=r"out': the disk is full \(200,000 bytes needed"
        ) as caught:
            fill(keep=True)
        assert "--resume" in caught.value.__notes__[0]
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path)], check=True)
        with durable.draft(tmp_path / "out", {"": 2_000_000}, key="k", resume=True) as output:
            assert output.claims[:4] == [0, 200_000, 400_000, 600_000]
        assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk_leaves_no_half_folder(tmp_path):
    def fill():
        with durable.new_folder(tmp_path / "m") as folder:
            for i in range(4):
                durable.write_bytes(folder / str(i), bytes(400_000))

    with mounted(tmp_path, "size=1m"):
        with pytest.raises(DiskError, match=r"disk is full.*free some space"):
            fill()
        assert os.listdir(tmp_path) == []
        durable.write_bytes(tmp_path / "a", bytes(900_000))  # the space is free again


def test_a_read_only_file_system_is_named(tmp_path):
    with mounted(tmp_path, "ro"):
        with pytest.raises(DiskError, match="the file system is read-only"):
            durable.write_bytes(tmp_path / "a", b"new")
        with pytest.raises(DiskError, match="the file system is read-only"):
            durable.make_folder(tmp_path / "m")
        with pytest.raises(DiskError, match="the file system is read-only"):
            durable.locked(tmp_path).__enter__()
        with pytest.raises(DiskError, match="the file system is read-only"):
            durable.draft(tmp_path / "a", {"": 1}, key="k").__enter__()


@contextlib.contextmanager
def ordinary_account():
    """Become an account that permissions hold for; root ignores them."""
    if os.name == "nt":
        pytest.skip("Windows knows no such permissions")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)  # another account may not be let into the folders above
    with ordinary_account(), pytest.raises(DiskError, match="cannot write 'a': permission denied"):
        durable.write_bytes(Path("a"), b"new")
    with ordinary_account(), pytest.raises(DiskError, match="permission denied"):
        durable.make_folder(Path("m"))
    with ordinary_account(), pytest.raises(DiskError, match="cannot write 'a': permission denied"):
        durable.draft(Path("a"), {"": 1}, key="k").__enter__()
    with ordinary_account(), pytest.raises(DiskError, match="permission denied"):
        durable.remove(Path("a"))
    tmp_path.chmod(0o755)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "a").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with ordinary_account(), pytest.raises(RunError, match="cannot read 'a': Permission denied"):
        durable.read_bytes(Path("a"))

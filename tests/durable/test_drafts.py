"""Drafts: one appears whole or not at all, and claims only what is on disk."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attempts import ONE, PAIR, failing, interrupted, names, one_draft, read, spying

from polyfuse import durable
from polyfuse.durable.base import draft_names
from polyfuse.errors import DiskError, RunError

# written ----------------------------------------------------------------------------------------


def test_one_file_is_written_in_any_order(tmp_path):
    with durable.draft(tmp_path / "a", ONE, key="k") as output:
        output.write("", 4, bytearray(b"4567"))
        output.write("", 0, memoryview(b"0123"))
        assert (output.claims, output.done) == ([], False)
        assert read(output, "", 2, 4) == b"2345"
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"01234567"
    assert names(tmp_path) == ["a"]


def test_an_old_file_is_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with durable.draft(tmp_path / "a", {"": 3}, key="k") as output:
        output.write("", 0, b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole_with_the_folders_above_it(tmp_path, there):
    target = tmp_path / "x" / "y" / "m"
    if there:
        target.mkdir(parents=True)
    with durable.draft(target, {**PAIR, "empty": 0}, key="k") as output:
        output.write("b", 0, b"4567")
        output.write("a", 0, b"0123")
        assert names(target.parent) == sorted([".m.polyfuse-0-0.tmp", ".m.polyfuse-0-1.tmp"]) + (
            ["m"] if there else []
        )
    assert names(target.parent) == ["m"]
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {
        "a": b"0123",
        "b": b"4567",
        "empty": b"",
    }


def test_what_was_not_written_is_zero(tmp_path):
    with durable.draft(tmp_path / "a", {"": 5}, key="k") as output:
        output.write("", 2, b"x")
    assert (tmp_path / "a").read_bytes() == b"\0\0x\0\0"


def test_any_contiguous_buffer_is_written_as_bytes(tmp_path):
    with durable.draft(tmp_path / "a", ONE, key="k") as output:
        output.write("", 0, np.frombuffer(b"01234567", "u4").reshape(1, 2).data)
        output.write("", 8, np.zeros((0, 3), "f4").data)
        with pytest.raises(TypeError):
            output.write("", 0, np.zeros(8, "u1")[::2].data)
    assert (tmp_path / "a").read_bytes() == b"01234567"


def test_short_writes_and_reads_are_continued(tmp_path, monkeypatch):
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:3]), at))
    with durable.draft(tmp_path / "a", ONE, key="k") as output:
        monkeypatch.setattr(os, "preadv", lambda fd, rest, at: preadv(fd, [rest[0][:3]], at))
        output.write("", 0, b"01234567")
        assert read(output, "", 0, 8) == b"01234567"
    assert (tmp_path / "a").read_bytes() == b"01234567"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (8, 1), (0, 9), (7, 2)])
def test_nothing_is_written_or_read_outside_a_file(tmp_path, offset, size):
    with durable.draft(tmp_path / "a", ONE, key="k") as output:
        with pytest.raises(ValueError, match="of '', which has 8"):
            output.write("", offset, bytes(size))
        with pytest.raises(ValueError, match="of '', which has 8"):
            read(output, "", offset, size)
    assert (tmp_path / "a").stat().st_size == 8


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../a", "/a", "a/", ""])
def test_names_that_are_paths_are_refused(tmp_path, name):
    with (
        pytest.raises(ValueError, match="not the name of a file"),
        durable.draft(tmp_path / "m", {"a": 1, name: 1}, key="k"),
    ):
        pass
    assert names(tmp_path) == []


def test_a_draft_has_the_permissions_that_the_account_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        with durable.draft(tmp_path / "m", PAIR, key="k"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "m" / "a").stat().st_mode) == 0o640


def test_threads_write_and_claim_together(tmp_path):
    data = bytes(range(250)) * 40

    def step(output, start):
        output.write("", start, data[start : start + 100])
        output.claim(start)

    with durable.draft(tmp_path / "a", {"": 10_000}, key="k", keep=True) as output:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda start: step(output, start), range(0, 10_000, 100)))
        journal = draft_names(tmp_path / "a")[1].read_bytes()
    assert (tmp_path / "a").read_bytes() == data
    assert journal.count(b"\n") == 101


# order ------------------------------------------------------------------------------------------


def test_a_claim_syncs_what_was_written_then_writes_the_journal(tmp_path, monkeypatch):
    with durable.draft(tmp_path / "m", PAIR, key="k") as output:
        seen = spying(monkeypatch, "pwrite", "fdatasync", "fsync", "ftruncate")
        output.write("a", 0, b"1")
        output.write("a", 1, b"1")
        output.claim(1)
        assert seen == ["pwrite", "pwrite", "fdatasync", "ftruncate", "pwrite", "fdatasync"]
        seen.clear()
        output.claim(2)  # nothing was written since
        assert seen == ["ftruncate", "pwrite", "fdatasync"]
        seen.clear()
        output.write("a", 0, b"1")
        output.write("b", 0, b"1")
        output.claim(3)
        assert seen == ["pwrite"] * 2 + ["fdatasync"] * 2 + ["ftruncate", "pwrite", "fdatasync"]


def test_a_system_without_fdatasync_syncs_all_the_same(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "fdatasync")
    with durable.draft(tmp_path / "a", ONE, key="k") as output:
        seen = spying(monkeypatch, "fsync", "pwrite")
        output.write("", 0, b"1")
        output.claim(1)
        assert seen == ["pwrite", "fsync", "pwrite", "fsync"]


# failing ----------------------------------------------------------------------------------------


CALLS = ["ftruncate", "posix_fallocate", "pwrite", "fdatasync", "fsync", "replace"]


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_failure_keeps_the_old_version_and_leaves_nothing(tmp_path, monkeypatch, call, after):
    (tmp_path / "a").write_bytes(b"old")
    before = len(os.listdir("/dev/fd"))
    failing(monkeypatch, call, after=after)
    if after and call in ("posix_fallocate", "replace"):  # there is one only
        one_draft(tmp_path / "a")
    else:
        with pytest.raises(DiskError, match=r"cannot write '.*/a': the disk reports an input"):
            one_draft(tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]
    assert len(os.listdir("/dev/fd")) == before


def test_a_failed_sync_is_final(tmp_path, monkeypatch):
    seen = []

    def claim(output):
        with pytest.raises(DiskError, match="input/output error"):
            output.claim(1)

    def attempt():
        with durable.draft(tmp_path / "a", ONE, key="k") as output:
            output.write("", 0, b"0123")
            failing(monkeypatch, "fdatasync")
            claim(output)
            monkeypatch.undo()
            seen.append(spying(monkeypatch, "fdatasync", "fsync", "replace", "pwrite"))
            claim(output)

    with pytest.raises(DiskError, match="input/output error"):
        attempt()
    assert seen == [[]]
    assert names(tmp_path) == []


def test_a_failed_write_names_the_file_in_the_folder(tmp_path, monkeypatch):
    def attempt():
        with durable.draft(tmp_path / "m", PAIR, key="k") as output:
            failing(monkeypatch, "pwrite")
            output.write("b", 0, b"1")

    with pytest.raises(DiskError, match=r"cannot write '.*/m/b'"):
        attempt()
    assert names(tmp_path) == []


@pytest.mark.parametrize("sizes", [ONE, PAIR])
@pytest.mark.parametrize("kind", [ValueError, RunError, DiskError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("claims", [0, 1])
@pytest.mark.parametrize("keep", [False, True])
def test_what_is_kept_of_a_draft_that_was_stopped(tmp_path, sizes, kind, claims, keep):
    error = interrupted(tmp_path / "out", sizes, kind, claims, keep=keep)
    kept = claims > 0 and (keep or kind in (KeyboardInterrupt, SystemExit))
    assert names(tmp_path) == [p.name for p in draft_names(tmp_path / "out") if kept]
    notes = " ".join(getattr(error, "__notes__", []))
    assert ("type the same command with --resume to go on" in notes) == kept


def test_an_error_of_the_block_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(OSError, match="mine"), durable.draft(tmp_path / "a", ONE, key="k"):
        raise FileNotFoundError("mine")


# targets ----------------------------------------------------------------------------------------


def fill(path):
    path.mkdir()
    (path / "mine").write_bytes(b"1")


TARGETS = {
    "a full folder": (PAIR, fill, "is not empty; remove it, or name another output folder"),
    "a file": (PAIR, Path.touch, "is not a folder; name another output folder"),
    "a link to a folder": (PAIR, lambda p: p.symlink_to("."), "is not a folder"),
    "a link to nothing": (PAIR, lambda p: p.symlink_to("nothing"), "is not a folder"),
    "a folder": (ONE, fill, "is not a regular file; name another output file"),
    "a device": (ONE, lambda p: p.symlink_to("/dev/null"), "is not a regular file"),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("sizes", "make", "message"), TARGETS.values(), ids=TARGETS)
def test_a_target_in_the_way_is_refused_before_any_work(tmp_path, sizes, make, message, resume):
    make(tmp_path / "out")
    with (
        pytest.raises(RunError, match=f"out' {message}"),
        durable.draft(tmp_path / "out", sizes, key="k", resume=resume),
    ):
        pytest.fail("the block was entered")
    assert names(tmp_path) == ["out"]


def test_a_folder_that_appeared_meanwhile_stays(tmp_path):
    with (
        pytest.raises(RunError, match="is not empty"),
        durable.draft(tmp_path / "m", PAIR, key="k"),
    ):
        fill(tmp_path / "m")
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["mine"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with (
        pytest.raises(DiskError, match="a part of the path is a file"),
        durable.draft(tmp_path / "a" / "b", ONE, key="k"),
    ):
        pass


@pytest.mark.parametrize("which", [0, 1])
def test_a_folder_in_the_way_of_a_temporary_name_is_told(tmp_path, which):
    place = draft_names(tmp_path / "a")[which]
    (place / "deep" / "deeper").mkdir(parents=True)
    with (
        pytest.raises(DiskError, match=r"cannot write '.*/a'"),
        durable.draft(tmp_path / "a", ONE, key="k"),
    ):
        pass

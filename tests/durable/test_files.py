"""Durable files: whole or not at all, the old version kept, no leftovers, errors that help."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import durable
from polyfuse.errors import DiskError, RunError

documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_at(monkeypatch, call):
    """Let one system call fail as a failing disk does."""

    def refuse(*given, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, refuse)


def test_buffers_are_written_one_after_the_other(tmp_path):
    durable.write_bytes(tmp_path / "a", b"one", bytearray(b"two"), memoryview(b"three"), b"")
    assert (tmp_path / "a").read_bytes() == b"onetwothree"
    assert names(tmp_path) == ["a"]


def test_buffers_of_wider_items_are_written_as_bytes(tmp_path):
    durable.write_bytes(tmp_path / "a", memoryview(b"12345678").cast("I"))
    assert (tmp_path / "a").read_bytes() == b"12345678"


def test_nothing_is_a_file_too(tmp_path):
    durable.write_bytes(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b""


def test_writing_again_replaces(tmp_path):
    durable.write_bytes(tmp_path / "a", b"a longer old version")
    durable.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_a_new_file_has_the_permissions_that_the_account_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        durable.write_bytes(tmp_path / "a", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[:3])))
    durable.write_bytes(tmp_path / "a", b"0123456789", b"abc")
    assert (tmp_path / "a").read_bytes() == b"0123456789abc"


def test_a_file_is_synced_then_renamed_then_its_folder_synced(tmp_path, monkeypatch):
    seen = []
    for call in ("posix_fallocate", "write", "fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(
            os, call, lambda *given, call=call, real=real: (seen.append(call), real(*given))[1]
        )
    durable.write_bytes(tmp_path / "a", b"1")
    assert seen == ["posix_fallocate", "write", "fsync", "replace", "fsync"]


@pytest.mark.parametrize("call", ["posix_fallocate", "write", "fsync", "replace"])
def test_a_failure_keeps_the_old_version_and_leaves_nothing(tmp_path, monkeypatch, call):
    durable.write_bytes(tmp_path / "a", b"old")
    fail_at(monkeypatch, call)
    with pytest.raises(DiskError, match=r"cannot write '.*a'.*input/output error.*check the disk"):
        durable.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_a_failed_first_commit_leaves_nothing(tmp_path, monkeypatch, call):
    fail_at(monkeypatch, call)
    with pytest.raises(DiskError):
        durable.write_bytes(tmp_path / "a", b"new", new=True)
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        durable.write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == []


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(*given):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    durable.write_bytes(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_new_refuses_what_exists(tmp_path):
    durable.write_bytes(tmp_path / "a", b"first", new=True)
    with pytest.raises(FileExistsError):
        durable.write_bytes(tmp_path / "a", b"second", new=True)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DiskError, match=r"cannot write '.*missing/a'.*No such file"):
        durable.write_bytes(tmp_path / "missing" / "a", b"1")


@given(documents)
def test_json_reads_back(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "a.json"
    durable.write_json(path, document)
    assert durable.read_json(path) == document


def test_json_has_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        durable.write_json(tmp_path / name, {"b": [1, 0.5], "a": "é"})
    expected = '{\n "b": [\n  1,\n  0.5\n ],\n "a": "é"\n}\n'.encode()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == expected


def test_json_without_a_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        durable.write_json(tmp_path / "a", {"a": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe\xfd", b'{"a": "\xe9"}', b"[" * 100_000, b"9" * 10_000, b"<html>"],
    ids=["empty", "cut", "no text", "latin 1", "deep", "long number", "html"],
)
def test_what_is_not_json_is_refused(tmp_path, raw):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(RunError, match=r"a\.json' is not JSON .*restore it"):
        durable.read_json(tmp_path / "a.json")


def test_json_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(durable.JSON_LIMIT + 1)
    with pytest.raises(RunError, match="16,777,217 bytes; at most 16,777,216 are read"):
        durable.read_json(tmp_path / "a.json")


def test_the_limit_itself_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert durable.read_bytes(tmp_path / "a", limit=5) == b"12345"
    with pytest.raises(RunError, match="at most 4"):
        durable.read_bytes(tmp_path / "a", limit=4)


def make_fifo(path):
    os.mkfifo(path)


def make_link_to(target):
    return lambda path: path.symlink_to(target)


NO_FILES = {
    "fifo": (make_fifo, "is not a regular file"),
    "folder": (Path.mkdir, "is not a regular file"),
    "endless device": (make_link_to("/dev/zero"), "is not a regular file"),
    "link to a folder": (make_link_to("/"), "is not a regular file"),
    "link to nothing": (make_link_to("/no/such/file"), "No such file"),
    "link to itself": (make_link_to("a"), "symbolic links"),
    "missing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize(("make", "fact"), NO_FILES.values(), ids=NO_FILES)
def test_only_regular_files_are_read(tmp_path, make, fact):
    make(tmp_path / "a")
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(RunError, match=rf"a'.*{fact}"):
        durable.read_bytes(tmp_path / "a")
    assert len(os.listdir("/dev/fd")) == before  # no descriptor stays open


def test_an_error_shows_hostile_names_harmlessly(tmp_path):
    with pytest.raises(RunError, match=r"\\x1b\[31m"):
        durable.read_bytes(tmp_path / "\x1b[31mred")


def test_temporary_names_are_hidden_and_never_the_same():
    made = {durable.temporary_name("a") for _ in range(100)}
    assert len(made) == 100
    assert all(name.startswith(".a.polyfuse-") and name.endswith(".tmp") for name in made)

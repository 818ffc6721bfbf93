"""Hashes of files: right, made once, never of a file that changed, and never of a FIFO."""

import hashlib
import os
import subprocess
import sys
import warnings

import pytest

from polyfuse import digests as module
from polyfuse.digests import Digests
from polyfuse.errors import CheckpointError


@pytest.mark.parametrize("size", [0, 1, module._HASHED - 1, module._HASHED, 2 * module._HASHED + 3])
def test_sha256_is_hashlib_s(tmp_path, size):
    raw = os.urandom(size)
    (tmp_path / "a").write_bytes(raw)
    with Digests(2) as digests:
        assert digests.sha256(tmp_path / "a") == hashlib.sha256(raw).hexdigest()


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")
    with Digests() as digests:
        digests.begin([tmp_path / "a", tmp_path / "a"])
        first = digests.sha256(tmp_path / "a")
        assert len(digests._begun) == 1
        (tmp_path / "a").write_bytes(b"other")
        assert digests.sha256(tmp_path / "a") == hashlib.sha256(b"other").hexdigest() != first


def test_what_is_no_file_is_told_when_asked_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with Digests() as digests:
        digests.begin([tmp_path / "none", tmp_path / "fifo", tmp_path])
        for path in (tmp_path / "none", tmp_path / "fifo", tmp_path):
            with pytest.raises(CheckpointError, match="no regular file"):
                digests.sha256(path)


APART = """
import sys, threading
from pathlib import Path
from polyfuse.digests import Digests
paths = [Path(text) for text in sys.argv[1:]]
with Digests() as digests:
    digests.begin_apart(paths)
    print(digests._apart is not None)
    for path in paths:
        try:
            print(digests.sha256(path))
        except Exception as error:
            print(type(error).__name__)
"""


def apart(*paths):
    done = subprocess.run([sys.executable, "-c", APART, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="it forks on Linux only")
def test_a_process_apart_gives_the_same_hashes(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(os.urandom(3_000_000))
    paths = [tmp_path / name for name in ("a", "b", "none", "c")]
    forked, *found = apart(*paths)
    expected = [hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in "abc"]
    assert forked == "True"
    assert found == [*expected[:2], "CheckpointError", expected[2]]


def test_where_a_fork_is_not_safe_threads_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    with Digests() as digests:
        digests.begin_apart([tmp_path / "a"])  # torch is loaded here
        assert digests._apart is None
        assert digests.sha256(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="it forks on Linux only")
def test_hashes_of_a_process_that_died_are_made_here(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")
    monkeypatch.setattr(module, "_may_fork", lambda: True)
    monkeypatch.setattr(module, "_hash_apart", lambda paths, claims, say: os._exit(1))
    with Digests() as digests, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: threads and a fork
        digests.begin_apart([tmp_path / "a"])
        assert digests.sha256(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="it forks on Linux only")
def test_who_waits_hashes_what_the_other_process_has_not_come_to(tmp_path, monkeypatch):
    first_only = module._hash_apart
    monkeypatch.setattr(module, "_may_fork", lambda: True)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    released, release = os.pipe()

    def stuck(paths, claims, say):
        claims[0] = module._THEIRS
        os.read(released, 1)
        first_only(paths[:1], bytearray(1), say)

    monkeypatch.setattr(module, "_hash_apart", stuck)
    with Digests() as digests, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        digests.begin_apart(paths)
        for path in paths[1:]:
            assert digests.sha256(path) == hashlib.sha256(path.name.encode()).hexdigest()
        os.write(release, b"x")
        assert digests.sha256(paths[0]) == hashlib.sha256(b"a").hexdigest()
    os.close(released)
    os.close(release)

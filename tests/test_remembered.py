"""Hashes that are remembered: used again for the same file only, and never in anyone's way."""

import hashlib
import json
import os
import time

import pytest

from polyfuse.digests import Digests
from polyfuse.remembered import Remembered, cache_file


def old(path, content=b"weights"):
    """Write a file that nobody has touched for a while, as far as the clock that we ask tells."""
    path.write_bytes(content)
    return path


@pytest.fixture
def later(monkeypatch):
    """Let a minute pass for everything that is begun from now on."""
    now = time.time
    monkeypatch.setattr("polyfuse.remembered.time.time", lambda: now() + 60)


def hashed(path, cache):
    with Digests(remembered=Remembered(cache)) as digests:
        return digests.sha256(path)


def spoil(cache):
    """Replace every hash that is kept by another one, so that its use shows."""
    document = json.loads(cache.read_text())
    document["digests"] = dict.fromkeys(document["digests"], "f" * 64)
    cache.write_text(json.dumps(document))


def test_a_file_that_did_not_change_is_not_hashed_again(tmp_path, later):
    file, cache = old(tmp_path / "a.pt"), tmp_path / "cache" / "digests.json"
    assert hashed(file, cache) == hashlib.sha256(b"weights").hexdigest()
    spoil(cache)
    assert hashed(file, cache) == "f" * 64


@pytest.mark.parametrize("change", ["content", "times set back", "replaced", "touched", "renamed"])
def test_a_file_that_was_changed_in_any_way_is(tmp_path, later, change):
    file, cache = old(tmp_path / "a.pt"), tmp_path / "cache" / "digests.json"
    hashed(file, cache)
    spoil(cache)
    facts = file.stat()
    if change == "content":
        file.write_bytes(b"weighty")
    elif change == "times set back":  # the time of status change cannot be
        file.write_bytes(b"weighty")
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif change == "replaced":
        old(tmp_path / "b.pt")
        os.replace(tmp_path / "b.pt", file)
    elif change == "touched":
        os.utime(file)
    else:
        file = file.rename(tmp_path / "c.pt")
    assert hashed(file, cache) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    cache = tmp_path / "cache" / "digests.json"
    hashed(old(tmp_path / "a.pt"), cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"schema": 9}', '{"schema": 1, "digests": {"a": 1}}']
)
def test_a_damaged_cache_is_as_good_as_none(tmp_path, later, damage):
    cache = tmp_path / "digests.json"
    cache.write_text(damage)
    assert hashed(old(tmp_path / "a.pt"), cache) == hashlib.sha256(b"weights").hexdigest()
    assert len(json.loads(cache.read_text())["digests"]) == 1


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, later):
    (tmp_path / "taken").write_text("a file, where a folder is needed")
    cache = tmp_path / "taken" / "digests.json"
    assert hashed(old(tmp_path / "a.pt"), cache) == hashlib.sha256(b"weights").hexdigest()


def test_two_at_once_keep_both(tmp_path, later):
    cache = tmp_path / "digests.json"
    one, two = (Digests(remembered=Remembered(cache)) for _ in range(2))
    for digests, name in ((one, "a.pt"), (two, "b.pt")):
        digests.sha256(old(tmp_path / name))
    one.close()
    two.close()
    assert len(json.loads(cache.read_text())["digests"]) == 2


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYFUSE_CACHE", "off")
    assert cache_file() is None
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path))
    assert cache_file() == tmp_path / "digests.json"
    monkeypatch.delenv("POLYFUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "polyfuse" / "digests.json"

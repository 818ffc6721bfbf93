"""Hashes of files: right, made once, never of a file that changed, and never of a FIFO."""

import hashlib
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import digests as module
from polyfuse.digests import PIECE, Digests, crc32
from polyfuse.errors import CheckpointError


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, 2 * PIECE + 3])
def test_sha256_is_hashlib_s(tmp_path, size):
    raw = os.urandom(size)
    (tmp_path / "a").write_bytes(raw)
    with Digests(2) as digests:
        assert digests.sha256(tmp_path / "a") == hashlib.sha256(raw).hexdigest()


@given(st.binary(max_size=100), st.integers(0, 20), st.integers(0, 50))
def test_crc32_is_zlib_s(raw, start, length):
    part = raw[start : start + length]
    found = crc32(lambda offset, count: raw[offset : offset + count], start, len(part))
    assert found == zlib.crc32(part)


def test_a_crc_over_several_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 7)
    raw = os.urandom(100)
    assert crc32(lambda offset, count: raw[offset : offset + count], 3, 90) == zlib.crc32(raw[3:93])


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

"""CRC-32: of a stretch that is read, and of pieces that passed by; zlib is the reference."""

import itertools
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import checksums
from polyfuse.checkpoints.base import File
from polyfuse.checksums import Passing, crc32, joined
from polyfuse.errors import CheckpointError
from polyfuse.streaming import execution, outputs
from polyfuse.weights import average


def reader(raw):
    """Return what fills a buffer with a part of these bytes."""

    def read_into(offset, buffer):
        buffer[:] = raw[offset : offset + len(buffer)]

    return read_into


@given(st.binary(max_size=100), st.integers(0, 20), st.integers(0, 50))
def test_crc32_is_zlib_s(raw, start, length):
    part = raw[start : start + length]
    assert crc32(reader(raw), start, len(part)) == zlib.crc32(part)


def test_a_crc_over_several_pieces(monkeypatch):
    monkeypatch.setattr(checksums, "PIECE", 7)
    raw = os.urandom(100)
    assert crc32(reader(raw), 3, 90) == zlib.crc32(raw[3:93])


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_stretches_are_joined(a, b):
    assert joined(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


@pytest.mark.parametrize("length", [1, 2**20 - 1, 2**26 + 3])
def test_long_stretches_are_joined(length):
    before, zeros = zlib.crc32(b"polyfuse"), bytes(length)
    assert joined(before, zlib.crc32(zeros), length) == zlib.crc32(zeros, before)


@given(st.integers(0, 2**42), st.integers(0, 2**42), *[st.integers(0, 2**32 - 1)] * 3)
def test_it_does_not_matter_what_is_joined_first(second, third, a, b, c):
    left = joined(joined(a, b, second), c, third)
    assert left == joined(a, joined(b, c, third), second + third)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_pieces_in_any_order_give_the_crc_of_all(raw, cuts, random):
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = list(itertools.pairwise(places))
    random.shuffle(pieces)
    passing = Passing()
    for start, stop in pieces:
        passing.note(start, raw[start:stop])
    assert passing.crc32(0, len(raw)) == zlib.crc32(raw)


@pytest.mark.parametrize("noted", [[], [(0, 4)], [(0, 4), (5, 9)], [(1, 9)], [(0, 10)], [(0, 0)]])
def test_pieces_that_do_not_lie_end_to_end_are_no_crc(noted):
    passing = Passing()
    for start, stop in noted:
        passing.note(start, b"0123456789"[start:stop])
    assert passing.crc32(0, 9) is None


def test_notes_of_many_threads():
    raw, passing = os.urandom(64_000), Passing()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda at: passing.note(at, raw[at : at + 64]), range(0, 64_000, 64)))
    assert passing.crc32(0, 64_000) == zlib.crc32(raw)


def saved(folder, count=3, **more):
    """Save state dicts that hold a tensor of several chunks, a view and a strided tensor."""
    draw = torch.Generator().manual_seed(0)
    paths = []
    for number in range(count):
        base = torch.randn(300, 1100, generator=draw)
        state = {"w": base, "part": base[:7], "turned": base.T, "b": torch.randn(3), **more}
        paths.append(folder / f"{number}.pt")
        torch.save(state, paths[-1])
    return paths


def test_an_average_reads_no_byte_twice(tmp_path, monkeypatch):
    torch.save({"w": torch.randn(2_100_000), "b": torch.ones(3)}, tmp_path / "0.pt")
    torch.save({"w": torch.randn(2_100_000), "b": torch.ones(3)}, tmp_path / "1.pt")
    for module in (execution, outputs):
        monkeypatch.setattr(module, "crc32", lambda *stretch: pytest.fail(f"read again {stretch}"))
    average([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "out.pt")
    torch.load(tmp_path / "out.pt", weights_only=True)  # its reader checks the CRCs


def test_views_are_checked_too(tmp_path):
    paths = saved(tmp_path)
    average(paths, tmp_path / "out.pt")
    made = torch.load(tmp_path / "out.pt", weights_only=True)
    states = [torch.load(path, weights_only=True) for path in paths]
    for name, tensor in made.items():
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        assert torch.equal(tensor, mean.float())


@pytest.mark.parametrize("exclude", [(), ("w",), ("w", "part", "turned")])
def test_a_changed_byte_is_found_wherever_it_is(tmp_path, exclude):
    paths = saved(tmp_path)
    raw = bytearray(paths[1].read_bytes())
    raw[len(raw) // 2] ^= 1
    paths[1].write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged: the CRC-32 of"):
        average(paths, tmp_path / "out.pt", exclude=exclude)
    assert not (tmp_path / "out.pt").exists()


def test_a_file_notes_what_is_read_where_it_is_asked_to(tmp_path):
    (tmp_path / "a").write_bytes(b"123456789")
    file = File(tmp_path / "a")
    file.read(0, 4)
    file.passing = Passing()
    file.read(0, 9)
    assert file.passing.crc32(0, 9) == 0xCBF43926

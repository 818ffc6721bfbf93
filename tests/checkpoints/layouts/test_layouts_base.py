"""Shards, sizes as people type them, and folders of files."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.checkpoints.base import Checksum, Layout, Slot
from polyfuse.checkpoints.layouts import base
from polyfuse.checkpoints.layouts.base import Contents, Folder, folder_beside, in_shards, parse_size
from polyfuse.errors import CheckpointError


def slots(*sizes):
    return [Slot(str(i), torch.uint8, (size,)) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 15))
def test_shards_hold_every_tensor_once_and_keep_to_the_limit(sizes, limit):
    shards = in_shards(slots(*sizes), limit)
    assert sorted(slot.name for shard in shards for slot in shard) == sorted(
        map(str, range(len(sizes)))
    )
    assert len(shards) == 1 or all(shards)
    for shard in shards:
        assert len(shard) == 1 or sum(slot.nbytes for slot in shard) <= limit
        assert shard == sorted(shard, key=lambda slot: int(slot.name))


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ((), 5, [[]]),
        ((5, 5), 5, [[5], [5]]),
        ((2, 3, 1), 5, [[2, 3], [1]]),
        ((1, 9, 1), 5, [[9], [1, 1]]),
        ((9, 9), 5, [[9], [9]]),
        ((3, 4, 0), 100, [[3, 4, 0]]),
        ((3, 4), None, [[3, 4]]),
    ],
)
def test_shards_by_hand(sizes, limit, expected):
    assert [[s.nbytes for s in shard] for shard in in_shards(slots(*sizes), limit)] == expected


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "0", "0.1", "1e9", "5 gigs", "1i", "1ib", "5PB", "٥GB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(CheckpointError, match="is no size of a file; type one like 5GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1kb", 1000), ("1KiB", 1024), ("2 T", 2 * 10**12), ("1b", 1), ("0.5GiB", 1 << 29), (9, 9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_a_layout_in_a_window_moves_with_all_it_has():
    one = Layout({"": 9}, [("", 1, b"a")], {"w": ("", 2)}, [Checksum("", 2, 4, (0, 8))])
    folder = Folder()
    folder.add_bytes("f", b"12345")
    assert folder.add("f", one) == (5, 9)
    assert folder.layout() == Layout(
        {"f": 14},
        [("f", 0, b"12345"), ("f", 6, b"a")],
        {"w": ("f", 7)},
        [Checksum("f", 7, 4, (5, 13))],
    )


def test_side_files_of_our_own_names_are_left_out():
    sides = [("config.json", b"{}"), ("polyfuse.json", b"old"), ("index", b"old")]
    folder = folder_beside(Contents([], {}, {"polyfuse": "new"}, None, sides), ["index"])
    assert folder.parts == [("config.json", 0, b"{}"), ("polyfuse.json", 0, b"new")]


def test_side_files_that_are_paths_or_too_large_are_refused(monkeypatch):
    with pytest.raises(CheckpointError, match=r"no file names: \['\.\./a', 'b/c'\]"):
        folder_beside(Contents([], {}, {}, None, [("../a", b""), ("b/c", b"")]), [])
    monkeypatch.setattr(base, "SIDE_LIMIT", 10)
    with pytest.raises(CheckpointError, match=r"have 11 bytes, at most 10 .* 'big' with 8"):
        folder_beside(Contents([], {}, {}, None, [("a", b"123"), ("big", b"12345678")]), [])


def test_only_the_first_faults_are_named():
    with pytest.raises(CheckpointError, match=r"hold 12 tensors: 0, 1, .* 9, \.\.\.; do so"):
        base.refuse_unwritable("it", map(str, range(12)), "do so")

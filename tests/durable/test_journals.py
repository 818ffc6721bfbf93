"""Journals: what was appended reads back; a torn or damaged line ends it, what is before counts."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.durable.base import JSON_LIMIT
from polyfuse.durable.journals import Journal

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(tmp_path / "journal", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def filled(descriptor, *values):
    os.ftruncate(descriptor, 0)
    journal = Journal(descriptor)
    for value in values:
        journal.append(value)
    return os.pread(descriptor, 10_000, 0)


def holding(descriptor, raw):
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, raw, 0)
    return Journal(descriptor)


@given(st.lists(documents, max_size=4))
def test_what_was_appended_reads_back(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "journal"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    raw = filled(descriptor, *values)
    assert Journal(descriptor).values == values
    assert filled(descriptor, *Journal(descriptor).values) == raw  # one way to write it
    os.close(descriptor)


def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(file):
    values = ["key", {"chunk": 1}, [2, "three"]]
    raw = filled(file, *values)
    for size in range(len(raw)):
        whole = raw[:size].count(b"\n")
        journal = holding(file, raw[:size])
        assert journal.values == values[:whole]
        journal.append("next")
        assert Journal(file).values == [*values[:whole], "next"]


def test_a_bit_flipped_anywhere_ends_the_journal_there(file):
    values = ["key", {"chunk": 1}, [2, "three"]]
    raw = filled(file, *values)
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        line = raw[: bit // 8].count(b"\n")
        assert holding(file, damaged).values == values[:line]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 100,
        b"\xff\xfe{}\n",
        b"[" * 100_000 + b"\n",
        b"9" * 10_000 + b"\n",
        b"[]\n",
        b"3\n",
        b"{}\n",
        b'{"value":1}\n',
        b'{"crc":0,"value":1}\n',
        b'{"crc": 2212294583, "value": 1}\n',
        b'{"crc":0,"value":NaN}\n',
    ],
)
def test_garbage_ends_the_journal(file, garbage):
    raw = filled(file, 1)
    assert b"2212294583" in raw
    assert holding(file, raw + garbage + raw).values == [1]
    assert holding(file, garbage + raw).values == []


def test_at_most_16_mb_are_read(file):
    raw = filled(file, 1)
    os.ftruncate(file, JSON_LIMIT + 100)
    os.pwrite(file, raw, JSON_LIMIT - 1)
    assert Journal(file).values == [1]


def test_a_claim_that_is_not_json_is_not_written(file):
    raw = filled(file, 1)
    for value in (float("nan"), {1, 2}, b"bytes"):
        with pytest.raises((ValueError, TypeError)):
            Journal(file).append(value)
    assert os.pread(file, 1000, 0) == raw


def test_starting_again_takes_all_claims_back(file):
    filled(file, 1, 2)
    journal = Journal(file)
    journal.restart()
    assert (journal.values, Journal(file).values) == ([], [])
    journal.append(3)
    assert (journal.values, Journal(file).values) == ([3], [3])

"""Corrections: forbidden patterns, a lexicon, and the list of what changed."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from polyfuse.errors import DataError
from polyfuse.sequences import (
    Change,
    best_strings,
    changes,
    decode,
    encode,
    forbid,
    joint_decode,
    lexicon,
    matches,
    strings,
)

BLANK = 10
seeds = st.integers(0, 2**32 - 1)


def some(seed, rows=5, positions=3, classes=11, spread=1.5):
    rng = np.random.default_rng(seed)
    heads = special.log_softmax(rng.normal(0, spread, (rows, positions, classes)), -1)
    return heads, rng.normal(0, 1, (rows, positions + 1))


@given(seeds)
def test_the_best_string_that_is_allowed_is_taken(seed):
    heads, lengths = some(seed, classes=4)
    read = joint_decode(heads, lengths, blank=3)
    got = forbid(read, heads, ["0?*", ""], blank=3, lengths=lengths)
    everything = best_strings(heads, 1000, blank=3, lengths=lengths)[0]
    for row, own, every in zip(got, read, everything, strict=True):
        allowed = [t for t in strings(every, blank=3) if t and not re.fullmatch("0.+", t)]
        assert strings(row[None], blank=3) == allowed[:1]
        if not re.fullmatch("0.+|", strings(own[None], blank=3)[0]):
            np.testing.assert_array_equal(row, own)


def test_nothing_forbidden_changes_nothing():
    heads, _ = some(0)
    read = decode(heads, blank=BLANK)
    np.testing.assert_array_equal(forbid(read, heads, [], blank=BLANK), read)
    np.testing.assert_array_equal(forbid(read, heads, ["x*"], blank=BLANK), read)


def test_what_leaves_no_string_keeps_the_one_that_was_read():
    heads, _ = some(0, classes=3, positions=2)
    read = decode(heads, blank=2)
    np.testing.assert_array_equal(forbid(read, heads, ["*"], blank=2), read)


def test_an_allowed_string_far_down_the_list_is_found():
    heads = np.log(np.full((1, 4, 11), [0.5, *[0.05] * 10]))
    read = joint_decode(heads, blank=BLANK)
    got = forbid(read, heads, ["", "*0*", "[1-8]*"], blank=BLANK)
    assert re.fullmatch("9[1-9]*", strings(got, blank=BLANK)[0])


def test_patterns_speak_of_the_written_string_in_its_alphabet():
    heads = np.log(np.where(np.eye(3)[[[0, 1]]], 0.8, 0.1))
    read = decode(heads, blank=2)
    assert strings(forbid(read, heads, ["ab"], blank=2, alphabet="ab"), blank=2, alphabet="ab") != [
        "ab"
    ]
    np.testing.assert_array_equal(forbid(read, heads, ["AB"], blank=2, alphabet="ab"), read)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("0?*", ["07", "007"], ["0", "70", ""]),
        ("", [""], ["0"]),
        ("[02]5", ["05", "25"], ["15", "005"]),
        ("[!1-9]*", ["0", "05", "a"], ["1", ""]),
        ("a.c", ["a.c"], ["abc"]),
        ("a[*]", ["a*"], ["ab"]),
    ],
)
def test_patterns(pattern, yes, no):
    assert matches(yes, [pattern]).all()
    assert not matches(no, [pattern]).any()


def test_a_pattern_cannot_be_made_to_search_for_ever():
    # (a+)+b as an expression would double its time with each character.
    pattern = "*a" * 40 + "b"
    assert not matches(["a" * 60], [pattern]).any()


@pytest.mark.parametrize("pattern", [7, None, "?" * 101])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(DataError, match="is no pattern"):
        matches(["1"], [pattern])


@given(seeds, st.floats(0.01, 5))
def test_a_word_is_taken_where_it_scores_more_than_what_was_read(seed, strength):
    heads, lengths = some(seed, rows=6)
    words = encode(["1", "23", "456", "9", "02"], positions=3)
    read = joint_decode(heads, lengths, blank=BLANK)

    def score(row, label):
        length = next((i for i, c in enumerate(label) if c == BLANK), 3)
        return sum(heads[row, i, c] for i, c in enumerate(label)) + lengths[row, length]

    got = lexicon(read, heads, words, blank=BLANK, strength=strength, lengths=lengths)
    for row, (before, after) in enumerate(zip(read.tolist(), got.tolist(), strict=True)):
        best = max(words.tolist(), key=lambda word: score(row, word))
        wins = score(row, best) + strength > score(row, before)
        assert after == (best if wins and before not in words.tolist() else before)


@given(seeds)
def test_strength_0_changes_nothing_and_infinity_leaves_words_only(seed):
    heads, _ = some(seed)
    read, words = decode(heads, blank=BLANK), encode(["1", "23", "456"])
    np.testing.assert_array_equal(lexicon(read, heads, words, blank=BLANK, strength=0.0), read)
    closed = lexicon(read, heads, words, blank=BLANK)
    assert set(strings(closed, blank=BLANK)) <= {"1", "23", "456"}


def test_a_word_that_was_read_stays():
    heads, _ = some(0)
    read = decode(heads, blank=BLANK)
    np.testing.assert_array_equal(lexicon(read, heads, read, blank=BLANK), read)


def test_many_rows_and_words_are_scored_some_at_a_time_and_alike(monkeypatch):
    heads, lengths = some(3, rows=17)
    words = np.unique(joint_decode(some(4, rows=30)[0], blank=BLANK), axis=0)
    read = decode(heads, blank=BLANK)
    whole = lexicon(read, heads, words, blank=BLANK, lengths=lengths)
    monkeypatch.setattr("polyfuse.sequences.correcting._CELLS", 1)
    np.testing.assert_array_equal(lexicon(read, heads, words, blank=BLANK, lengths=lengths), whole)


def test_every_changed_answer_is_listed_with_before_after_and_why():
    before, after = ["01", "7", "22"], ["91", "7", "2"]
    found = changes(before, after, ["a", "b", "c"], ["leading zero", "none", "joint length"])
    assert found == [
        Change("a", "01", "91", "leading zero"),
        Change("c", "22", "2", "joint length"),
    ]
    assert changes(before, before, ["a", "b", "c"], "nothing") == []
    assert [c.why for c in changes(before, after, ["a", "b", "c"], "prior")] == ["prior", "prior"]
    with pytest.raises(DataError, match="have 3, 3, 1, 3 rows"):
        changes(before, after, ["a"], "prior")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda h, r: forbid(r[:2], h, [], blank=10), "expected \\(5, 3\\) integer classes"),
        (lambda h, r: forbid(r + 11, h, [], blank=10), "do not fit 11 classes"),
        (lambda h, r: forbid(r, np.exp(h), [], blank=10), "no log-probabilities"),
        (lambda h, r: lexicon(r, h, r[:0], blank=10), "got 0 words"),
        (lambda h, r: lexicon(r, h, r, blank=10, strength=-1), "strength=-1"),
        (lambda h, r: lexicon(r, h, r, blank=10, strength=np.nan), "strength=nan"),
        (lambda h, r: lexicon(r, h, encode(["12345"]), blank=10), "expected \\(1, 3\\)"),
        (lambda h, r: lexicon(r, h, r.astype(float), blank=10), "got float64"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    heads, _ = some(0)
    with pytest.raises(DataError, match=said):
        call(heads, decode(heads, blank=BLANK))

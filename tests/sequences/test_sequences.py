"""Strings off heads: decoding, writing, and the vote by whole string."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from polyfuse.errors import DataError
from polyfuse.sequences import SEQUENCE_COMBINERS, decode, string_vote, strings

BLANK = 10
shapes = st.tuples(st.integers(1, 5), st.integers(1, 6))
classes = hnp.arrays(np.int64, shapes, elements=st.integers(0, 10))


def as_logits(read, confidence=0.9):
    """Give `(member, sample, position)` classes logits that say so with this probability."""
    p = np.full((*np.shape(read), 11), (1 - confidence) / 10)
    np.put_along_axis(p, np.asarray(read)[..., None], confidence, -1)
    return np.log(p)


@given(classes)
def test_decode_is_idempotent(labels):
    once = decode(labels, blank=BLANK)
    np.testing.assert_array_equal(decode(once, blank=BLANK), once)


@given(classes)
def test_decode_keeps_what_comes_before_the_first_blank_only(labels):
    for row, read in zip(labels.tolist(), decode(labels, blank=BLANK).tolist(), strict=True):
        kept = list(itertools.takewhile(lambda c: c != BLANK, row))
        assert read == kept + [BLANK] * (len(row) - len(kept))


@given(classes)
def test_decode_reads_logits_as_their_best_classes(labels):
    read = decode(as_logits(labels), blank=BLANK)
    np.testing.assert_array_equal(read, decode(labels, blank=BLANK))


def test_decode_returns_int64_and_leaves_its_input():
    given_labels = np.array([[1, 10, 3]], np.uint8)
    read = decode(given_labels, blank=BLANK)
    assert read.dtype == np.int64
    assert given_labels.tolist() == [[1, 10, 3]]


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 11)])
def test_decode_refuses_other_shapes(shape):
    with pytest.raises(DataError, match="expected"):
        decode(np.zeros(shape), blank=BLANK)
    with pytest.raises(DataError, match="expected"):
        decode(np.zeros((2, 3, 4), int), blank=BLANK)


@given(classes)
def test_strings_spell_the_digits(labels):
    written = strings(labels, blank=BLANK)
    for text, row in zip(written, decode(labels, blank=BLANK), strict=True):
        assert [int(c) for c in text] == [c for c in row.tolist() if c != BLANK]


def test_strings_keep_leading_zeros_and_may_be_empty():
    assert strings(np.array([[0, 0, 7], [10, 1, 2]]), blank=BLANK) == ["007", ""]


@given(classes, classes, st.integers(2, 4))
def test_the_string_of_a_majority_wins(one, other, count):
    shape = np.minimum(one.shape, other.shape)
    one, other = (a[: shape[0], : shape[1]] for a in (one, other))
    sure = [as_logits(other, 0.999)] * (count - 1)
    logits = np.stack([*sure, *[as_logits(one, 0.3)] * count])
    np.testing.assert_array_equal(string_vote(logits), decode(one, blank=BLANK))


def test_a_string_is_voted_on_as_a_whole():
    read = np.array([[[1, 2]], [[1, 3]], [[4, 3]], [[4, 5]], [[4, 5]]])
    assert string_vote(as_logits(read)).tolist() == [[4, 5]]
    assert SEQUENCE_COMBINERS["position_vote"](as_logits(read)).tolist() == [[4, 3]]


def test_confidence_breaks_a_tie():
    logits = np.stack([as_logits([[1, 2]], 0.6), as_logits([[3, 4]], 0.8)])
    assert string_vote(logits).tolist() == [[3, 4]]
    assert string_vote(logits[::-1].copy()).tolist() == [[3, 4]]


def test_the_first_voter_wins_where_confidence_ties():
    logits = as_logits([[[3, 4]], [[1, 2]]])
    assert string_vote(logits).tolist() == [[3, 4]]
    assert string_vote(logits[::-1].copy()).tolist() == [[1, 2]]


def test_positions_after_the_first_blank_claim_nothing():
    unsure = as_logits([[5, 10, 0]], 0.7)
    unsure[0, 2] = 0  # no idea, but the string has ended
    sure = as_logits([[6, 10, 0]], 0.65)
    assert string_vote(np.stack([sure, unsure])).tolist() == [[5, 10, 10]]


def test_the_end_of_a_string_is_part_of_its_claim():
    ends = as_logits([[5, 10]], 0.9)
    ends[0, 1] = as_logits(np.array(10), 0.4)
    goes_on = as_logits([[5, 2]], 0.7)
    assert string_vote(np.stack([ends, goes_on])).tolist() == [[5, 2]]


def voted(logits):
    """Vote by whole string in plain Python."""
    p = special.softmax(logits, -1)
    answer = []
    for s in range(logits.shape[1]):
        votes = {}
        for m in range(len(logits)):
            text = tuple(decode(logits[m, s : s + 1], blank=BLANK)[0].tolist())
            length = min(text.index(BLANK) + 1 if BLANK in text else len(text), len(text))
            sure = np.prod([p[m, s, i, text[i]] for i in range(length)])
            count, support = votes.get(text, (0, 0.0))
            votes[text] = (count + 1, support + sure)
        answer.append(max(votes, key=votes.get))
    return np.array(answer)


@pytest.mark.parametrize("seed", range(5))
def test_string_vote_matches_plain_python(seed):
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 2, (1, 40, 3, 11))
    logits = shared + rng.normal(0, 1.2, (5, 40, 3, 11))
    np.testing.assert_array_equal(string_vote(logits), voted(logits))
    np.testing.assert_array_equal(string_vote(torch.from_numpy(logits)).numpy(), voted(logits))


def test_float64_tensors_keep_their_precision():
    logits = np.stack([as_logits([[1, 2]], 0.6), as_logits([[3, 4]], 0.6 + 1e-12)])
    assert string_vote(torch.from_numpy(logits)).tolist() == [[3, 4]]


def test_another_class_may_be_the_blank():
    logits = np.zeros((1, 1, 3, 4))
    logits[0, 0, [0, 1, 2], [2, 0, 3]] = 5
    assert string_vote(logits, blank=0).tolist() == [[2, 0, 0]]
    assert string_vote(logits).tolist() == [[2, 0, 3]]


@pytest.mark.parametrize("logits", [np.zeros((2, 3, 4)), torch.zeros(2, 3, 4)])
def test_string_vote_needs_positions(logits):
    with pytest.raises(DataError, match="4 or more axes"):
        string_vote(logits)

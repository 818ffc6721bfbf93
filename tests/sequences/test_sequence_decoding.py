"""Joint length decoding and the k best strings, held to a search through all strings."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from polyfuse.errors import DataError
from polyfuse.sequences import (
    DECODERS,
    IMPOSSIBLE,
    best_strings,
    decode,
    drop_blanks,
    encode,
    joint_decode,
    joint_scores,
    lengths_of,
    strings,
)

seeds = st.integers(0, 2**32 - 1)


def some(seed, rows=4, positions=3, classes=4):
    """Return log-probabilities of heads and of lengths."""
    rng = np.random.default_rng(seed)
    heads = special.log_softmax(rng.normal(0, 2, (rows, positions, classes)), -1)
    return heads, special.log_softmax(rng.normal(0, 2, (rows, positions + 1)), -1)


def every_string(positions, classes, blank):
    """Return all strings of all lengths, as labels."""
    characters = [c for c in range(classes) if c != blank]
    return [
        [*text, *[blank] * (positions - length)]
        for length in range(positions + 1)
        for text in itertools.product(characters, repeat=length)
    ]


def score(heads, lengths, label, blank, weight=1.0):
    """Score one string of one sample, as the formula is written."""
    length = label.index(blank) if blank in label else len(label)
    total = weight * lengths[length]
    return total + math.fsum(heads[i][c] for i, c in enumerate(label))


def ranked(heads, lengths, blank, weight=1.0):
    """Return (score, string) of all strings of each sample, the best first."""
    labels = every_string(*heads.shape[1:], blank)
    return [
        sorted(((score(h, n, s, blank, weight), s) for s in labels), key=lambda one: -one[0])
        for h, n in zip(heads.tolist(), lengths.tolist(), strict=True)
    ]


@given(seeds, st.integers(1, 4), st.integers(2, 4), st.integers(0, 3), st.floats(0, 3))
def test_joint_decoding_is_the_search_through_all_strings(seed, positions, classes, blank, weight):
    blank = min(blank, classes - 1)
    heads, lengths = some(seed, 3, positions, classes)
    expected = ranked(heads, lengths, blank, weight)
    read = joint_decode(heads, lengths, blank=blank, length_weight=weight)
    assert read.tolist() == [best[0][1] for best in expected]
    by_length = joint_scores(heads, lengths, blank=blank, length_weight=weight)
    for row, every in zip(by_length, expected, strict=True):
        for length, value in enumerate(row):
            of_it = [s for s, t in every if (t.index(blank) if blank in t else len(t)) == length]
            assert value == pytest.approx(max(of_it), abs=1e-9)


@given(seeds, st.integers(1, 3), st.integers(2, 4), st.integers(1, 90))
def test_the_k_best_are_those_of_the_search_through_all_strings(seed, positions, classes, k):
    heads, lengths = some(seed, 3, positions, classes)
    expected = ranked(heads, lengths, classes - 1)
    read, scores = best_strings(heads, k, blank=-1, lengths=lengths)
    count = min(k, len(every_string(positions, classes, classes - 1)))
    assert read.shape == (3, count, positions)
    for own, sure, every in zip(read.tolist(), scores.tolist(), expected, strict=True):
        assert own == [s for _, s in every[:count]]
        assert sure == pytest.approx([v for v, _ in every[:count]], abs=1e-9)
        assert len(set(map(tuple, own))) == count


def test_many_rows_are_read_some_at_a_time_and_alike(monkeypatch):
    heads, lengths = some(0, rows=23)
    whole = best_strings(heads, 9, blank=3, lengths=lengths)
    monkeypatch.setattr("polyfuse.sequences.decoding._CELLS", 1)
    parts = best_strings(heads, 9, blank=3, lengths=lengths)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert best_strings(heads[:0], 9, blank=3)[0].shape == (0, 9, 3)


@given(seeds)
def test_the_first_of_the_best_is_what_joint_decoding_reads(seed):
    heads, lengths = some(seed, 6, 5, 11)
    read = best_strings(heads, 3, blank=10, lengths=2 * lengths)[0][:, 0]
    joint = joint_decode(heads, lengths, blank=10, length_weight=2.0)
    np.testing.assert_array_equal(read, joint)


def test_a_prior_of_lengths_is_added_and_ties_go_to_the_shortest():
    flat = np.log(np.full((1, 3, 2), 0.5))
    assert joint_decode(flat, blank=1).tolist() == [[1, 1, 1]]
    prior = np.log([0.1, 0.2, 0.4, 0.3])
    assert joint_decode(flat, blank=1, log_prior=prior).tolist() == [[0, 0, 1]]
    assert joint_decode(flat, prior[None], blank=1).tolist() == [[0, 0, 1]]
    last = np.add(prior, [0, 0, 0, 1])
    assert joint_decode(flat, prior[None], blank=1, log_prior=last).tolist() == [[0, 0, 0]]
    assert joint_decode(flat, prior[None], blank=1, length_weight=0.0).tolist() == [[1, 1, 1]]


def test_heads_that_agree_are_read_alike_by_all_decoders():
    labels = encode(["42", "", "007", "1234"])
    heads = np.log(np.where(np.eye(11)[labels], 0.9, 0.01))
    for name, read in DECODERS.items():
        np.testing.assert_array_equal(read(heads, blank=10), labels, err_msg=name)


def disagreeing(rows=2000, positions=5, seed=0):
    """Return labels and heads, each of which is unsure by itself whether the string goes on.

    A head sees its character well, but whether there is one it sees through noise: now and then a
    character in the middle looks like the end, or the ground behind the end like a character.
    """
    rng = np.random.default_rng(seed)
    length = rng.integers(1, positions + 1, rows)
    labels = rng.integers(0, 10, (rows, positions))
    there = np.arange(positions) < length[:, None]
    seen = np.where(there, 1.5, -1.5) + rng.normal(0, 1.5, there.shape)  # ln p(character) / p(none)
    classes = rng.normal(0, 1, (rows, positions, 10)) + 6 * np.eye(10)[labels]
    classes = special.log_softmax(classes, -1) + special.log_expit(seen)[..., None]
    heads = np.concatenate([classes, special.log_expit(-seen)[..., None]], -1)
    return np.where(there, labels, 10), heads, rng


def gain(one, other, labels):
    """Return the paired 95 % interval of the difference of two decoders' string accuracy."""
    right = [(read == labels).all(1).astype(float) for read in (one, other)]
    difference = right[0] - right[1]
    spread = 1.96 * difference.std(ddof=1) / math.sqrt(len(labels))
    return difference.mean() - spread, difference.mean() + spread


def test_joint_decoding_wins_where_heads_disagree_about_the_length():
    labels, heads, rng = disagreeing()
    first, drop = decode(heads, blank=10), drop_blanks(heads, blank=10)
    joint = joint_decode(heads, blank=10)
    assert gain(joint, first, labels)[0] > 0.05
    assert gain(joint, drop, labels)[0] > 0.05
    # A length head of its own noise adds what the character heads do not know.
    seen = 2.0 * np.eye(6)[lengths_of(labels, blank=10)] + rng.normal(0, 1, (len(labels), 6))
    with_head = joint_decode(heads, special.log_softmax(seen, -1), blank=10)
    assert gain(with_head, joint, labels)[0] > 0.05


def test_it_changes_nothing_where_heads_know_the_length():
    labels, heads, _ = disagreeing()
    sure = heads.copy()
    sure[..., 10] = np.where(labels == 10, 0.0, IMPOSSIBLE)
    sure[..., :10] = np.where((labels == 10)[..., None], IMPOSSIBLE, sure[..., :10])
    sure = special.log_softmax(sure, -1)
    np.testing.assert_array_equal(joint_decode(sure, blank=10), decode(sure, blank=10))


def test_a_public_bug_dropping_blanks_anywhere_makes_the_ends_noise_a_character():
    # Reference 1.14, "drop blanks anywhere": a doubtful head behind the end adds a digit.
    heads = np.full((1, 4, 11), 1e-3)
    heads[0, [0, 1], [4, 2]] = heads[0, 2, 10] = 1.0
    heads[0, 3, [7, 10]] = 0.5, 0.49
    log_p = np.log(heads / heads.sum(-1, keepdims=True))
    assert strings(drop_blanks(log_p, blank=10), blank=10) == ["427"]
    for name in ("first_blank", "joint_length"):
        assert strings(DECODERS[name](log_p, blank=10), blank=10) == ["42"], name


@given(seeds)
def test_dropping_blanks_keeps_every_character_in_order(seed):
    labels = np.random.default_rng(seed).integers(0, 11, (5, 6))
    for row, read in zip(labels.tolist(), drop_blanks(labels, blank=10).tolist(), strict=True):
        kept = [c for c in row if c != 10]
        assert read == kept + [10] * (6 - len(kept))


def test_impossible_classes_never_win_and_never_make_nan():
    with np.errstate(divide="ignore"):
        heads = np.log(np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0]] * 3]))
    assert joint_decode(heads, blank=1).tolist() == [[0, 0, 1], [1, 1, 1]]
    scores = joint_scores(heads, blank=1)
    assert np.isfinite(scores).all()
    assert scores[0].tolist() == [2 * IMPOSSIBLE, IMPOSSIBLE, 0.0, IMPOSSIBLE]
    lengths = np.array([[-np.inf, 0.0, -np.inf, -np.inf]] * 2)
    assert np.isfinite(joint_scores(heads, lengths, blank=1)).all()


def test_tensors_and_low_precision_are_read_too():
    heads, lengths = some(1, 7, 4, 5)
    expected = joint_decode(heads, lengths, blank=-1)
    given_tensors = torch.from_numpy(heads), torch.from_numpy(lengths)
    np.testing.assert_array_equal(joint_decode(*given_tensors, blank=4), expected)
    half = heads.astype(np.float16)
    assert joint_decode(half, blank=4).dtype == np.int64
    assert half.dtype == np.float16


@pytest.mark.parametrize(
    ("heads", "lengths", "said"),
    [
        (np.zeros((2, 3, 4)), None, "sum to 4"),
        (np.random.default_rng(0).normal(0, 3, (2, 3, 4)), None, "no log-probabilities"),
        (np.full((2, 3, 4), 0.25), None, "log\\(p\\)"),
        (np.full((2, 3, 4), np.nan), None, "no log-probabilities"),
        (np.zeros((2, 3), int), None, "expected \\(sample, position, class\\)"),
        (np.zeros((2, 3, 1)), None, "two classes or more"),
        (np.log(np.full((2, 3, 4), 0.25)), np.zeros((2, 3)), "expected \\(2, 4\\) scores"),
        (np.log(np.full((2, 3, 4), 0.25)), np.full((2, 4), np.nan), "NaN or \\+inf"),
    ],
)
def test_what_is_no_log_probability_is_refused(heads, lengths, said):
    with pytest.raises(DataError, match=said):
        joint_decode(heads, lengths, blank=-1)
    with pytest.raises(DataError, match=said):
        best_strings(heads, 2, blank=-1, lengths=lengths)


@pytest.mark.parametrize("blank", [4, -5, 10])
def test_a_blank_that_is_no_class_is_refused(blank):
    with pytest.raises(DataError, match=f"blank={blank} is no class of 4"):
        joint_decode(some(0)[0], blank=blank)
    with pytest.raises(DataError, match="is no class"):
        decode(some(0)[0], blank=blank)


@pytest.mark.parametrize("k", [0, -1, 2.0, True])
def test_a_number_of_strings_that_is_none_is_refused(k):
    with pytest.raises(DataError, match="whole number of 1 or more"):
        best_strings(some(0)[0], k, blank=-1)

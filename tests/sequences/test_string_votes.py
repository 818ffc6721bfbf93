"""Votes on strings: weights, ties, silence, decided strings, alignment, pooled heads."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from polyfuse.combine import hard_vote
from polyfuse.errors import DataError
from polyfuse.sequences import (
    aligned_vote,
    decode,
    encode,
    joint_decode,
    joint_decoding,
    string_vote,
    strings,
)
from polyfuse.sequences.aligning import GAP, align

BLANK = 10
few = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)
every_vote = pytest.mark.parametrize("vote", [string_vote, aligned_vote])


def some(seed, members=4, rows=12, positions=4, noise=1.2):
    """Return logits of members that often disagree."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 2, (1, rows, positions, 11))
    return shared + rng.normal(0, noise, (members, rows, positions, 11))


def read_as(texts, weights=None, vote=aligned_vote, longest=None):
    """Vote on the texts of one sample."""
    labels = encode(texts, positions=longest or max(map(len, texts)) or 1)[:, None]
    return strings(vote(labels, weights=weights, blank=BLANK), blank=BLANK)[0]


# Weights, silence, spaces ------------------------------------------------------------------------


def voted(logits, weights):
    """Vote by whole string in plain Python."""
    p = special.softmax(logits, -1)
    answer = []
    for s in range(logits.shape[1]):
        votes = {}
        for m, weight in enumerate(weights):
            text = tuple(decode(logits[m, s : s + 1], blank=BLANK)[0].tolist())
            ends = min(text.index(BLANK) + 1 if BLANK in text else len(text), len(text))
            sure = weight * math.prod(p[m, s, i, text[i]] for i in range(ends))
            count, support = votes.get(text, (0.0, 0.0))
            votes[text] = (count + weight, support + sure)
        answer.append(max(votes, key=lambda t: (round(votes[t][0], 9), votes[t][1])))
    return np.array(answer)


@pytest.mark.parametrize("seed", range(4))
def test_weighted_string_votes_match_plain_python(seed):
    logits, weights = some(seed, rows=40), [0.1, 0.2, 0.3, 0.7]
    expected = voted(logits, weights)
    np.testing.assert_array_equal(string_vote(logits, weights=weights), expected)
    assert (expected != string_vote(logits)).any()


@every_vote
@few
@given(seeds)
def test_a_whole_weight_is_that_many_copies(vote, seed):
    logits = some(seed, members=3)
    copies = logits[[0, 0, 1, 2, 2, 2]]
    np.testing.assert_array_equal(vote(logits, weights=[2, 1, 3]), vote(copies))


@every_vote
def test_a_member_without_weight_or_silent_has_no_say(vote):
    logits = some(0)
    expected = vote(logits[1:])
    np.testing.assert_array_equal(vote(logits, weights=[0, 1, 1, 1]), expected)
    silent = logits.copy()
    silent[0] = np.nan
    np.testing.assert_array_equal(vote(silent), expected)
    np.testing.assert_array_equal(vote(torch.from_numpy(silent)).numpy(), expected)
    some_rows = logits.copy()
    some_rows[0, :5] = np.nan
    together = np.concatenate([expected[:5], vote(logits)[5:]])
    np.testing.assert_array_equal(vote(some_rows), together)


@every_vote
def test_sums_of_the_same_weights_are_a_tie(vote):
    # 0.1 + 0.2 is above 0.3 by rounding alone; the surer side of the tie wins.
    sure = [0.5, 0.5, 0.9]
    p = np.full((3, 1, 1, 11), 0.01)
    p[[0, 1, 2], 0, 0, [1, 1, 2]] = sure
    p /= p.sum(-1, keepdims=True)
    assert vote(p, weights=[0.1, 0.2, 0.3], space="prob").tolist() == [[2]]


@every_vote
def test_spaces_say_the_same(vote):
    logits = some(3)
    expected = vote(logits)
    p = special.softmax(logits, -1)
    np.testing.assert_array_equal(vote(p, space="prob"), expected)
    np.testing.assert_array_equal(vote(np.log(p), space="log_prob"), expected)
    with pytest.raises(DataError, match="space='prob' means probabilities"):
        vote(logits, space="prob")


@every_vote
def test_probabilities_of_zero_and_one_are_votes_too(vote):
    p = np.eye(11)[encode(["12", "13", "13"])[:, None]]
    assert strings(vote(p, space="prob"), blank=BLANK) == ["13"]


@every_vote
def test_decided_strings_and_their_tensors_are_voted_on(vote):
    read = encode(["12", "13", "13"])[:, None]
    for given_read in (read, torch.from_numpy(read)):
        answer = vote(given_read, blank=BLANK)
        assert type(answer) is type(given_read)
        assert answer.tolist() == [[1, 3]]
    assert vote(read.astype(np.uint8), blank=BLANK).dtype == np.int64
    assert vote(read, blank=BLANK, weights=[3, 1, 1]).tolist() == [[1, 2]]


@every_vote
@pytest.mark.parametrize(
    ("predictions", "options", "said"),
    [
        (np.zeros((2, 3, 4), int), {}, "of decided classes the last one is not known"),
        (np.zeros((2, 0, 4), int), {"blank": 1}, "expected floating logits"),
        (np.zeros((2, 3, 4)), {}, "4 or more axes"),
        (np.zeros((2, 3, 4, 5, 6)), {}, "5 axes"),
        (np.zeros((2, 3, 4, 5)), {"blank": 5}, "blank=5 is no class of 5"),
        (np.zeros((2, 3, 4, 5)), {"weights": [1]}, "expected 2 weights"),
        (np.zeros((2, 3, 4), int), {"blank": 1, "weights": [1, -1]}, "0 or more"),
        (np.full((2, 3, 4, 5), np.nan), {}, "no member has a say in 3 rows, the first is 0"),
        (np.full((1, 1, 1, 2), [0.0, np.nan]), {}, "member 0 has NaN or infinity in row 0"),
    ],
)
def test_what_cannot_be_voted_on_is_refused(vote, predictions, options, said):
    with pytest.raises(DataError, match=said):
        vote(predictions, **options)


# Alignment ---------------------------------------------------------------------------------------


def distance(a, b):
    """Return the least cost of edits, 4 for a replaced character and 3 for others, recursively."""
    if not a or not b:
        return 3 * (len(a) + len(b))
    return min(
        distance(a[1:], b[1:]) + 4 * (a[0] != b[0]),
        distance(a[1:], b) + 3,
        distance(a, b[1:]) + 3,
    )


words = st.text("0123", max_size=5).map(lambda t: [int(c) for c in t])


@given(words, words)
def test_an_alignment_is_whole_in_order_and_of_least_cost(one, other):
    path = align([frozenset({c}) for c in one], other)
    assert [i for i, _ in path if i is not None] == list(range(len(one)))
    assert [j for _, j in path if j is not None] == list(range(len(other)))
    cost = 0
    for i, j in path:
        assert (i, j) != (None, None)
        cost += 3 if i is None or j is None else 4 * (one[i] != other[j])
    assert cost == distance(one, other)


def test_a_place_that_may_be_empty_costs_nothing_to_pass():
    slots = [frozenset({1}), frozenset({2, GAP}), frozenset({3})]
    assert align(slots, [1, 3]) == [(0, 0), (1, None), (2, 1)]
    assert align([], [4]) == [(None, 0)]
    assert align(slots, []) == [(0, None), (1, None), (2, None)]


def test_a_missed_character_does_not_move_the_others():
    assert read_as(["1234", "234", "1234"]) == "1234"
    assert read_as(["1234", "234", "124"]) == "1234"  # each of two missed another one
    position = encode(["1234", "234", "124"])[:, None]
    by_position = hard_vote(np.eye(11)[position], space="prob")
    assert strings(by_position, blank=BLANK) == ["124"]  # what a vote by position makes of it
    assert read_as(["1234", "234", "124"], vote=string_vote) == "1234"
    assert read_as(["234", "1234", "124"], vote=string_vote) == "234"  # ties: the first
    assert read_as(["234", "124", "134"], longest=4) == "1234"  # which no member has read


def test_a_character_too_many_is_voted_out():
    assert read_as(["1234", "12934", "12834"]) == "1234"
    assert read_as(["12", "712", "12"]) == "12"


def test_an_empty_string_is_a_vote_for_nothing():
    assert read_as(["", "", "7"]) == ""
    assert read_as(["7", "", "7"]) == "7"
    assert read_as(["7", ""], weights=[1, 2]) == ""


def test_weights_decide_place_by_place():
    texts = ["129", "189", "723"]
    assert read_as(texts, weights=[1, 1, 3]) == "723"
    assert read_as(texts, weights=[2, 2, 1]) == "129"
    assert read_as(["189", "129", "723"], weights=[2, 2, 1]) == "129"  # 1 and 9 by two, 2 by two


@few
@given(st.lists(st.text("0123", max_size=4), min_size=1, max_size=5), st.randoms())
def test_texts_may_come_in_any_order_where_nothing_ties(texts, random):
    weights = [1.0 + 2.0**-i for i in range(1, len(texts) + 1)]
    pairs = list(zip(texts, weights, strict=True))
    expected = read_as(texts, weights)
    random.shuffle(pairs)
    assert read_as(*map(list, zip(*pairs, strict=True))) == expected


@given(st.lists(st.text("012", max_size=4), min_size=1, max_size=5))
def test_a_string_of_a_majority_stands_and_nothing_is_made_up(texts):
    read = read_as(texts)
    assert set(read) <= set("".join(texts))
    assert min(map(len, texts)) <= len(read) or len(set(texts)) > 1
    assert len(read) <= max(map(len, texts))
    often = max(texts, key=texts.count)
    if 2 * texts.count(often) > len(texts):
        assert read == often


@few
@given(st.lists(st.text("0123456789", min_size=3, max_size=3), min_size=3, max_size=3))
def test_where_lengths_agree_and_nothing_shifts_it_is_the_vote_by_position(texts):
    # Two different characters at most, in one place: no shift is cheaper than that.
    texts = [texts[0], texts[0][:1] + texts[1][1] + texts[0][2:], texts[0]]
    labels = encode(texts)[:, None]
    position = hard_vote(np.eye(11)[labels], space="prob")
    assert read_as(texts) == strings(position, blank=BLANK)[0]


def test_a_result_that_is_too_long_loses_its_least_certain_characters():
    p = np.full((2, 1, 2, 11), 0.01)
    p[0, 0, [0, 1], [1, 2]] = 0.9, 0.8
    p[1, 0, [0, 1], [2, 3]] = 0.8, 0.3
    p /= p.sum(-1, keepdims=True)
    assert strings(aligned_vote(p, space="prob"), blank=BLANK) == ["12"]


def test_confidence_breaks_a_tie_between_a_character_and_none():
    def of(text, sure):
        p = np.full((3, 11), (1 - sure) / 10)
        p[np.arange(3), encode([text], positions=3)[0]] = sure
        return p[None]

    assert strings(aligned_vote(np.stack([of("12", 0.9), of("123", 0.6)]), space="prob"), blank=10)
    for sure, other, expected in ((0.9, 0.6, "12"), (0.6, 0.9, "123")):
        p = np.stack([of("12", sure), of("123", other)])
        assert strings(aligned_vote(p, space="prob"), blank=BLANK) == [expected]


def test_alignment_wins_where_members_miss_characters():
    rng = np.random.default_rng(0)
    truth = ["".join(map(str, rng.integers(0, 10, rng.integers(3, 7)))) for _ in range(300)]

    def missed(text):
        return "".join(c for c in text if rng.random() > 0.15)

    members = np.stack([encode([missed(t) for t in truth], positions=6) for _ in range(5)])
    labels = encode(truth, positions=6)
    right = {
        "aligned": aligned_vote(members, blank=BLANK),
        "string": string_vote(members, blank=BLANK),
        "position": decode(hard_vote(np.eye(11)[members], space="prob"), blank=BLANK),
    }
    share = {name: (read == labels).all(1).mean() for name, read in right.items()}
    assert share["aligned"] > share["string"] + 0.05
    assert share["aligned"] > share["position"] + 0.3


# Pooled heads ------------------------------------------------------------------------------------


@few
@given(seeds)
def test_pooled_heads_are_read_jointly(seed):
    logits, weights = some(seed), [1, 2, 0, 1]
    pooled = np.log(np.average(special.softmax(logits, -1), axis=0, weights=weights))
    expected = joint_decode(pooled, blank=BLANK)
    np.testing.assert_array_equal(joint_decoding(logits, weights=weights), expected)
    tensor = joint_decoding(torch.from_numpy(logits), weights=weights, blank=BLANK)
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_pooled_heads_with_zeros_and_an_unsure_middle():
    p = np.eye(11)[encode(["123", "123"])[:, None]]
    p[:, 0, 1] = 0.4 * np.eye(11)[2] + 0.6 * np.eye(11)[BLANK]
    assert strings(string_vote(p, space="prob"), blank=BLANK) == ["1"]
    assert strings(joint_decoding(p, space="prob"), blank=BLANK) == ["123"]


def test_pooling_needs_positions():
    with pytest.raises(DataError, match="4 or more axes"):
        joint_decoding(np.zeros((2, 3, 4)))

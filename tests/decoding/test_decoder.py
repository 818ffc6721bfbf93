"""Steps of decoding: never worse where they are fitted, silent where they know nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.decoding import (
    Decoder,
    Forbid,
    LengthPrior,
    Lengths,
    Lexicon,
    PositionPrior,
    Reading,
    decoder_from,
    document_of,
    fit_decoder,
)
from polyfuse.errors import DataError, RunError
from polyfuse.sequences import decode, length_prior, position_prior

BLANK, CLASSES, POSITIONS = 4, 5, 3


def log_softmax(z):
    return z - np.logaddexp.reduce(z, axis=-1, keepdims=True)


def world(rows=200, seed=0, noise=1.0, favoured=None):
    """Return heads, labels and what a length head says; `favoured` characters come more often."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, POSITIONS + 1, rows)
    labels = rng.choice(BLANK, (rows, POSITIONS), p=favoured)
    labels[np.arange(POSITIONS) >= lengths[:, None]] = BLANK
    heads = 2 * np.eye(CLASSES)[labels] + noise * rng.standard_normal((rows, POSITIONS, CLASSES))
    told = 4 * np.eye(POSITIONS + 1)[lengths] + rng.standard_normal((rows, POSITIONS + 1))
    return log_softmax(heads), labels, log_softmax(told)


def all_steps(labels):
    words = np.unique(labels, axis=0)[::2]
    return [
        Lengths("joint_length", "length_head"),
        PositionPrior(position_prior(labels, classes=CLASSES)),
        LengthPrior(length_prior(labels, blank=BLANK)),
        Lexicon(words),
        Forbid(("0?*",), "0123"),
    ]


def right(read, labels):
    return (read == labels).all(-1).mean()


@given(st.integers(0, 10_000), st.floats(0.1, 4), st.integers(2, 40))
@settings(max_examples=25)
def test_no_step_makes_the_rows_it_is_fitted_on_worse(seed, noise, rows):
    heads, labels, told = world(rows, seed, noise)
    decoder = Decoder(all_steps(labels[::-1]), blank=BLANK, sources=["length_head"])
    decoder.fit(heads[None], labels, inputs=told[:, None])
    read = decoder.predict(heads[None], inputs=told[:, None])
    scores = [right(decode(heads, blank=BLANK), labels)]
    scores += [right(read[:, step], labels) for step in range(5)]
    assert (np.diff(scores) >= 0).all()


def test_a_length_head_that_knows_is_heard():
    heads, labels, told = world(400, noise=1.5)
    decoder = Decoder(
        [Lengths("joint_length", "length_head")], blank=BLANK, sources=["length_head"]
    )
    found = fit_decoder(decoder, heads, labels, inputs=told[:, None])
    [weight] = decoder.strengths
    assert weight > 0
    assert right(found.strings[:, 0], labels) > right(decode(heads, blank=BLANK), labels) + 0.1


def test_without_a_length_head_the_other_heads_overrule_one_that_is_unsure():
    labels = np.tile([[1, 2, 3]], (30, 1))
    logits = 6 * np.eye(CLASSES)[labels]
    logits[::3, 1, BLANK] = 6.5  # the string seems to end here, and the next head knows better
    heads = log_softmax(logits)
    decoder = Decoder([Lengths("joint_length", None)], blank=BLANK)
    found = fit_decoder(decoder, heads, labels, inputs=np.zeros((30, 0, 4)))
    assert decoder.strengths == [1.0]
    assert decoder.heard == []
    assert right(decode(heads, blank=BLANK), labels) == pytest.approx(2 / 3)
    assert right(found.strings[:, 0], labels) == 1


@pytest.mark.parametrize("seed", range(8))
def test_priors_and_lengths_of_noise_get_strength_0(seed):
    heads, labels, _ = world(300, seed)
    rng = np.random.default_rng(seed + 100)
    noise = log_softmax(rng.standard_normal((300, POSITIONS + 1)) * 3)
    any_length = rng.integers(0, POSITIONS + 1, 2000)
    even = np.where(np.arange(POSITIONS) < any_length[:, None], 0, BLANK)
    steps = [
        Lengths("length_model", "length_model"),
        PositionPrior(position_prior(rng.integers(0, 5, (3000, POSITIONS)), classes=CLASSES)),
        LengthPrior(length_prior(even, blank=BLANK)),
        Lexicon(rng.integers(0, BLANK, (5, POSITIONS))),
    ]
    for step in steps:
        decoder = Decoder([step], blank=BLANK, sources=["length_model"])
        decoder.fit(heads[None], labels, inputs=noise[:, None])
        assert decoder.strengths == [0.0], step.name


def test_a_length_model_is_not_credited_with_what_joint_decoding_gains():
    heads, labels, told = world(400, noise=1.5)
    knows = Lengths("length_model", "length_model")
    for inputs, used in ((told, True), (np.full_like(told, -np.log(POSITIONS + 1)), False)):
        decoder = Decoder([knows], blank=BLANK, sources=["length_model"])
        decoder.fit(heads[None], labels, inputs=inputs[:, None])
        assert bool(decoder.strengths[0]) == used


def test_a_prior_of_what_the_heads_do_not_know_helps():
    favoured = (0.85, 0.05, 0.05, 0.05)
    heads, labels, _ = world(600, 1, 2.0, favoured)
    _, train, _ = world(600, 2, 2.0, favoured)
    step = PositionPrior(position_prior(train, classes=CLASSES))
    decoder = Decoder([step], blank=BLANK)
    found = fit_decoder(decoder, heads, labels, inputs=np.zeros((600, 0, 4)))
    assert decoder.strengths[0] > 0
    assert right(found.strings[:, 0], labels) > right(decode(heads, blank=BLANK), labels) + 0.05


def test_strength_0_changes_nothing_to_the_bit():
    heads, labels, told = world(50)
    steps = all_steps(labels)
    decoder = Decoder(steps, blank=BLANK, sources=["length_head"], strengths=[0.0] * len(steps))
    read = decoder.predict(heads[None], inputs=told[:, None])
    for step in range(len(steps)):
        np.testing.assert_array_equal(read[:, step], decode(heads, blank=BLANK))


def test_a_row_has_no_say_in_how_it_is_read():
    heads, labels, told = world(40, noise=1.0)
    folds, held = 4, {"inputs": told[:, None], "groups": np.arange(40) // 10}
    decoder = Decoder(all_steps(labels), blank=BLANK, sources=["length_head"])
    before = fit_decoder(decoder, heads, labels, folds=folds, **held).strings
    for group in range(folds):
        turned, rows = labels.copy(), held["groups"] == group
        turned[rows] = BLANK  # other labels of these rows alone
        after = fit_decoder(decoder, heads, turned, folds=folds, **held).strings
        np.testing.assert_array_equal(after[rows], before[rows])


def test_a_rule_of_the_users_stays_unless_it_does_harm():
    heads, labels, _ = world(100)
    free = labels[labels[:, 0] != 0]
    kept, harmful = Forbid(("0?*", "0"), "0123"), Forbid(("3*", "2*"), "0123")
    chosen = heads[labels[:, 0] != 0]
    decoder = Decoder([kept, harmful], blank=BLANK).fit(chosen[None], free)
    assert decoder.strengths == [1.0, 0.0]
    read = decoder.predict(chosen[None])[:, -1]
    assert not (read[:, 0] == 0).any()


def test_lexicon_and_patterns_hold_for_the_steps_after_them():
    heads, labels, _ = world(80, noise=2.0)
    words = np.unique(labels, axis=0)
    steps = [Lexicon(words), LengthPrior(length_prior(labels, blank=BLANK))]
    decoder = Decoder(steps, blank=BLANK, strengths=[1000.0, 2.0])
    read = decoder.predict(heads[None])[:, -1]
    known = {tuple(word) for word in words}
    assert {tuple(string) for string in read} <= known


def test_documents_go_there_and_back():
    heads, labels, told = world(60)
    decoder = Decoder(all_steps(labels), blank=BLANK, sources=["length_head"])
    decoder.fit(heads[None], labels, inputs=told[:, None])
    again = decoder_from(json.loads(json.dumps(document_of(decoder, 5))))
    np.testing.assert_array_equal(
        again.predict(heads[None], inputs=told[:, None]),
        decoder.predict(heads[None], inputs=told[:, None]),
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "other"},
        {"blank": "x"},
        {"steps": [{"name": "joint_length", "strength": 1}]},
        {"steps": [{"name": "joint_length", "strength": 1, "source": "who"}]},
        {"steps": [{"name": "joint_length", "strength": -1, "source": None}]},
        {"steps": [{"name": "joint_length", "strength": 1, "source": None}] * 101},
        {"steps": [{"name": "position_prior", "strength": 1, "log_prior": [0.0]}]},
        {"steps": [{"name": "position_prior", "strength": 1, "log_prior": [[float("nan")]]}]},
        {"steps": [{"name": "lexicon", "strength": 1, "words": [["a"]]}]},
        {"steps": [{"name": "forbid", "strength": 1, "patterns": 3, "alphabet": "01"}]},
        {"steps": [{"name": "../x", "strength": 1}]},
        {"steps": 7},
    ],
)
def test_documents_that_are_none_are_refused(damage):
    document = {"kind": "decoding", "blank": 4, "sources": [], "steps": []} | damage
    with pytest.raises(RunError, match="no document of a decoding"):
        decoder_from(document)


def test_labels_of_another_shape_are_refused():
    heads, labels, _ = world(10)
    decoder = Decoder([Lengths("joint_length", None)], blank=BLANK)
    with pytest.raises(DataError, match="do not fit labels"):
        fit_decoder(decoder, heads, labels[:, :2], inputs=np.zeros((10, 0, 4)))


def test_reading_without_lengths_ends_at_the_first_blank():
    heads, _, _ = world(20)
    np.testing.assert_array_equal(Reading(heads, BLANK).strings(), decode(heads, blank=BLANK))

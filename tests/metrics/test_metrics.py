"""Metrics: one contract for all of them, counts against re-indexed samples, shares read right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import accuracy_score

from polyfuse.errors import DataError
from polyfuse.metrics import (
    FOR_NUMBERS,
    LOWER_IS_BETTER,
    METRICS,
    NEEDS_PROBABILITIES,
    Terms,
    accuracy,
    bootstrap_counts,
    character_accuracy,
    scored_by,
    string_accuracy,
)

OF_CLASSES = [name for name in METRICS if name not in FOR_NUMBERS]
WHOLE_STRINGS = {"string_accuracy", "character_accuracy"}
every = pytest.mark.parametrize("name", OF_CLASSES)
every_of_numbers = pytest.mark.parametrize("name", sorted(FOR_NUMBERS))
every_accuracy = pytest.mark.parametrize("metric", [accuracy, string_accuracy, character_accuracy])


def some_labels(n=60, positions=4):
    """Strings of 1 to 4 digits, blanks padded right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (n, positions))
    labels[np.arange(positions) >= rng.integers(1, positions + 1, (n, 1))] = 10
    return labels


def some_prediction(labels, noise=1.5):
    logits = np.random.default_rng(1).normal(0, noise, (*labels.shape, 11))
    return special.softmax(logits + 2 * np.eye(11)[labels], -1)


@every
def test_a_perfect_prediction_has_the_best_score(name):
    labels = some_labels()
    best = 0.0 if name in LOWER_IS_BETTER else 1.0
    assert METRICS[name](np.eye(11)[labels], labels).value == best


@every
def test_the_order_of_samples_does_not_matter(name):
    labels = some_labels()
    prediction, order = some_prediction(labels), np.random.default_rng(2).permutation(60)
    assert METRICS[name](prediction[order], labels[order]).value == pytest.approx(
        METRICS[name](prediction, labels).value, abs=1e-12
    )


@pytest.mark.parametrize("name", ["accuracy", "nll", "brier", *sorted(WHOLE_STRINGS)])
def test_terms_are_one_a_sample_in_float64(name):
    labels = some_labels()
    prediction = some_prediction(labels).astype(np.float32)
    terms = METRICS[name](prediction, labels)
    assert isinstance(terms, Terms)
    for part in terms:
        assert part.shape == (60,)
        assert part.dtype == np.float64
    one = METRICS[name](prediction[7:8], labels[7:8])
    assert one.numerator[0] == terms.numerator[7]
    assert one.denominator[0] == terms.denominator[7]


@every
@pytest.mark.parametrize("shape", [(59, 4, 11), (60, 3, 11), (60, 11)])
def test_shapes_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(DataError, match="do not fit"):
        METRICS[name](np.full(shape, 0.5), some_labels())


@every
def test_inputs_are_not_modified(name):
    labels = some_labels()
    prediction = some_prediction(labels)
    METRICS[name](prediction, labels)
    np.testing.assert_array_equal(labels, some_labels())
    np.testing.assert_array_equal(prediction, some_prediction(labels))


@every_accuracy
def test_decided_classes_count_like_their_scores(metric):
    labels = some_labels()
    prediction = some_prediction(labels)
    assert metric(prediction.argmax(-1), labels).value == metric(prediction, labels).value


@pytest.mark.parametrize("name", sorted(NEEDS_PROBABILITIES))
def test_what_needs_probabilities_refuses_votes(name):
    with pytest.raises(DataError, match="needs probabilities"):
        METRICS[name](some_labels(), some_labels())


def test_the_named_sets_are_metrics():
    assert METRICS.keys() >= LOWER_IS_BETTER
    assert METRICS.keys() >= NEEDS_PROBABILITIES
    assert METRICS.keys() >= FOR_NUMBERS


@st.composite
def samples(draw, heads=3):
    """Predictions with ties, labels, and the counts of a few replicates."""
    n, heads, classes = (draw(st.integers(*ends)) for ends in ((1, 25), (1, heads), (2, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (n,) if heads == 1 else (n, heads)
    scores = rng.integers(1, draw(st.sampled_from([4, 1000])), (*shape, classes)).astype(float)
    counts = rng.multinomial(n, np.full(n, 1 / n), 3)
    return scores / scores.sum(-1, keepdims=True), rng.integers(0, classes, shape), counts


# Bins of equal mass are laid over the whole sample; test_calibration_error.py holds them still.
@pytest.mark.parametrize("name", [name for name in OF_CLASSES if name != "ece_equal_mass"])
@given(data=samples())
def test_a_replicate_by_counts_is_the_score_of_the_samples_it_drew(name, data):
    prediction, labels, counts = data
    if name in WHOLE_STRINGS:
        prediction = prediction.reshape(len(labels), -1, prediction.shape[-1])
        labels = labels.reshape(len(labels), -1)
    score = METRICS[name](prediction, labels)
    with np.errstate(invalid="ignore"):
        found = score.replicates(counts)
    for replicate, row in zip(found, counts, strict=True):
        drawn = np.repeat(np.arange(len(labels)), row)
        expected = METRICS[name](prediction[drawn], labels[drawn])
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(replicate, expected.value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1", "auroc"])
@given(data=samples(heads=1))
def test_what_counts_whole_cases_is_the_same_to_the_bit(name, data):
    prediction, labels, counts = data
    found = METRICS[name](prediction, labels).replicates(counts)
    drawn = [np.repeat(np.arange(len(labels)), row) for row in counts]
    again = [METRICS[name](prediction[i], labels[i]).value for i in drawn]
    np.testing.assert_array_equal(found, again)


@every_of_numbers
@given(n=st.integers(1, 25), seed=st.integers(0, 2**32))
def test_numbers_too_are_weighted_as_if_drawn(name, n, seed):
    rng = np.random.default_rng(seed)
    shape = (n, 2) if name == "crps" else (n,)
    prediction, labels = rng.random(shape), rng.random(n)
    counts = rng.multinomial(n, np.full(n, 1 / n), 3)
    found = METRICS[name](prediction, labels).replicates(counts)
    for replicate, row in zip(found, counts, strict=True):
        drawn = np.repeat(np.arange(n), row)
        expected = METRICS[name](prediction[drawn], labels[drawn]).value
        assert replicate == pytest.approx(expected, rel=1e-12)


@every
def test_one_count_a_sample_gives_the_value(name):
    labels = some_labels()
    score = METRICS[name](some_prediction(labels), labels)
    assert score.replicates(np.ones((1, 60)))[0] == pytest.approx(score.value, abs=1e-12)


@every
def test_counts_may_be_bytes_or_floats(name):
    labels = some_labels()
    score = METRICS[name](some_prediction(labels), labels)
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 5) * 40
    assert counts.max() > 127
    expected = score.replicates(counts)
    for dtype in (np.uint8, np.float32, np.float64):
        np.testing.assert_allclose(score.replicates(counts.astype(dtype)), expected, rtol=1e-12)


@every
@pytest.mark.parametrize("precision", [np.float16, np.float32])
def test_low_precision_is_summed_in_float64(name, precision):
    labels = some_labels()
    prediction = some_prediction(labels).astype(precision)
    found, wide = (METRICS[name](p, labels).value for p in (prediction, prediction.astype(float)))
    assert found == pytest.approx(wide, abs=1e-12)


@pytest.mark.parametrize("name", sorted(NEEDS_PROBABILITIES - {"auroc"}))
@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        ([[2.0, -1.0]], [0], "look like logits"),
        ([[0.5, 0.7]], [0], "sum to 1.2 instead of 1"),
        ([[np.nan, 0.5]], [0], "NaN"),
        ([[0.5, 0.5]], [2], "from 2 to 2 do not fit predictions of 2 classes"),
        ([[0.5, 0.5]], [-1], "from -1 to -1 do not fit"),
        ([[0.5, 0.5]], [0.5], "labels of float64 are no classes"),
        ([1.5], [1], "expected probabilities of class 1"),
        ([np.nan], [1], "leave out rows of NaN"),
        ([0.5], [3], "do not fit predictions of 2 classes"),
        ([[2.0, -1.0]], [7], "do not fit predictions.*look like logits"),
    ],
)
def test_what_is_no_probability_is_refused(name, prediction, labels, message):
    with pytest.raises(DataError, match=message):
        METRICS[name](np.array(prediction), np.array(labels))


def test_a_score_of_ones_own_is_computed_from_the_samples_drawn():
    metric = scored_by(lambda prediction, labels: accuracy_score(labels, prediction))
    rng = np.random.default_rng(0)
    prediction, labels = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
    counts = bootstrap_counts(40, 20, seed=0)
    ours = accuracy(prediction, labels)
    np.testing.assert_allclose(
        metric(prediction, labels).replicates(counts), ours.replicates(counts), atol=1e-12
    )
    assert metric(prediction, labels).value == pytest.approx(ours.value, abs=1e-12)


def test_probabilities_of_class_one_are_decided_at_a_half():
    labels = np.array([[1, 0], [0, 1]])
    assert accuracy(np.array([[0.6, 0.5], [0.1, 0.2]]), labels).value == 0.75


def test_string_accuracy_matches_accuracy_of_whole_strings():
    labels = some_labels()
    read = some_prediction(labels).argmax(-1)

    def texts(classes):
        return ["".join("0123456789#"[c] for c in row).split("#")[0] for row in classes]

    expected = accuracy_score(texts(labels), texts(read))
    assert 0 < expected < 1
    assert string_accuracy(read, labels).value == pytest.approx(expected, abs=1e-12)


def test_string_accuracy_wants_the_length_and_forgives_what_follows_the_end():
    labels = np.array([[4, 2, 10], [4, 2, 10], [4, 2, 10]])
    read = np.array([[4, 2, 7], [4, 10, 2], [4, 2, 10]])
    assert string_accuracy(read, labels).numerator.tolist() == [0, 0, 1]
    after = np.array([[4, 10, 9]])
    assert string_accuracy(after, np.array([[4, 10, 10]])).value == 1


def test_character_accuracy_counts_true_characters_at_their_place():
    labels = np.array([[4, 2, 10], [1, 2, 3]])
    read = np.array([[4, 10, 2], [2, 2, 3]])
    terms = character_accuracy(read, labels)
    assert terms.numerator.tolist() == [1, 2]
    assert terms.denominator.tolist() == [2, 3]
    assert terms.value == pytest.approx(3 / 5)

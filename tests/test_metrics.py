"""Metrics: one contract for all, parity with scikit-learn, and the bootstrap's promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.metrics import accuracy_score, log_loss

from polyfuse.errors import DataError
from polyfuse.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    NEEDS_PROBABILITIES,
    Interval,
    Terms,
    accuracy,
    bootstrap_counts,
    character_accuracy,
    interval,
    nll,
    paired_interval,
    string_accuracy,
)

every = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
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
def test_a_perfect_prediction_has_the_best_score(metric):
    labels = some_labels()
    best = 0.0 if metric is nll else 1.0
    assert metric(np.eye(11)[labels], labels).value == best


@every
def test_the_order_of_samples_does_not_matter(metric):
    labels = some_labels()
    prediction, order = some_prediction(labels), np.random.default_rng(2).permutation(60)
    assert metric(prediction[order], labels[order]).value == pytest.approx(
        metric(prediction, labels).value, abs=1e-12
    )


@every
def test_terms_are_one_a_sample_in_float64(metric):
    labels = some_labels()
    prediction = some_prediction(labels).astype(np.float32)
    terms = metric(prediction, labels)
    for part in terms:
        assert part.shape == (60,)
        assert part.dtype == np.float64
    one = metric(prediction[7:8], labels[7:8])
    assert one.numerator[0] == terms.numerator[7]
    assert one.denominator[0] == terms.denominator[7]


@every
@pytest.mark.parametrize("shape", [(59, 4, 11), (60, 3, 11), (60, 11)])
def test_shapes_that_do_not_fit_are_refused(metric, shape):
    with pytest.raises(DataError, match="do not fit"):
        metric(np.full(shape, 0.5), some_labels())


@every
def test_inputs_are_not_modified(metric):
    labels = some_labels()
    prediction = some_prediction(labels)
    metric(prediction, labels)
    np.testing.assert_array_equal(labels, some_labels())
    np.testing.assert_array_equal(prediction, some_prediction(labels))


@every_accuracy
def test_decided_classes_count_like_their_scores(metric):
    labels = some_labels()
    prediction = some_prediction(labels)
    assert metric(prediction.argmax(-1), labels).value == metric(prediction, labels).value


@pytest.mark.parametrize("metric", [METRICS[name] for name in NEEDS_PROBABILITIES])
def test_what_needs_probabilities_refuses_votes(metric):
    with pytest.raises(DataError, match="needs probabilities"):
        metric(some_labels(), some_labels())


def test_the_named_sets_are_metrics():
    assert METRICS.keys() >= LOWER_IS_BETTER
    assert METRICS.keys() >= NEEDS_PROBABILITIES


@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 2**32))
def test_accuracy_and_nll_match_scikit_learn(n, classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    prediction = special.softmax(rng.normal(0, 2, (n, classes)), -1)
    assert accuracy(prediction, labels).value == pytest.approx(
        accuracy_score(labels, prediction.argmax(-1)), abs=1e-12
    )
    expected = log_loss(labels, prediction, labels=range(classes))
    assert nll(prediction, labels).value == pytest.approx(expected, abs=1e-9)


def test_over_heads_accuracy_is_a_mean_and_nll_a_sum():
    labels = some_labels()
    prediction = some_prediction(labels)
    heads = [log_loss(labels[:, h], prediction[:, h], labels=range(11)) for h in range(4)]
    assert nll(prediction, labels).value == pytest.approx(sum(heads), abs=1e-9)
    expected = accuracy_score(labels.ravel(), prediction.argmax(-1).ravel())
    assert accuracy(prediction, labels).value == pytest.approx(expected, abs=1e-12)


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


def test_nll_of_an_impossible_class_is_finite():
    value = nll(np.array([[1.0, 0.0]]), np.array([1])).value
    assert value == pytest.approx(-np.log(np.finfo(np.float32).tiny))


@pytest.mark.parametrize("label", [-1, 2])
def test_nll_refuses_labels_that_are_no_class(label):
    with pytest.raises(DataError, match="do not fit predictions of 2 classes"):
        nll(np.array([[0.5, 0.5]]), np.array([label]))


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32))
def test_each_replicate_draws_as_many_samples_as_there_are(n, replicates, seed):
    counts = bootstrap_counts(n, replicates, seed=seed)
    assert counts.shape == (replicates, n)
    assert counts.min() >= 0
    np.testing.assert_array_equal(counts.sum(1), n)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 2**32))
def test_a_group_is_drawn_whole(groups, seed):
    groups = np.array(groups)
    counts = bootstrap_counts(len(groups), 8, seed=seed, groups=groups)
    names, first = np.unique(groups, return_index=True)
    if len(names) > 1:
        for name, at in zip(names, first, strict=True):
            assert (counts[:, groups == name] == counts[:, [at]]).all()
        np.testing.assert_array_equal(counts[:, first].sum(1), len(names))
    else:  # one group alone says nothing about others, so samples are drawn
        np.testing.assert_array_equal(counts.sum(1), len(groups))


def test_the_same_seed_draws_the_same_and_another_seed_others():
    one, same, other = (bootstrap_counts(50, 20, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_the_interval_of_a_mean_matches_its_normal_approximation():
    values = np.random.default_rng(0).normal(2, 1, 2000)
    terms = Terms(values, np.ones(2000))
    value, low, high = interval(terms, bootstrap_counts(2000, 4000, seed=0))
    expected = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(2000))
    assert value == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == pytest.approx(expected, abs=0.004)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(300):
        terms = Terms((rng.random(200) < 0.7).astype(float), np.ones(200))
        _, low, high = interval(terms, bootstrap_counts(200, 400, seed=trial))
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_groups_widen_the_interval_of_what_they_share():
    groups = np.repeat(np.arange(20), 50)
    values = np.random.default_rng(0).normal(0, 1, 20)[groups]
    terms = Terms(values, np.ones(1000))
    alone = interval(terms, bootstrap_counts(1000, 1000, seed=0))
    together = interval(terms, bootstrap_counts(1000, 1000, seed=0, groups=groups))
    assert together.high - together.low > 4 * (alone.high - alone.low)


def test_ratios_are_resampled_as_ratios():
    terms = Terms(np.array([1.0, 4.0]), np.array([2.0, 4.0]))
    counts = np.array([[2, 0], [1, 1], [0, 2]], np.float32)
    assert interval(terms, counts) == pytest.approx(Interval(5 / 6, 0.5 + 0.05 / 3, 1 - 0.05 / 6))


def test_identical_rows_differ_by_exactly_nothing():
    terms = string_accuracy(some_prediction(some_labels()), some_labels())
    assert paired_interval(terms, terms, bootstrap_counts(60, 99, seed=0)) == (0, 0, 0)


def test_a_pairs_interval_is_narrower_than_either_rows_own():
    rng = np.random.default_rng(0)
    a = (rng.random(500) < 0.7).astype(float)
    b = np.where(rng.random(500) < 0.05, 1 - a, a)
    counts, ones = bootstrap_counts(500, 1000, seed=0), np.ones(500)
    pair = paired_interval(Terms(a, ones), Terms(b, ones), counts)
    alone = interval(Terms(a, ones), counts)
    assert pair.value == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert pair.low <= pair.value <= pair.high
    assert pair.high - pair.low < (alone.high - alone.low) / 1.5

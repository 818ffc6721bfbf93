"""Decision thresholds: scikit-learn's scores, every cut by brute force, never worse than argmax."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from polyfuse.errors import DataError
from polyfuse.thresholds import DecisionThresholds

SCORES = {"f1": f1_score, "balanced_accuracy": balanced_accuracy_score}


def binary(seed, n=30, levels=None):
    """Scores and labels of both kinds; few levels make ties."""
    draw = np.random.default_rng(seed)
    p = draw.random(n) if levels is None else draw.integers(0, levels, n) / levels
    labels = (draw.random(n) < 0.2 + 0.6 * p).astype(int)
    labels[:2] = 0, 1
    return p, labels


def multilabel(seed, n=25, count=3):
    columns = [binary(seed + k, n) for k in range(count)]
    return np.stack([p for p, _ in columns], 1), np.stack([y for _, y in columns], 1)


@pytest.mark.parametrize("metric", SCORES)
@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([None, 2, 5]))
def test_no_cut_is_better(metric, seed, levels):
    p, labels = binary(seed, levels=levels)
    fitted = DecisionThresholds(metric=metric).fit(p, labels)
    best = max(SCORES[metric](labels, p >= t) for t in np.unique(p))
    said = fitted.predict(p)
    assert said.dtype == np.int64
    assert np.isclose(SCORES[metric](labels, said), best)
    assert np.isclose(fitted.score_, best)


def test_thresholds_lie_between_scores_and_near_a_half():
    p, labels = np.array([0.1, 0.2, 0.4, 0.8]), np.array([0, 0, 1, 1])
    assert np.allclose(DecisionThresholds().fit(p, labels).thresholds_, [0.3])
    # Two cuts are equally good: after the first and after the third positive.
    p, labels = np.array([0.9, 0.7, 0.3]), np.array([1, 0, 1])
    ba = DecisionThresholds(metric="balanced_accuracy").fit(p, labels)
    assert np.allclose(ba.thresholds_, [0.8])
    near = np.nextafter(0.5, 1)
    fitted = DecisionThresholds().fit(np.array([0.5, near]), np.array([0, 1]))
    assert fitted.predict(np.array([0.5, near])).tolist() == [0, 1]


@pytest.mark.parametrize("metric", SCORES)
def test_labels_are_fitted_one_by_one(metric):
    p, labels = multilabel(0)
    fitted = DecisionThresholds(metric=metric).fit(p, labels)
    each = [DecisionThresholds(metric=metric).fit(p[:, k], labels[:, k]) for k in range(3)]
    assert np.array_equal(fitted.thresholds_, np.concatenate([e.thresholds_ for e in each]))
    assert np.isclose(fitted.score_, np.mean([e.score_ for e in each]))
    if metric == "f1":
        assert np.isclose(fitted.score_, f1_score(labels, fitted.predict(p), average="macro"))


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_micro_f1_is_the_best_of_all_combinations(seed):
    p, labels = multilabel(seed, n=6, count=2)
    fitted = DecisionThresholds(average="micro").fit(p, labels)
    grids = [[*np.unique(p[:, k]), 2.0] for k in range(2)]
    best = max(f1_score(labels, p >= t, average="micro") for t in product(*grids))
    assert np.isclose(fitted.score_, best)
    assert np.isclose(f1_score(labels, fitted.predict(p), average="micro"), best)


def multiclass(seed, n=60, classes=3):
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, n, p=np.array([0.7, 0.2, 0.1][:classes]))
    z = draw.normal(size=(n, classes)) + np.log([0.7, 0.2, 0.1])
    z[np.arange(n), labels] += 1
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True), labels


def score(metric, labels, said):
    if metric == "f1":
        return f1_score(labels, said, average="macro", labels=[0, 1, 2], zero_division=0)
    hits = [(said[labels == k] == k).mean() for k in np.unique(labels)]
    return np.mean(hits)


@pytest.mark.parametrize("metric", SCORES)
@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_no_single_class_can_do_better(metric, seed):
    p, labels = multiclass(seed, n=25)
    fitted = DecisionThresholds(metric=metric).fit(p, labels)
    found = score(metric, labels, fitted.predict(p))
    assert np.isclose(fitted.score_, found)
    assert found >= score(metric, labels, p.argmax(-1)) - 1e-12
    assert np.isclose(fitted.thresholds_.sum(), 1)
    for k in range(3):
        rest = np.delete(p / fitted.thresholds_, k, axis=1).max(1)
        for turn in np.unique(p[:, k] / rest):
            trial = fitted.thresholds_.copy()
            trial[k] = turn * (1 - 1e-9)
            assert score(metric, labels, (p / trial).argmax(-1)) <= found + 1e-9


def test_rare_classes_gain_on_fresh_rows():
    p, labels = multiclass(1, n=6000)
    for metric in SCORES:
        fitted = DecisionThresholds(metric=metric).fit(p[:3000], labels[:3000])
        before = score(metric, labels[3000:], p[3000:].argmax(-1))
        assert score(metric, labels[3000:], fitted.predict(p[3000:])) > before + 0.02


def test_two_classes_are_one_threshold():
    p, labels = binary(3, n=200)
    both = np.stack([1 - p, p], -1)
    for metric in SCORES:
        classes = DecisionThresholds(metric="balanced_accuracy").fit(both, labels)
        single = DecisionThresholds(metric="balanced_accuracy").fit(p, labels)
        assert np.isclose(classes.score_, single.score_), metric
        said = classes.predict(both)
        assert np.array_equal(said, (p > classes.thresholds_[1]).astype(int))


def test_certain_predictions_and_absent_classes():
    p = np.eye(3)[[0, 1, 1, 0]]
    fitted = DecisionThresholds().fit(p, np.array([0, 1, 0, 1]))
    assert np.isfinite(fitted.thresholds_).all()
    assert np.isclose(fitted.score_, 1 / 3)


def test_uncovered_rows():
    p, labels = multilabel(4)
    p[:3, 1] = np.nan
    with pytest.raises(DataError, match="3 of 25 rows have NaN"):
        DecisionThresholds().fit(p, labels)
    left = DecisionThresholds(uncovered="leave_out").fit(p, labels)
    plain = DecisionThresholds().fit(p[3:], labels[3:])
    assert np.array_equal(left.thresholds_, plain.thresholds_)
    q, classes = multiclass(0)
    q[0] = np.nan
    with pytest.raises(DataError, match="1 of 60 rows"):
        DecisionThresholds().fit(q, classes)


@pytest.mark.parametrize(
    ("options", "p", "labels", "words"),
    [
        ({"metric": "f2"}, [0.1], [1], "one of f1, balanced_accuracy"),
        ({"average": "weighted"}, [0.1], [1], "one of macro, micro"),
        ({"average": "micro"}, [[0.5, 0.5]], [1], 'use average="macro"'),
        ({}, [3.0, 0.5], [1, 0], "look like logits"),
        ({}, [0.3, 0.5], [1, 2], "labels must be 0 and 1"),
        ({}, [0.3, 0.5], [1, 0, 1], "do not fit probabilities"),
        ({}, [1, 0], [1, 0], "expected probabilities"),
        ({}, [0.3, 0.5], [0, 0], "labels 0 are the same in all 2 rows"),
        ({"metric": "balanced_accuracy"}, [0.3, 0.5], [1, 1], "labels 0 are the same"),
        ({"average": "micro"}, [0.3, 0.5], [0, 0], "no row has any label"),
        ({}, [[0.5, 0.5]], [2], "numbered 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, p, labels, words):
    with pytest.raises(DataError, match=words):
        DecisionThresholds(**options).fit(np.array(p), np.array(labels))
    p, labels = multilabel(0)
    with pytest.raises(DataError, match="2 columns do not fit 3 thresholds"):
        DecisionThresholds().fit(p, labels).predict(p[:, :2])

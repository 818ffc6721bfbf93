"""AUROC and AURC: parity with scikit-learn, torchmetrics and the formulas, with ties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import roc_auc_score

from polyfuse.errors import DataError
from polyfuse.metrics import aurc, auroc


def ranks(n, levels, seed):
    """Scores of few levels, so that many are tied, and labels of both classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    return rng.integers(0, levels, n).astype(float), labels


@given(st.integers(2, 60), st.sampled_from([2, 5, 10**6]), st.integers(0, 2**32))
def test_auroc_matches_scikit_learn(n, levels, seed):
    scores, labels = ranks(n, levels, seed)
    expected = roc_auc_score(labels, scores)
    assert auroc(scores, labels).value == pytest.approx(expected, abs=1e-12)
    both = np.stack([-scores, scores], -1)
    assert auroc(both, labels).value == pytest.approx(expected, abs=1e-12)


@given(st.integers(2, 60), st.integers(0, 2**32))
def test_auroc_of_turned_scores_is_the_rest(n, seed):
    scores, labels = ranks(n, 5, seed)
    turned = auroc(-scores, labels).value
    assert auroc(scores, labels).value == pytest.approx(1 - turned, abs=1e-12)


def test_auroc_of_more_classes_is_the_mean_of_one_against_the_rest():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 5
    prediction = special.softmax(rng.normal(0, 1, (90, 5)) + np.eye(5)[labels], -1)
    value = auroc(prediction, labels).value
    theirs = roc_auc_score(labels, prediction, multi_class="ovr", average="macro")
    assert value == pytest.approx(theirs, abs=1e-12)


def test_auroc_of_several_classes_matches_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 5
    prediction = special.softmax(rng.normal(0, 1, (90, 5)) + np.eye(5)[labels], -1)
    value = theirs.multiclass_auroc(torch.from_numpy(prediction), torch.from_numpy(labels), 5)
    assert float(value) == pytest.approx(auroc(prediction, labels).value, abs=1e-6)


def test_auroc_of_labels_is_their_mean():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(0, 1, (50, 3)), rng.integers(0, 2, (50, 3))
    expected = roc_auc_score(labels, scores, average="macro")
    score = auroc(scores, labels)
    assert score.value == pytest.approx(expected, abs=1e-12)
    counts = rng.multinomial(50, np.full(50, 1 / 50), 4)
    for found, row in zip(score.replicates(counts), counts, strict=True):
        drawn = np.repeat(np.arange(50), row)
        again = roc_auc_score(labels[drawn], scores[drawn], average="macro")
        assert found == pytest.approx(again, abs=1e-12)


def test_auroc_without_a_positive_is_undefined():
    assert np.isnan(auroc(np.array([0.1, 0.2]), np.array([0, 0])).value)
    score = auroc(np.array([0.1, 0.2]), np.array([0, 1]))
    found = score.replicates(np.array([[2, 0], [1, 1]]))
    assert np.isnan(found[0])
    assert found[1] == 1


def test_a_class_that_nobody_has_is_left_out():
    prediction = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    labels = np.array([0, 1, 0])
    assert auroc(prediction, labels).value == 1


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]))


def by_threshold(confidence, wrong):
    """AURC as it is defined: the risk at each sample's own threshold, averaged."""
    return np.mean([wrong[confidence >= level].mean() for level in confidence])


@given(st.integers(1, 40), st.sampled_from([3, 1000]), st.integers(0, 2**32))
def test_aurc_matches_its_definition(n, levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, levels + 1, (n, 3)).astype(float)
    prediction, labels = scores / scores.sum(-1, keepdims=True), rng.integers(0, 3, n)
    expected = by_threshold(prediction.max(-1), prediction.argmax(-1) != labels)
    assert aurc(prediction, labels).value == pytest.approx(expected, abs=1e-12)


def test_aurc_without_ties_is_the_mean_risk_over_coverages():
    rng = np.random.default_rng(0)
    prediction, labels = special.softmax(rng.normal(0, 1, (80, 3)), -1), rng.integers(0, 3, 80)
    wrong = (prediction.argmax(-1) != labels)[np.argsort(-prediction.max(-1))]
    expected = (np.cumsum(wrong) / np.arange(1, 81)).mean()
    assert aurc(prediction, labels).value == pytest.approx(expected, abs=1e-12)


def test_aurc_of_confidence_that_knows_nothing_is_the_error():
    labels = np.arange(40) % 4
    prediction = np.full((40, 4), 0.25)
    assert aurc(prediction, labels).value == pytest.approx(0.75, abs=1e-12)

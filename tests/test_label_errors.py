"""Probable label errors: planted flips are found first, members without a say, bad input."""

import csv
import io

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from polyfuse.errors import DataError
from polyfuse.label_errors import LabelError, label_errors_csv, probable_label_errors


def test_planted_flips_on_real_digits_come_first():
    images, truth = load_digits(return_X_y=True)
    draw = np.random.default_rng(0)
    flipped = draw.choice(len(truth), 40, replace=False)
    labels = truth.copy()
    labels[flipped] = (labels[flipped] + draw.integers(1, 10, 40)) % 10
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    models = [
        KNeighborsClassifier(5),
        KNeighborsClassifier(15),
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
    ]
    out_of_fold = [
        cross_val_predict(model, images / 16, labels, cv=folds, method="predict_proba")
        for model in models
    ]
    found = probable_label_errors(out_of_fold, labels)
    first = {error.row: error.suggested for error in found[:40]}
    planted = first.keys() & set(flipped.tolist())
    assert len(planted) >= 35
    assert sum(first[row] == truth[row] for row in planted) >= 34
    assert [error.score for error in found] == sorted((e.score for e in found), reverse=True)


def test_the_score_is_margin_times_agreement():
    p = np.array([[[0.7, 0.2, 0.1]], [[0.6, 0.3, 0.1]], [[0.1, 0.5, 0.4]]])
    (found,) = probable_label_errors(p, np.array([2]))
    margin = (0.7 + 0.6 + 0.1) / 3 - (0.1 + 0.1 + 0.4) / 3
    assert found[:3] == (0, 2, 0)
    assert np.allclose(found[3:], (margin * 2 / 3, margin, 2 / 3, 3))
    assert probable_label_errors(p, np.array([0])) == []


def test_members_without_a_say_do_not_count():
    p = np.full((3, 4, 2), np.nan)
    p[0, :2], p[1, 2:], p[2, 1] = [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]
    found = probable_label_errors(p, np.array([1, 1, 0, 1]))
    assert [(e.row, e.members, e.agreement) for e in found] == [
        (0, 1, 1.0),
        (2, 1, 1.0),
        (1, 2, 0.5),
    ]
    assert probable_label_errors(p, np.array([1, 1, 0, 1]), top=1) == found[:1]
    assert probable_label_errors(p, np.array([1, 1, 0, 1]), least_score=0.5) == found[:2]
    p[1, 3] = np.nan
    with pytest.raises(DataError, match="1 rows are covered by no member, row 3 the first"):
        probable_label_errors(p, np.array([1, 1, 0, 1]))


def test_equals_are_in_the_order_of_rows_and_labels_that_are_right_are_not_listed():
    p = np.tile([[0.9, 0.1]], (2, 5, 1))
    assert [e.row for e in probable_label_errors(p, np.array([1, 0, 1, 0, 1]))] == [0, 2, 4]


def test_csv_with_names():
    found = [LabelError(2, 0, 1, 0.81, 0.9, 0.9, 10), LabelError(0, 1, 0, 0.5, 0.5, 1.0, 10)]
    text = label_errors_csv(found, ids=["a", "b", "c, d"], classes=["no", "yes"])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["id"], r["row"], r["label"], r["suggested"]) for r in rows] == [
        ("c, d", "2", "no", "yes"),
        ("a", "0", "yes", "no"),
    ]
    assert [float(r["score"]) for r in rows] == [0.81, 0.5]
    assert label_errors_csv([]).strip() == "row,label,suggested,score,margin,agreement,members"


@pytest.mark.parametrize(
    ("p", "labels", "words"),
    [
        (np.full((2, 3, 2), 0.5), np.zeros(2, int), "do not fit predictions"),
        (np.full((2, 3, 2), 0.5), np.full(3, 2), "numbered 0 to 1"),
        (np.full((2, 3, 2), 0.5), np.array(["a", "b", "c"]), "np.unique"),
        (np.full((2, 3, 2), 5.0), np.zeros(3, int), "no probabilities"),
        (np.full((2, 3, 2, 2), 0.5), np.zeros(3, int), "one head at a time"),
    ],
)
def test_what_does_not_fit_is_refused(p, labels, words):
    with pytest.raises(DataError, match=words):
        probable_label_errors(p, labels)

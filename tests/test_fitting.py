"""Checks before a fit: all faults at once with the fix, rows that are not covered, the mean."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from polyfuse.calibration import Beta, CalibratedPool, Isotonic, Temperature, Vector
from polyfuse.errors import DataError
from polyfuse.fitting import array_of, held_out, held_out_values, pooled, stacked
from polyfuse.greedy_selection import GreedySelection
from polyfuse.simplex import SimplexWeights
from polyfuse.thresholds import DecisionThresholds

FITTED = [
    GreedySelection,
    SimplexWeights,
    Temperature,
    Vector,
    Beta,
    Isotonic,
    CalibratedPool,
    DecisionThresholds,
]


def drawn(members=3, n=20, classes=4, seed=0):
    draw = np.random.default_rng(seed)
    return draw.dirichlet(np.ones(classes), (members, n)), draw.integers(0, classes, n)


def test_rows_are_kept_as_they_are():
    p, labels = drawn()
    rows = held_out(p, labels)
    assert rows.predictions is p
    assert rows.covered.all()
    assert np.array_equal(rows.gathered(), p[:, np.arange(20), labels] / p.sum(-1))
    assert np.allclose(held_out(p.astype(np.float16), labels).normal().sum(-1), 1, atol=1e-6)


def test_a_sequence_of_tensors_is_a_stack_of_members():
    p, labels = drawn()
    tensors = [torch.tensor(member) for member in p]
    assert np.array_equal(held_out(tensors, torch.tensor(labels)).predictions, p)
    assert array_of(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32


def test_all_faults_are_told_at_once():
    p, labels = drawn()
    p[1] = np.log(p[1])
    p[2] = 3 - 10 * p[2]
    p[0, 3] = np.nan
    labels = labels[:-1].copy()
    labels[0] = 4
    with pytest.raises(DataError) as caught:
        held_out(p, labels)
    said = str(caught.value).splitlines()
    assert said[0] == (
        "labels of shape (19,) do not fit predictions of (20, 4) a member; both need the same "
        "samples in the same order"
    )
    assert "labels from 0 to 4 do not fit 4 classes, which are numbered 0 to 3" in said[1]
    assert said[2].startswith("1 of 20 rows are not covered by every member")
    assert 'uncovered="leave_out"' in said[2]
    assert said[3].startswith("member 1 has no probabilities")
    assert "log-probabilities" in said[3]
    assert "look like logits" in said[4]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, y: (p, y.astype(str)), "labels are <U21, not integers.*np.unique"),
        (lambda p, y: (p, y + 1), "numbered 0 to 3"),
        (lambda p, y: (p, y - 1), "numbered 0 to 3"),
        (lambda p, y: (p[0], y), r"np.stack\(members\)"),
        (lambda p, y: (p.argmax(-1), y), "expected floating predictions"),
        (lambda p, y: ([p[0], p[1, :-1]], y), "members 0 and 1 have predictions of shapes"),
        (lambda p, y: ([], y), "none empty"),
        (lambda p, y: (p * 2, y), "rows that do not sum to 1; divide each row"),
        (lambda p, y: (p * np.nan, y), "none of the 20 rows is covered"),
        (lambda p, y: (np.where(p > 0.5, np.inf, p), y), "no probabilities"),
        (lambda p, y: (np.stack([p[0] * 9] * 8), y), "and 3 more members"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(change, words):
    with pytest.raises(DataError, match=words):
        held_out(*change(*drawn()))


def test_uncovered_rows_are_left_out_on_request_alone():
    p, labels = drawn()
    p[2, :5] = np.nan
    with pytest.raises(DataError, match="5 of 20 rows"):
        held_out(p, labels)
    rows = held_out(p, labels, uncovered="leave_out")
    assert np.array_equal(rows.labels, labels[5:])
    assert np.array_equal(np.flatnonzero(~rows.covered), np.arange(5))
    with pytest.raises(DataError, match="did you mean 'leave_out'"):
        held_out(p, labels, uncovered="leaveout")


def test_logits_may_hold_minus_infinity_and_no_more():
    z = np.zeros((1, 3, 2))
    z[0, 0, 0] = -np.inf
    assert held_out(z, np.zeros(3, int), space="logit").covered.all()
    for bad in ([np.inf, 0], [-np.inf, -np.inf]):
        z[0, 1] = bad
        with pytest.raises(DataError, match="members 0 have logits of"):
            held_out(z, np.zeros(3, int), space="logit")


def test_values_are_checked():
    assert held_out_values(np.ones((2, 3, 2)), np.ones((3, 2))).predictions.shape == (2, 3, 2)
    faults = [
        (np.ones((2, 3)), np.ones(4), "targets of shape"),
        (np.ones((2, 3)), np.array([1, np.nan, 0]), "finite"),
        (np.array([[1.0, np.nan]]), np.ones(2), "1 of 2 rows"),
        (np.array([[1.0, np.inf]]), np.ones(2), "members 0 predict infinite"),
        (np.ones(3), np.ones(3), r"\(member, sample\)"),
    ]
    for predictions, targets, words in faults:
        with pytest.raises(DataError, match=words):
            held_out_values(predictions, targets)


def test_the_mean_leaves_out_members_that_have_no_say():
    p, _ = drawn()
    p[0, 0] = np.nan
    p[:, 1] = np.nan
    weights = np.array([0.5, 0.3, 0.2])
    mean = pooled(p, weights)
    assert np.allclose(mean[0], (0.3 * p[1, 0] + 0.2 * p[2, 0]) / 0.5)
    assert np.isnan(mean[1]).all()
    assert np.allclose(mean[2:], np.tensordot(weights, p[:, 2:], 1))
    p[2] = 7.0  # of no weight: not looked at
    assert np.isfinite(pooled(p, np.array([0.5, 0.5, 0.0]))[2:]).all()
    with pytest.raises(DataError, match="do not fit 2 weights"):
        pooled(p, np.ones(2))
    with pytest.raises(DataError, match="4 classes do not fit weights of 3"):
        pooled(p, np.ones((3, 3)))
    assert stacked(p).shape == p.shape


@pytest.mark.parametrize("kind", FITTED)
def test_scikit_learn_clones_what_is_fitted(kind):
    fresh = kind()
    name = "uncovered"
    assert clone(fresh).get_params() == fresh.get_params()
    changed = clone(fresh.set_params(uncovered="leave_out"))
    assert changed is not fresh
    assert changed.get_params()[name] == "leave_out"
    assert "uncovered='leave_out'" in repr(changed)
    with pytest.raises(DataError, match="did you mean 'uncovered'"):
        fresh.set_params(uncoverd="error")


@pytest.mark.parametrize("kind", FITTED)
def test_nothing_is_said_before_it_is_fitted(kind):
    p, _ = drawn()
    thresholds = kind is DecisionThresholds
    with pytest.raises(DataError, match=f"this {kind.__name__} is not fitted: call fit"):
        kind().predict(p[0]) if thresholds else kind().predict_proba(p)

"""Calibration: parity with SciPy and scikit-learn, never worse than before, pools, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from polyfuse import metrics
from polyfuse.calibration import CALIBRATORS, Beta, CalibratedPool, Isotonic, Temperature, Vector
from polyfuse.calibration.base import chunks
from polyfuse.errors import DataError


def drawn(seed, n=300, classes=3, scale=2.0, members=None):
    """Labels drawn from softmax(z), and the logits that a member says: scale * z."""
    draw = np.random.default_rng(seed)
    z = 1.5 * draw.normal(size=(n, classes))
    labels = (draw.random((n, 1)) > softmax(z, -1).cumsum(-1)).sum(-1).clip(0, classes - 1)
    if members is None:
        return scale * z, labels
    return scale * (z + draw.normal(size=(members, n, classes))), labels


def loss(p, labels):
    return metrics.nll(p, labels).value


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_the_temperature_is_scipys(scale, seed):
    z, labels = drawn(seed, scale=scale)
    ours = Temperature().fit(z, labels)

    def by_inverse(beta):
        return -log_softmax(beta * z, -1)[np.arange(300), labels].mean()

    theirs = minimize_scalar(
        by_inverse, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-10}
    )
    assert np.isclose(1 / ours.temperature_, theirs.x, rtol=1e-6)
    assert by_inverse(1 / ours.temperature_) <= theirs.fun + 1e-14
    assert np.allclose(ours.predict_proba(z), softmax(z / ours.temperature_, -1), atol=1e-15)


def test_the_temperature_that_the_labels_were_drawn_with():
    z, labels = drawn(0, n=60_000, scale=2.5)
    assert np.isclose(Temperature().fit(z, labels).temperature_, 2.5, rtol=0.03)


def test_logits_log_probabilities_and_probabilities_are_one():
    z, labels = drawn(1)
    by_logits = Temperature().fit(z, labels)
    assert np.isclose(
        Temperature().fit(log_softmax(z, -1), labels).temperature_, by_logits.temperature_
    )
    by_p = Temperature(space="prob").fit(softmax(z, -1), labels)
    assert np.isclose(by_p.temperature_, by_logits.temperature_)
    assert np.allclose(by_p.predict_proba(softmax(z, -1)), by_logits.predict_proba(z))
    tensors = Temperature().fit(torch.tensor(z), torch.tensor(labels))
    assert tensors.temperature_ == by_logits.temperature_


def test_a_minimum_at_the_end_gives_the_bound():
    z, _ = drawn(2)
    assert Temperature().fit(z, z.argmax(-1)).temperature_ == pytest.approx(0.01)
    assert Temperature().fit(z, z.argmin(-1)).temperature_ == pytest.approx(100)
    assert Temperature(bounds=(0.5, 2)).fit(z, z.argmin(-1)).temperature_ == pytest.approx(2)
    with pytest.raises(DataError, match="0 < low < high"):
        Temperature(bounds=(0, 1)).fit(z, z.argmin(-1))


@pytest.mark.parametrize("space", ["logit", "prob"])
def test_impossible_classes(space):
    z, labels = drawn(3)
    masked = z.copy()
    masked[np.arange(300), (labels + 1) % 3] = -np.inf
    scores = masked if space == "logit" else softmax(masked, -1)
    ours = Temperature(space=space).fit(scores, labels)
    kept = np.stack([z[np.arange(300), labels], z[np.arange(300), (labels + 2) % 3]], -1)
    plain = Temperature().fit(kept, np.zeros(300, int))
    assert np.isclose(ours.temperature_, plain.temperature_)
    assert (ours.predict_proba(scores)[np.arange(300), (labels + 1) % 3] < 1e-3).all()
    # A true class of probability zero is a finite loss, and is made possible.
    scores[0] = [0.0, -np.inf, -np.inf] if space == "logit" else [1.0, 0.0, 0.0]
    labels = labels.copy()
    labels[0] = 1
    shaken = Temperature(space=space).fit(scores, labels)
    assert plain.temperature_ < shaken.temperature_ < 100
    assert 0 < shaken.predict_proba(scores)[0, 1] < 1e-3


@pytest.mark.parametrize("method", CALIBRATORS)
@pytest.mark.parametrize("classes", [2, 3])
@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 3.0]))
def test_never_worse_than_before_on_the_fitting_rows(method, classes, seed, scale):
    z, labels = drawn(seed, n=80, classes=classes, scale=scale)
    p = CALIBRATORS[method](space="logit").fit(z, labels).predict_proba(z)
    assert np.allclose(p.sum(-1), 1)
    assert (p >= 0).all()
    if classes == 2 or method in ("temperature", "vector"):
        assert loss(p, labels) <= loss(softmax(z, -1), labels) + 1e-9


@pytest.mark.parametrize("method", CALIBRATORS)
def test_over_confident_members_are_better_on_fresh_rows(method):
    z, labels = drawn(4, n=6000, classes=2, scale=4.0)
    fitted = CALIBRATORS[method](space="logit").fit(z[:3000], labels[:3000])
    before, after = softmax(z[3000:], -1), fitted.predict_proba(z[3000:])
    assert metrics.METRICS["nll"](after, labels[3000:]).value < loss(before, labels[3000:]) - 0.05
    assert np.allclose(after[:, 1].mean(), labels[3000:].mean(), atol=0.03)


def test_vector_scaling_is_scipys():
    z, labels = drawn(5)
    ours = Vector(l2=1e-3).fit(z, labels)

    def whole(x):
        a, b = x[:3], x[3:]
        away = ((a - 1) ** 2).sum() + (b**2).sum()
        return -log_softmax(a * z + b, -1)[np.arange(300), labels].mean() + 1e-3 * away

    theirs = minimize(whole, [1, 1, 1, 0, 0, 0], method="BFGS", options={"gtol": 1e-9})
    assert np.allclose(np.append(ours.factors_, ours.offsets_), theirs.x, atol=1e-4)
    with pytest.raises(DataError, match="l2=-1"):
        Vector(l2=-1).fit(z, labels)


def test_beta_is_a_logistic_regression_of_two_logarithms():
    z, labels = drawn(6, n=2000, classes=2, scale=2.0)
    p = softmax(z, -1)[:, 1]
    features = np.stack([np.log(p), -np.log(1 - p)], -1)
    theirs = LogisticRegression(C=1e9, tol=1e-9, max_iter=1000).fit(features, labels)
    ours = Beta(space="logit").fit(z, labels)
    assert (theirs.coef_ > 0).all()
    expected = [*theirs.coef_[0], theirs.intercept_[0]]
    assert np.allclose(ours.coefficients_[0], expected, atol=2e-3)
    assert np.allclose(ours.predict_proba(z), theirs.predict_proba(features), atol=1e-4)


def test_beta_never_falls():
    """Against the labels the curve would fall: the bounds make it level instead."""
    z, labels = drawn(7, n=500, classes=2)
    ours = Beta(space="logit").fit(z, 1 - labels)
    assert (ours.coefficients_[0, :2] >= 0).all()
    order = np.argsort(z[:, 1] - z[:, 0])
    assert (np.diff(ours.predict_proba(z)[order, 1]) >= -1e-12).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_isotonic_is_scikit_learns(classes):
    z, labels = drawn(8, n=400, classes=classes)
    p, fresh = softmax(z[:300], -1), softmax(z[300:], -1)
    ours = Isotonic().fit(p, labels[:300]).predict_proba(fresh)
    each = np.stack(
        [
            IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1)
            .fit(p[:, k], labels[:300] == k)
            .predict(fresh[:, k])
            for k in range(classes)
        ],
        -1,
    )
    if classes == 2:
        assert np.allclose(ours[:, 1], each[:, 1])
    else:
        total = each.sum(-1, keepdims=True)
        assert np.allclose(ours, np.where(total > 0, each / np.maximum(total, 1e-300), 1 / classes))


def test_a_pool_of_well_calibrated_members_is_sharpened():
    """Each member is calibrated; their mean is under-confident (Rahaman and Thiery 2021)."""
    z, labels = drawn(9, n=4000, members=8, scale=1.0)
    p = softmax(z, -1)
    p = np.stack([Temperature(space="prob").fit(m, labels).predict_proba(m) for m in p])
    ours = CalibratedPool().fit(p[:, :2000], labels[:2000])
    assert ours.calibrators_[0].temperature_ < 0.9
    before, after = p[:, 2000:].mean(0), ours.predict_proba(p[:, 2000:])
    assert loss(after, labels[2000:]) < loss(before, labels[2000:]) - 0.01


def test_pool_then_calibrate_beats_calibrate_then_pool():
    z, labels = drawn(10, n=4000, members=6, scale=3.0)
    p = softmax(z, -1)
    scores = {}
    for per_member in (False, True):
        ours = CalibratedPool(per_member=per_member).fit(p[:, :2000], labels[:2000])
        assert len(ours.calibrators_) == (6 if per_member else 1)
        scores[per_member] = loss(ours.predict_proba(p[:, 2000:]), labels[2000:])
    assert scores[False] < scores[True] < loss(p[:, 2000:].mean(0), labels[2000:])


@pytest.mark.parametrize("method", CALIBRATORS)
@pytest.mark.parametrize("per_member", [False, True])
def test_every_method_calibrates_a_pool(method, per_member):
    z, labels = drawn(11, members=3)
    p = softmax(z, -1)
    weights = [0.7, 0.3, 0.0]
    pool = CalibratedPool(method=method, per_member=per_member, weights=weights)
    ours = pool.fit(p, labels).predict_proba(p)
    assert np.allclose(ours.sum(-1), 1)
    gaps = p.copy()
    gaps[1, :9] = np.nan
    assert np.allclose(pool.predict_proba(gaps)[9:], ours[9:])
    assert np.isfinite(pool.predict_proba(gaps)).all()
    left = CalibratedPool(method=method, per_member=per_member, uncovered="leave_out")
    assert np.isfinite(left.fit(gaps, labels).predict_proba(p)).all()
    if per_member:
        assert pool.calibrators_[2] is None


def test_heads_count_as_rows():
    z, labels = drawn(12)
    flat = Temperature().fit(z, labels)
    heads = Temperature().fit(z.reshape(100, 3, 3), labels.reshape(100, 3))
    assert np.isclose(flat.temperature_, heads.temperature_)
    for method in CALIBRATORS.values():
        fitted = method(space="logit").fit(z.reshape(100, 3, 3), labels.reshape(100, 3))
        assert fitted.predict_proba(z.reshape(100, 3, 3)).shape == (100, 3, 3)


def test_chunks_change_nothing(monkeypatch):
    z, labels = drawn(13)
    before = Temperature().fit(z, labels).temperature_
    monkeypatch.setattr("polyfuse.calibration.base._CHUNK", 21)
    assert [len(y) for _, y in chunks(z[:16], labels[:16])] == [7, 7, 2]
    assert np.isclose(Temperature().fit(z, labels).temperature_, before, rtol=1e-12)


@pytest.mark.parametrize("method", CALIBRATORS.values())
def test_bad_input_is_refused_with_the_fix(method):
    z, labels = drawn(14)
    p = softmax(z, -1)
    gaps = p.copy()
    gaps[0] = np.nan
    with pytest.raises(DataError, match="look like logits"):
        method(space="prob").fit(z, labels)
    with pytest.raises(DataError, match="1 of 300 rows"):
        method(space="prob").fit(gaps, labels)
    left = method(space="prob", uncovered="leave_out").fit(gaps, labels)
    assert np.isnan(left.predict_proba(gaps)[0]).all()
    assert np.isfinite(left.predict_proba(gaps)[1:]).all()
    with pytest.raises(DataError, match="numbered 0 to 2"):
        method(space="prob").fit(p, labels + 1)
    with pytest.raises(DataError, match="look like logits"):
        left.predict_proba(z)
    if method is not Temperature:  # which fits any number of classes
        with pytest.raises(DataError, match="2 classes do not fit"):
            method(space="logit").fit(z, labels).predict_proba(z[:, :2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "platt"}, "one of temperature, vector, beta, isotonic"),
        ({"weights": [1.0, -1.0, 1.0]}, "not negative"),
        ({"weights": [1.0, 1.0]}, "do not fit 2 weights"),
    ],
)
def test_pools_that_make_no_sense_are_refused(options, words):
    z, labels = drawn(15, members=3)
    with pytest.raises(DataError, match=words):
        CalibratedPool(**options).fit(softmax(z, -1), labels)

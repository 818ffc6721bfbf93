"""Weights on the simplex: optimality by KKT, known solutions, regularisation, classes, no leak."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse import metrics
from polyfuse.errors import DataError
from polyfuse.simplex import SimplexWeights, score_weights


def drawn(seed, members=5, n=80, classes=3):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    z = draw.normal(size=(members, n, classes)) + draw.normal(size=(n, classes))
    z[:, np.arange(n), labels] += draw.uniform(0, 2, (members, 1))
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True), labels


def value(loss, w, p, labels):
    mean = np.tensordot(w, p, 1)
    if loss == "mse":
        return ((mean - labels) ** 2).mean()
    if loss == "nll":
        return -np.log(mean[np.arange(len(labels)), labels]).mean()
    return ((mean - np.eye(p.shape[-1])[labels]) ** 2).sum(-1).mean()


def whole(loss, w, p, labels, l2, entropy):
    count = len(w)
    logs = np.log(np.maximum(w * count, 1e-300))
    return (
        value(loss, w, p, labels) + l2 * ((w - 1 / count) ** 2).sum() + entropy * (w * logs).sum()
    )


def slopes(loss, w, p, labels, l2, entropy):
    """Derivatives of the whole loss by central differences."""
    steps = 1e-6 * np.eye(len(w))
    up, down = ([whole(loss, w + s * d, p, labels, l2, entropy) for d in steps] for s in (1, -1))
    return (np.array(up) - np.array(down)) / 2e-6


def case(loss, seed):
    p, labels = drawn(seed)
    if loss == "mse":
        draw = np.random.default_rng(seed)
        labels = draw.normal(size=80)
        p = labels + draw.normal(size=(5, 80)) * draw.uniform(0.2, 2, (5, 1)) + 0.1
    return p, labels


@pytest.mark.parametrize("l2", [0, 0.1])
@pytest.mark.parametrize("entropy", [0, 0.02])
@pytest.mark.parametrize("loss", ["nll", "brier", "mse"])
@settings(max_examples=6)
@given(st.integers(0, 10**6))
def test_the_weights_are_optimal(loss, l2, entropy, seed):
    """Karush, Kuhn and Tucker: equal slopes where a weight is, none lower where it is not."""
    p, labels = case(loss, seed)
    fitted = SimplexWeights(loss=loss, l2=l2, entropy=entropy).fit(p, labels)
    w = fitted.weights_
    assert (w >= 0).all()
    assert np.isclose(w.sum(), 1)
    assert np.isclose(fitted.loss_, value(loss, w, p, labels))
    slope = slopes(loss, np.maximum(w, 2e-6), p, labels, l2, entropy)
    near = 2e-3 if entropy else 1e-4  # differences of a logarithm near 0 are rough
    assert w @ slope - slope.min() < near * max(1, abs(slope).max())
    assert fitted.gap_ < 1e-5
    draw = np.random.default_rng(seed)
    best = whole(loss, w, p, labels, l2, entropy)
    for other in [*np.eye(5), np.full(5, 0.2), *draw.dirichlet(np.ones(5), 20)]:
        assert best <= whole(loss, other, p, labels, l2, entropy) + 1e-7


def test_never_worse_than_the_best_single_or_the_plain_mean():
    for seed in range(10):
        p, labels = drawn(seed)
        fitted = SimplexWeights().fit(p, labels)
        singles = [value("nll", w, p, labels) for w in np.eye(5)]
        assert fitted.loss_ <= min(singles) + 1e-9
        assert fitted.loss_ <= value("nll", np.full(5, 0.2), p, labels) + 1e-9


def test_two_unbiased_estimates_are_weighted_by_their_precision():
    """Minimum variance: weights in the ratio of the inverse variances (Bates and Granger 1969)."""
    draw = np.random.default_rng(0)
    truth = draw.normal(size=200_000)
    values = truth + draw.normal(size=(2, 200_000)) * [[1.0], [2.0]]
    fitted = SimplexWeights(loss="mse").fit(values, truth)
    assert np.allclose(fitted.weights_, [0.8, 0.2], atol=0.01)
    assert np.allclose(fitted.predict(values), fitted.weights_ @ values)
    with pytest.raises(DataError, match=r"call predict\(\)"):
        fitted.predict_proba(values)


def test_a_mixture_is_recovered_by_its_likelihood():
    draw = np.random.default_rng(1)
    p = draw.dirichlet(np.full(4, 0.5), (3, 40_000))
    weights = np.array([0.6, 0.3, 0.1])
    mixed = np.tensordot(weights, p, 1)
    labels = (draw.random((40_000, 1)) > mixed.cumsum(-1)).sum(-1).clip(0, 3)
    assert np.allclose(SimplexWeights().fit(p, labels).weights_, weights, atol=0.02)


def test_regularisation_pulls_to_equal_weights():
    p, labels = drawn(2)
    free = SimplexWeights().fit(p, labels).weights_
    assert (free == 0).any()
    for name in ("l2", "entropy"):
        spread = [
            np.ptp(SimplexWeights(**{name: strength}).fit(p, labels).weights_)
            for strength in (0.0, 0.05, 0.5, 1e4)
        ]
        assert spread == sorted(spread, reverse=True)
        assert spread[-1] < 1e-3
    assert (SimplexWeights(entropy=0.1).fit(p, labels).weights_ > 0).all()


@pytest.mark.parametrize("loss", ["nll", "brier"])
def test_each_class_has_its_own_weights(loss):
    """Members that know one class each: each class follows the member that knows it."""
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 3, 600)
    p = np.full((3, 600, 3), 1 / 3)
    for k in range(3):
        own = 0.9 * (labels == k) + 0.05
        p[k] = (1 - own[:, None]) / 2
        p[k, :, k] = own
    fitted = SimplexWeights(loss=loss, per_class=True).fit(p, labels)
    assert fitted.weights_.shape == (3, 3)
    assert np.allclose(fitted.weights_.sum(0), 1)
    assert (fitted.weights_.argmax(0) == np.arange(3)).all()
    shared = SimplexWeights(loss=loss).fit(p, labels)
    mine, plain = fitted.predict_proba(p), shared.predict_proba(p)
    assert np.allclose(mine.sum(-1), 1)
    assert metrics.nll(mine, labels).value < metrics.nll(plain, labels).value - 0.05
    if loss == "brier":  # the sum over classes of one against the rest, before the division
        raw = np.stack([p[:, :, k].T @ fitted.weights_[:, k] for k in range(3)], -1)
        assert np.isclose(fitted.loss_, ((raw - np.eye(3)[labels]) ** 2).sum(-1).mean())


def test_heads_count_as_rows_and_uncovered_rows_are_left_out():
    p, labels = drawn(4, n=60)
    flat = SimplexWeights().fit(p, labels)
    heads = SimplexWeights().fit(p.reshape(5, 20, 3, 3), labels.reshape(20, 3))
    assert np.allclose(flat.weights_, heads.weights_)
    gaps = p.copy()
    gaps[1, :9] = np.nan
    left = SimplexWeights(uncovered="leave_out").fit(gaps, labels)
    assert np.allclose(left.weights_, SimplexWeights().fit(p[:, 9:], labels[9:]).weights_)
    with pytest.raises(DataError, match="9 of 60 rows"):
        SimplexWeights().fit(gaps, labels)
    assert left.predict(p).shape == (60,)


def test_certain_and_wrong_members_have_a_finite_loss():
    labels = np.array([0, 1, 0, 1])
    wrong, right = np.eye(2)[1 - labels], np.full((4, 2), 0.5)
    fitted = SimplexWeights().fit([wrong, right], labels)
    assert np.allclose(fitted.weights_, [0, 1], atol=1e-6)
    assert np.isfinite(SimplexWeights().fit([wrong], labels).loss_)


def test_noise_is_not_learned():
    """Pure-noise labels: the weighted mean is at chance on fresh rows."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(4), (30, 4000))
    labels = draw.integers(0, 4, 4000)
    for loss in ("nll", "brier"):
        fitted = SimplexWeights(loss=loss).fit(p[:, :400], labels[:400])
        said = fitted.predict_proba(p[:, 400:])
        on_fresh = metrics.accuracy(said, labels[400:]).value
        assert abs(on_fresh - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 3600)
        assert metrics.nll(said, labels[400:]).value > np.log(4) - 0.01


def test_weights_from_scores():
    scores = np.array([[0.9, 0.8, 0.7], [0.8, 0.9, 0.7]])
    weights = score_weights(scores, temperature=0.05)
    assert np.allclose(weights, np.exp([3, 3, 0]) / np.exp([3, 3, 0]).sum())
    losses = score_weights(-scores, temperature=0.05, higher_is_better=False)
    assert np.array_equal(weights, losses)
    assert np.allclose(score_weights([1.0, 2.0], temperature=np.inf), 0.5)
    assert np.allclose(score_weights([1.0, 2.0], temperature=1e-9), [0, 1])
    for bad in ([], [np.nan, 1.0], np.ones((1, 1, 1))):
        with pytest.raises(DataError, match="finite scores"):
            score_weights(bad, temperature=1)
    with pytest.raises(DataError, match="greater than 0"):
        score_weights([1.0], temperature=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "log_loss"}, "one of nll, brier, mse"),
        ({"l2": -1}, "not negative"),
        ({"entropy": np.nan}, "not negative"),
        ({"loss": "mse", "per_class": True}, "has none: leave it out"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(DataError, match=words):
        SimplexWeights(**options).fit(*drawn(0))


def test_weights_in_proportion_to_scores_or_against_losses():
    scores = np.array([[0.9, 0.6, 0.3], [0.7, 0.6, 0.1]])
    means = np.array([0.8, 0.6, 0.2])
    for power in (0, 1, 2.5):
        assert np.allclose(score_weights(scores, power=power), means**power / (means**power).sum())
        against = means**-power / (means**-power).sum()
        assert np.allclose(score_weights(scores, power=power, higher_is_better=False), against)
    for bad, told in [
        ({}, "either temperature= or power="),
        ({"power": 1, "temperature": 1}, "either temperature= or power="),
        ({"power": -1}, "power=-1 must be finite"),
        ({"power": np.nan}, "power=nan must be finite"),
    ]:
        with pytest.raises(DataError, match=told):
            score_weights(scores, **bad)
    with pytest.raises(DataError, match=r"the lowest score is -0\.1, and power= needs"):
        score_weights([0.5, -0.1], power=1)

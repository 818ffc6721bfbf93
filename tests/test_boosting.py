"""Boosting's arithmetic: against scikit-learn's AdaBoost, and against formulas in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.datasets import make_classification
from sklearn.ensemble import AdaBoostClassifier
from sklearn.tree import DecisionTreeClassifier
from torch.nn import functional

from polyfuse import boosting
from polyfuse.boosting import (
    line_search,
    pseudo_residuals,
    samme_decision,
    samme_r_round,
    samme_round,
    soft_boosting_loss,
    squared_error,
)
from polyfuse.combine import boosted_vote, mean_logit
from polyfuse.errors import TrainingError


def some_rows(classes, rows=160):
    return make_classification(
        rows, 8, n_informative=6, n_classes=classes, n_clusters_per_class=1, flip_y=0.15,
        random_state=classes,
    )  # fmt: skip


def boost(inputs, labels, *, rounds, classes, learning_rate, depth):
    """SAMME with trees by our functions: (trees, errors, weights), as scikit-learn keeps them."""
    weights, trees, errors, votes = np.full(len(labels), 1 / len(labels)), [], [], []
    for number in range(rounds):
        tree = DecisionTreeClassifier(max_depth=depth, random_state=0)
        tree.fit(inputs, labels, sample_weight=weights)
        said = samme_round(
            tree.predict(inputs) != labels,
            weights,
            classes=classes,
            learning_rate=learning_rate,
            last=number == rounds - 1,
        )
        if not said.weight:
            break
        trees.append(tree)
        errors.append(said.error)
        votes.append(said.weight)
        if said.ended:
            break
        weights = said.weights
    return trees, np.array(errors), np.array(votes)


@pytest.mark.parametrize("learning_rate", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("classes", "depth"), [(2, 1), (3, 1), (10, 3)])
def test_samme_is_that_of_scikit_learn(classes, depth, learning_rate):
    inputs, labels = some_rows(classes)
    theirs = AdaBoostClassifier(
        DecisionTreeClassifier(max_depth=depth),
        n_estimators=12,
        learning_rate=learning_rate,
        random_state=0,
    )
    # Our trees must be theirs, which draw a random state each: no feature is chosen at random, so
    # only ties could tell them apart, and these data have none.
    theirs.fit(inputs, labels)
    trees, errors, votes = boost(
        inputs, labels, rounds=12, classes=classes, learning_rate=learning_rate, depth=depth
    )
    assert len(trees) == len(theirs.estimators_) >= 2
    np.testing.assert_allclose(errors, theirs.estimator_errors_[: len(errors)], atol=1e-6)
    np.testing.assert_allclose(votes, theirs.estimator_weights_[: len(votes)], atol=1e-6)
    decided = np.stack([tree.predict(inputs) for tree in trees])
    decision = samme_decision(decided, votes, classes=classes)
    expected = theirs.decision_function(inputs)
    if classes == 2:
        expected = np.stack([-expected, expected], -1) / 2
    np.testing.assert_allclose(decision, expected, atol=1e-6)
    as_logits = np.eye(classes)[decided]
    np.testing.assert_allclose(
        boosted_vote(as_logits, weights=votes), theirs.predict_proba(inputs), atol=1e-6
    )


def test_samme_stops_at_a_perfect_member_as_scikit_learn_does():
    inputs, labels = some_rows(3)
    theirs = AdaBoostClassifier(DecisionTreeClassifier(), n_estimators=5, random_state=0)
    theirs.fit(inputs, labels)
    _, errors, votes = boost(inputs, labels, rounds=5, classes=3, learning_rate=1.0, depth=None)
    assert errors.tolist() == [0.0] == theirs.estimator_errors_[:1].tolist()
    assert votes.tolist() == [1.0] == theirs.estimator_weights_[:1].tolist()
    assert len(theirs.estimators_) == 1


@pytest.mark.parametrize("classes", [2, 5])
def test_a_member_no_better_than_guessing_is_dropped(classes):
    wrong = np.arange(classes) > 0  # right once in K: exactly guessing
    said = samme_round(wrong, np.full(classes, 1 / classes), classes=classes)
    assert said.weight == 0
    assert f"guessing among {classes} classes" in said.ended
    better = np.array([0.5 / classes, *[0] * (classes - 1)])
    assert samme_round(wrong, (1 - better.sum()) / classes + better, classes=classes).weight > 0


@settings(max_examples=25)
@given(
    wrong=st.lists(st.booleans(), min_size=3, max_size=12).filter(
        lambda w: 0 < sum(w) < len(w) / 2
    ),
    rate=st.floats(0.1, 3),
    seed=st.integers(0, 9),
)
def test_wrong_rows_weigh_exp_a_times_as_much_against_the_others(wrong, rate, seed):
    wrong = np.array(wrong)
    weights = np.full(len(wrong), 1 / len(wrong))
    said = samme_round(wrong, weights, classes=2, learning_rate=rate)
    assert said.weights.sum() == pytest.approx(1)
    ratio = said.weights[wrong].max() / said.weights[~wrong].min()
    assert ratio == pytest.approx(np.exp(said.weight))
    if rate == 1:  # the member is then worth nothing on the new weights
        assert said.weights[wrong].sum() == pytest.approx(0.5)


def test_the_last_round_leaves_the_weights_alone():
    weights = np.array([0.2, 0.3, 0.5])
    wrong = np.array([True, False, False])
    assert samme_round(wrong, weights, classes=2, last=True).weights is weights
    assert (samme_round(wrong, weights, classes=2).weights != weights).all()


def test_weights_stay_above_epsilon_and_zeros_stay_zeros():
    weights = np.array([0.0, 1e-16, 0.3, 0.7])
    said = samme_round(np.array([True, False, True, False]), weights, classes=2)
    assert said.weights[0] == 0
    assert said.weights[1] == np.finfo(float).eps


def test_a_large_learning_rate_does_not_overflow():
    wrong = np.arange(1000) < 1
    said = samme_round(wrong, np.full(1000, 1e-3), classes=2, learning_rate=500.0)
    assert np.isfinite(said.weights).all()
    assert said.weights[0] == pytest.approx(1)


@pytest.mark.parametrize("rate", [0.0, -1.0, np.inf, np.nan])
def test_a_learning_rate_that_is_none_is_refused(rate):
    with pytest.raises(TrainingError, match=r"learning_rate=.*above 0"):
        samme_round(np.array([True, False]), np.full(2, 0.5), classes=2, learning_rate=rate)
    with pytest.raises(TrainingError, match=r"learning_rate=.*above 0"):
        samme_r_round(np.full((2, 2), 0.5), np.array([0, 1]), np.full(2, 0.5), learning_rate=rate)


def test_one_class_is_nothing_to_boost():
    with pytest.raises(TrainingError, match="1 classes; boosting needs two or more"):
        samme_round(np.array([True]), np.ones(1), classes=1)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_samme_r_is_its_formula(classes, rate):
    draw = np.random.default_rng(classes)
    p = special.softmax(draw.normal(size=(3, 40, classes)), -1)
    labels = draw.integers(0, classes, 40)
    weights = expected = np.full(40, 1 / 40)
    for said in p:
        result = samme_r_round(said, labels, weights, learning_rate=rate)
        weights = result.weights
        coded = np.where(np.eye(classes)[labels] == 1, 1.0, -1 / (classes - 1))
        exponent = -rate * ((classes - 1) / classes) * special.xlogy(coded, said).sum(1)
        wrong = said.argmax(1) != labels
        assert result.error == pytest.approx((expected * wrong).sum(), abs=1e-12)
        assert result.weight == 1
        expected = expected * np.exp(exponent)
        expected = expected / expected.sum()
        np.testing.assert_allclose(weights, expected, atol=1e-12)
    # Its score is h = (K-1)(ln p - mean ln p); the softmax of h over M and K-1 is a mean logit.
    logs = np.log(p)
    decision = ((classes - 1) * (logs - logs.mean(-1, keepdims=True))).mean(0)
    scores = special.softmax(decision / (classes - 1), -1)
    np.testing.assert_allclose(mean_logit(p, space="prob"), scores, atol=1e-12)


def test_samme_r_holds_back_nets_that_are_all_but_sure():
    p = np.array([[1.0, 0.0], [1.0, 0.0], *[[0.0, 1.0]] * 998])
    labels = np.array([0, *[1] * 999])
    said = samme_r_round(p, labels, np.full(1000, 1e-3))
    assert np.isfinite(said.weights).all()
    # Row 1 alone is wrong: without the cap it would have all the weight.
    assert 0.5 < said.weights[1] / said.weights.max() <= 1
    assert said.weights[1] == pytest.approx(
        0.1 / (0.1 + said.weights[0] / said.weights[1] * 0.1 * 999)
    )
    assert said.weights[0] > 0


def test_samme_r_ends_with_a_perfect_member():
    said = samme_r_round(np.eye(3), np.arange(3), np.full(3, 1 / 3))
    assert (said.weight, said.ended) == (1.0, boosting.PERFECT)


# Gradient boosting ------------------------------------------------------------------------------


def losses():
    labels = torch.tensor([2, 0, 2, 5])
    return {
        "cross_entropy": (
            lambda z: functional.cross_entropy(z, labels),
            lambda z: np.eye(7)[labels] - special.softmax(z, -1),
        ),
        "smoothed": (
            lambda z: functional.cross_entropy(z, labels, label_smoothing=0.1),
            lambda z: 0.9 * np.eye(7)[labels] + 0.1 / 7 - special.softmax(z, -1),
        ),
        "squared": (lambda z: squared_error(z, torch.ones_like(z)), lambda z: -2 * (z - 1)),
        "absolute": (
            lambda z: (z - 1).abs().sum(1).mean(),
            lambda z: -np.sign(z - 1),
        ),
    }


@pytest.mark.parametrize("name", losses())
def test_residuals_are_minus_the_derivative_of_each_samples_loss(name):
    loss, formula = losses()[name]
    outputs = torch.randn(4, 7, dtype=torch.float64)
    np.testing.assert_allclose(
        pseudo_residuals(loss, outputs), formula(outputs.numpy()), atol=1e-12
    )


def test_residuals_are_mere_numbers():
    outputs = torch.randn(4, 7, requires_grad=True)
    found = pseudo_residuals(losses()["cross_entropy"][0], outputs * 2)
    assert not found.requires_grad
    assert outputs.grad is None


def test_a_loss_without_a_derivative_is_refused():
    with pytest.raises(TrainingError, match="no derivative by the outputs"):
        pseudo_residuals(lambda z: (z.argmax(-1) == 1).float().mean(), torch.randn(4, 7))
    with pytest.raises(TrainingError, match="is NaN or infinite"):
        pseudo_residuals(lambda z: z.sqrt().mean(), torch.zeros(2, 2))


@settings(max_examples=25)
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 30))
def test_the_step_is_where_the_loss_is_least(seed, scale):
    draw = torch.Generator().manual_seed(seed)
    outputs = torch.randn(20, 3, dtype=torch.float64, generator=draw)
    labels = torch.randint(3, (20,), generator=draw)
    change = scale * (torch.randn(20, 3, dtype=torch.float64, generator=draw) + 1)

    def loss(z):
        return functional.cross_entropy(z, labels)

    def along(step):
        return float(loss(outputs + step * change))

    best = optimize.minimize_scalar(along, bounds=(0, 10), method="bounded")
    step = line_search(loss, outputs, change)
    assert 0 <= step <= 10
    assert along(step) <= min(along(0.0), float(best.fun)) + 1e-9
    if 1e-3 < best.x < 9.99:
        assert step == pytest.approx(best.x, rel=1e-2)


def test_the_step_ends_where_it_may_not_go_on():
    labels = torch.arange(3)

    def loss(z):
        return functional.cross_entropy(z, labels)

    ever = torch.eye(3)  # the loss falls for ever
    assert line_search(loss, torch.zeros(3, 3), ever) == 10
    assert line_search(loss, torch.zeros(3, 3), ever, largest=0.25) == 0.25
    assert line_search(loss, torch.zeros(3, 3), -ever) == 0
    for largest in (0.0, -1.0, np.inf):
        with pytest.raises(TrainingError, match="largest step"):
            line_search(loss, torch.zeros(3, 3), ever, largest=largest)


def test_squared_error_is_a_sum_over_outputs_and_a_mean_over_samples():
    outputs, targets = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    each = ((outputs - targets) ** 2).sum((1, 2))
    torch.testing.assert_close(squared_error(outputs, targets), each.mean())
    weights = torch.rand(5)
    torch.testing.assert_close(
        squared_error(outputs, targets, weights=weights), (each * weights).mean()
    )


# Soft gradient boosting -------------------------------------------------------------------------


def by_hand(outputs, labels, shrinkage):
    """The loss written out in float64 NumPy; labels `(n,)` or `(n, heads)`."""
    total, before = 0.0, np.zeros_like(outputs[0])
    for out in outputs:
        target = np.eye(out.shape[-1])[labels] - special.softmax(before, -1)
        total += ((out - target) ** 2).sum() / len(out)
        before = before + shrinkage * out
    return total


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 4, 2, 6)])
@pytest.mark.parametrize("detach", [True, False])
def test_soft_boosting_is_its_formula(shape, detach):
    draw = np.random.default_rng(0)
    outputs, labels = draw.normal(size=shape), draw.integers(0, 6, shape[1:-1])
    found = soft_boosting_loss(
        torch.from_numpy(outputs), torch.from_numpy(labels), shrinkage=0.3, detach=detach
    )
    assert float(found) == pytest.approx(by_hand(outputs, labels, 0.3))


def gradients(detach):
    outputs = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([5, 0, 2, 2])
    soft_boosting_loss(outputs, labels, shrinkage=0.7, detach=detach).backward()
    before = 0.7 * (outputs.cumsum(0) - outputs).detach()
    targets = functional.one_hot(labels, 6) - before.softmax(-1)
    own = 2 * (outputs.detach() - targets) / 4
    return outputs.grad, own


def test_detached_targets_send_no_gradient_to_earlier_members():
    found, own = gradients(detach=True)
    torch.testing.assert_close(found, own)


def test_targets_that_are_not_detached_do():
    found, own = gradients(detach=False)
    torch.testing.assert_close(found[-1], own[-1])  # no member comes after the last
    assert ((found[:-1] - own[:-1]).abs().amax((1, 2)) > 1e-3).all()


def test_soft_boosting_weighs_rows():
    outputs, labels = torch.randn(3, 4, 6), torch.tensor([5, 0, 2, 2])
    each = torch.stack([soft_boosting_loss(outputs[:, [i]], labels[[i]]) for i in range(4)])
    weights = torch.tensor([2.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(
        soft_boosting_loss(outputs, labels, weights=weights), (each * weights).mean()
    )

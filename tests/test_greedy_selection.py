"""Greedy selection: AutoGluon's loop re-stated, brute force, ties, costs, bags, and no leak."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse import metrics
from polyfuse.errors import DataError
from polyfuse.greedy_selection import METRICS, GreedySelection
from polyfuse.running_losses import Errors, Nll, Squares

TINY = float(np.finfo(np.float32).tiny)


def drawn(seed, members=6, n=60, classes=3, skill=1.5):
    """Members of mixed quality, some of whose mistakes they share."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    z = draw.normal(size=(members, n, classes)) + draw.normal(size=(n, classes))
    z[:, np.arange(n), labels] += draw.uniform(0, skill, (members, 1))
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True), labels


def losses_by_hand(mean, labels):
    """Every named loss of a mean prediction, from its definition."""
    own = np.take_along_axis(mean, labels[..., None], -1)[..., 0]
    truth = np.eye(mean.shape[-1])[labels]
    return {
        "nll": -np.log(np.maximum(own, TINY)).mean(),
        "accuracy": 1 - (mean.argmax(-1) == labels).mean(),
        "brier": ((mean - truth) ** 2).sum(-1).mean(),
    }


def restated(p, labels, loss, rounds, seed=0):
    """EnsembleSelection's loop as AutoGluon has it: rounding, ties, the first best prefix."""
    draw = np.random.RandomState(seed)
    order, trajectory, rounding = [], [], False
    mean = np.zeros(p[0].shape)
    for turn in range(rounds):
        if turn:
            mean = mean * (turn - 1) / turn + p[order[-1]] / turn
        scores = []
        for member in p:
            trial = mean * turn / (turn + 1) + member / (turn + 1)
            scores.append(loss(trial / trial.sum(-1, keepdims=True)))
        scores = np.array(scores)
        if rounding:
            scores = scores.round(6)
        best = np.flatnonzero(np.isclose(scores, scores.min(), rtol=1e-12, atol=0))
        if len(best) > 1 and set(best) & set(order):
            best = np.array([j for j in best if j in order])
        chosen = draw.choice(best)
        if turn == 0 and scores[chosen] > 1e-4:
            rounding = True
            scores = scores.round(6)
        order.append(int(chosen))
        trajectory.append(float(scores[chosen]))
    return tuple(order[: int(np.argmin(trajectory)) + 1])


@pytest.mark.parametrize("metric", ["nll", "accuracy", "brier"])
@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_choices_are_autogluons(metric, seed):
    p, labels = drawn(seed)
    ours = GreedySelection(metric=metric, rounds=12, ties="random").fit(p, labels)
    assert ours.order_ == restated(p, labels, lambda q: losses_by_hand(q, labels)[metric], 12)
    assert np.array_equal(ours.weights_, np.bincount(ours.order_, minlength=6) / len(ours.order_))


@pytest.mark.parametrize("metric", ["nll", "accuracy", "brier"])
def test_a_function_chooses_as_the_name_does(metric):
    p, labels = drawn(3, members=5)
    by_name = GreedySelection(metric=metric, rounds=8).fit(p, labels)

    def score(mean, truth):
        return losses_by_hand(mean, truth)[metric]

    by_function = GreedySelection(metric=score, higher_is_better=False, rounds=8).fit(p, labels)
    assert by_function.order_ == by_name.order_
    assert np.allclose(by_function.path_, by_name.path_, rtol=0, atol=1e-9)


def test_terms_are_scores():
    p, labels = drawn(4)
    ours = GreedySelection(metric=metrics.accuracy, ties="nll").fit(p, labels)
    assert ours.order_ == GreedySelection(metric="accuracy", ties="nll").fit(p, labels).order_
    assert ours.score_ == metrics.accuracy(ours.predict_proba(p), labels).value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": 3},
        {"start": "best"},
        {"bags": 4},
        {"penalty": 0.01},
        {"budget": 3.0},
        {"decimals": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("metric", ["nll", "accuracy", "brier"])
@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_never_worse_than_the_best_single_on_the_fitting_rows(metric, options, seed):
    p, labels = drawn(seed, n=25)
    costs = np.random.default_rng(seed).uniform(0.5, 2, 6)
    ours = GreedySelection(metric=metric, rounds=8, **options).fit(p, labels, costs)
    each = [losses_by_hand(member, labels)[metric] for member in p]
    found = losses_by_hand(ours.predict_proba(p), labels)[metric]
    charge = ours.penalty * costs
    allowed = costs <= options.get("budget", np.inf)
    spent = costs[ours.weights_ > 0].sum()
    assert found + ours.penalty * spent <= (each + charge)[allowed].min() + 1e-9
    assert spent <= options.get("budget", np.inf)
    assert np.isclose(ours.score_, 1 - found if metric == "accuracy" else found, atol=1e-12)
    assert allowed[ours.best_single_]
    assert np.isclose((each + charge)[ours.best_single_], (each + charge)[allowed].min())
    assert np.isclose(ours.weights_.sum(), 1)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 9]), st.sampled_from([1, 7, 8, 40]))
def test_running_losses_are_those_of_the_mean(seed, classes, n):
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.full(classes, 0.3), (4, n))
    p[0] = np.eye(classes)[draw.integers(0, classes, n)]  # zeros, ones and exact ties
    p[1] = np.eye(classes)[draw.integers(0, classes, n)]
    labels = draw.integers(0, classes, n)
    truth = np.eye(classes)[labels]
    errors = (p - truth).reshape(4, -1)
    subjects = {
        "nll": Nll(p[:, np.arange(n), labels]),
        "accuracy": Errors(p, labels),
        "brier": Squares(errors @ errors.T / n),
    }
    for _ in range(2):
        order = draw.integers(0, 4, 6).tolist()
        for place in range(len(order)):
            done = p[order[:place]].sum(0)
            hands = [losses_by_hand((done + q) / (place + 1), labels) for q in p]
            for name, subject in subjects.items():
                by_hand = [hand[name] for hand in hands]
                assert np.allclose(subject.losses([0, 1, 2, 3]), by_hand, atol=1e-12), name
                subject.add(order[place])
        counts = np.bincount(order, minlength=4).astype(float)
        for name, subject in subjects.items():
            by_hand = losses_by_hand(np.tensordot(counts, p, 1) / 6, labels)[name]
            assert np.isclose(subject.of(counts), by_hand, atol=1e-12)
            subject.reset()


def test_squared_error_of_numbers():
    draw = np.random.default_rng(0)
    targets = 1e6 + draw.normal(size=80)
    values = targets + draw.normal(size=(5, 80)) * np.array([[1], [1], [1], [2], [3]])
    ours = GreedySelection(metric="mse", rounds=20).fit(values, targets)
    mean = ours.predict(values)
    assert np.allclose(mean, np.tensordot(ours.weights_, values, 1))
    assert np.isclose(ours.score_, ((mean - targets) ** 2).mean(), rtol=1e-6)
    assert ours.score_ < ((values - targets) ** 2).mean(1).min()
    with pytest.raises(DataError, match=r"call predict\(\)"):
        ours.predict_proba(values)


def test_heads_count_as_rows():
    p, labels = drawn(1, n=60)
    heads, of_heads = p.reshape(6, 20, 3, 3), labels.reshape(20, 3)
    for metric in ("nll", "accuracy", "brier"):
        flat = GreedySelection(metric=metric, rounds=9).fit(p, labels)
        ours = GreedySelection(metric=metric, rounds=9).fit(heads, of_heads)
        assert ours.order_ == flat.order_
        assert ours.predict(heads).shape == (20, 3)


def test_the_start_is_the_best_members_in_order():
    p, labels = drawn(2)
    each = [losses_by_hand(member, labels)["nll"] for member in p]
    ranked = np.argsort(each).tolist()
    ours = GreedySelection(start=4, rounds=4, keep_best=False).fit(p, labels)
    assert ours.order_ == tuple(ranked[:4])
    means = [losses_by_hand(p[ranked[: k + 1]].mean(0), labels)["nll"] for k in range(6)]
    peak = int(np.argmin(means)) + 1
    best = GreedySelection(start="best", rounds=8, keep_best=False).fit(p, labels)
    assert best.order_[:peak] == tuple(ranked[:peak])
    assert np.allclose(best.path_[:peak], means[:peak], atol=1e-6)


def test_the_best_prefix_is_kept_unless_told():
    p, labels = drawn(5)
    whole = GreedySelection(keep_best=False).fit(p, labels)
    cut = GreedySelection().fit(p, labels)
    assert len(whole.order_) == len(whole.path_) == 25
    assert cut.order_ == whole.order_[: int(np.argmin(whole.path_)) + 1]
    assert cut.path_[-1] == min(whole.path_)


def test_bags_add_up_counts():
    p, labels = drawn(6)
    ours = GreedySelection(bags=5, rounds=7, keep_best=False, seed=3).fit(p, labels)
    assert ours.counts_.sum() == 35
    assert ours.order_ == ()
    again = GreedySelection(bags=5, rounds=7, keep_best=False, seed=3).fit(p, labels)
    assert np.array_equal(ours.counts_, again.counts_)


def test_a_tie_goes_to_a_member_that_is_in_then_by_the_rule():
    p, labels = drawn(7, members=3)
    twins = np.stack([p[2], p[0], p[0]])
    ours = GreedySelection(rounds=10).fit(twins, labels)
    assert not (ours.counts_[1] and ours.counts_[2]), "one of the twins is enough"
    votes = np.eye(3)[[[0, 1, 2, 0], [0, 1, 2, 1]]]
    sure = 0.9 * votes[1] + 0.1 / 3
    each = np.stack([votes[0], sure])
    truth = np.array([0, 1, 2, 2])  # both are right in three of four, the second one less sure
    for ties, chosen in {"first": 0, "nll": 1}.items():
        assert GreedySelection(metric="accuracy", ties=ties, rounds=1).fit(each, truth).order_ == (
            chosen,
        )
    drawn_ones = {
        GreedySelection(metric="accuracy", ties="random", rounds=1, seed=s).fit(each, truth).order_
        for s in range(9)
    }
    assert drawn_ones == {(0,), (1,)}


def test_costs():
    p, labels = drawn(8)
    free = GreedySelection().fit(p, labels)
    costs = np.where(free.weights_ > 0, 10.0, 1.0)
    assert GreedySelection().fit(p, labels, costs).order_ == free.order_
    cheap = GreedySelection(budget=3).fit(p, labels, costs)
    assert costs[cheap.weights_ > 0].sum() <= 3
    assert not (cheap.weights_[free.weights_ > 0]).any()
    dear = GreedySelection(penalty=10).fit(p, labels, np.ones(6))
    assert dear.order_ == (free.best_single_,)
    slight = GreedySelection(penalty=1e-9, decimals=None).fit(p, labels, np.ones(6))
    assert slight.order_[:3] == free.order_[:3]


def test_a_single_member_is_chosen():
    p, labels = drawn(9, members=1)
    assert GreedySelection().fit(p, labels).weights_.tolist() == [1.0]


def test_half_precision_and_uncovered_rows():
    p, labels = drawn(10, n=200)
    half = p.astype(np.float16)
    gaps = half.copy()
    gaps[3, :50] = np.nan
    for metric in ("nll", "accuracy", "brier"):
        selection = GreedySelection(metric=metric, uncovered="leave_out", rounds=5)
        left = selection.fit(gaps, labels)
        assert np.array_equal(
            left.weights_,
            GreedySelection(metric=metric, rounds=5).fit(half[:, 50:], labels[50:]).weights_,
        )
        assert np.isfinite(left.predict_proba(gaps)).all()
    with pytest.raises(DataError, match="50 of 200 rows"):
        GreedySelection().fit(gaps, labels)


def test_noise_is_not_learned():
    """Pure-noise labels: what is selected is at chance on fresh rows."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(4), (30, 4000))
    labels = draw.integers(0, 4, 4000)
    fitting, fresh = slice(None, 400), slice(400, None)
    for metric in ("accuracy", "nll"):
        ours = GreedySelection(metric=metric).fit(p[:, fitting], labels[fitting])
        on_fresh = metrics.accuracy(ours.predict_proba(p[:, fresh]), labels[fresh]).value
        assert abs(on_fresh - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 3600)
        nll = metrics.nll(ours.predict_proba(p[:, fresh]), labels[fresh]).value
        assert nll > np.log(4) - 0.01


@pytest.mark.parametrize(
    ("options", "costs", "words"),
    [
        ({"rounds": 0}, None, "rounds=0 must be at least 1"),
        ({"start": "all"}, None, 'or "best"'),
        ({"start": -1, "bags": -1}, None, "start=-1 (.|\n)*bags=-1"),
        ({"bag_fraction": 0}, None, "bag_fraction=0 must"),
        ({"penalty": -1}, None, "penalty=-1 must"),
        ({"bags": 2, "budget": 1.0}, None, "use penalty"),
        ({"metric": "mse", "ties": "nll"}, None, 'use ties="first"'),
        ({"metric": "acuracy"}, None, "did you mean 'accuracy'"),
        ({"ties": "last"}, None, "one of first, nll, random"),
        ({"penalty": 1.0}, None, r"costs=\[...\]"),
        ({"budget": 0.5}, np.ones(6), "less than the cheapest member costs"),
        ({}, np.ones(5), "6 finite numbers"),
        ({}, np.full(6, np.nan), "6 finite numbers"),
        ({"metric": lambda mean, labels: np.nan}, None, "the metric is nan with member 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, costs, words):
    with pytest.raises(DataError, match=words):
        GreedySelection(**options).fit(*drawn(0), costs)


def test_the_names_are_those_of_the_docstring():
    assert all(f'"{name}"' in GreedySelection.__doc__ for name in METRICS)

"""The guard of views: what helps stays, what does not goes, and nothing is ever worse for it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_digits
from torch import nn

from polyfuse.combine import geometric_mean, hard_vote, mean_value
from polyfuse.errors import DataError
from polyfuse.metrics import accuracy
from polyfuse.simplex import SimplexWeights
from polyfuse.tta import shifts
from polyfuse.tta.choosing import CHOICES, ViewChoice, merged, merged_by_row
from polyfuse.tta.guard import guard_views

LEARNED = ("weights", "class_weights")


def softmax(logits):
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def nll(labels, p):
    return -np.log(p[np.arange(len(labels)), labels]).mean()


def calibrated(labels, p):
    """Return the NLL at its best temperature, by SciPy."""
    logs, bounds = np.log(p), np.log([0.01, 100])
    return minimize_scalar(lambda t: nll(labels, softmax(logs / np.exp(t))), bounds=bounds).fun


def noisy(views, rows=90, classes=3, *, seed=0, noise=(1.0,), heads=()):
    """Return logits of views that know the label, each with a noise of its own, and the labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, (rows, *heads))
    levels = np.resize(noise, views).reshape(-1, *[1] * (2 + len(heads)))
    drawn = draw.normal(size=(views, *labels.shape, classes))
    return 2 * np.eye(classes)[labels] + levels * drawn, labels


# the regression: views that a net was not trained for -------------------------------------------


def trained(views, labels, steps):
    """Return a small net that has seen these views, `(view, row, ...)`, one of them a step."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(steps):
        rows = draw.integers(0, len(labels), 64)
        loss = nn.functional.cross_entropy(
            net(views[draw.integers(len(views)), rows]), labels[rows]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def digits():
    """Return what a plain net and one that has seen shifts say of nine shifts of real digits."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels / 16).astype("f4")).view(-1, 1, 8, 8)
    views = torch.stack([view.apply(images) for view in shifts(1, 1)])
    truth = torch.from_numpy(labels)[:600]
    nets = {
        "plain": trained(views[:1, :600], truth, 120),
        "augmented": trained(views[:, :600], truth, 400),
    }
    with torch.no_grad():
        said = {n: torch.stack([net(v) for v in views[:, 600:]]).numpy() for n, net in nets.items()}
    return SimpleNamespace(labels=labels[600:], names=[v.name for v in shifts(1, 1)], **said)


VAL, TEST = slice(0, 600), slice(600, None)


def error(prediction, labels):
    return float((prediction.argmax(-1) != labels).mean())


@pytest.mark.parametrize("choose", ["greedy", "weights"])
def test_a_plain_net_loses_by_shifts_and_the_guard_leaves_them_out(digits, choose):
    # Public tools merge such views blindly: the error of this net is then three times as large.
    labels, said = digits.labels, digits.plain
    alone = error(said[0, TEST], labels[TEST])
    assert error(softmax(said[:, TEST]).mean(0), labels[TEST]) > 2 * alone
    choice = ViewChoice(choose=choose, metric=accuracy)
    guarded = guard_views(said[:, VAL], labels[VAL], choice)
    assert guarded.kept == (0,)
    np.testing.assert_allclose(guarded.merge(said[:, TEST]), softmax(said[0, TEST]), rtol=1e-5)
    assert not any(trial.kept for trial in guarded.choice.trials_)
    report = " ".join(guarded.report(digits.names, metric="accuracy"))
    assert report.startswith("Kept: identity")
    for trial in guarded.choice.trials_:
        assert trial.after.loss > trial.before.loss
        change = f"calibrated NLL {trial.before.loss:.4f} -> {trial.after.loss:.4f}"
        assert f"{digits.names[trial.view]} ({change}" in report


def test_a_net_that_has_seen_shifts_gains_by_some_of_them(digits):
    labels, said = digits.labels, digits.augmented
    guarded = guard_views(said[:, VAL], labels[VAL], ViewChoice(metric=accuracy))
    assert guarded.kept[0] == 0
    assert len(guarded.kept) > 1
    assert guarded.outside.loss < guarded.before.loss
    assert error(guarded.merge(said[:, TEST]), labels[TEST]) < error(said[0, TEST], labels[TEST])
    report = guarded.report(digits.names, metric="accuracy")
    assert f"calibrated NLL {guarded.before.loss:.4f} -> {guarded.outside.loss:.4f}" in " ".join(
        report
    )


# never worse --------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    choose=st.sampled_from(["greedy", *LEARNED]),
    levels=st.lists(st.sampled_from([0.5, 1.0, 3.0, 8.0]), min_size=2, max_size=3),
)
def test_what_is_kept_is_never_worse_on_rows_that_the_choice_had_not_seen(seed, choose, levels):
    said, labels = noisy(len(levels), 40, seed=seed, noise=levels)
    choice = ViewChoice(choose=choose, metric=accuracy)
    guarded = guard_views(said, labels, choice, folds=2, seed=seed)
    answers, plain = guarded.merge_held_out(said), softmax(said[0])
    assert calibrated(labels, answers) <= calibrated(labels, plain) + 1e-7
    hits = [(p.argmax(-1) == labels).mean() for p in (answers, plain)]
    assert hits[0] >= hits[1]


@pytest.mark.parametrize("choose", ["greedy", *LEARNED])
def test_a_choice_that_only_fits_noise_is_refused_and_says_so(choose):
    # Seven views that know nothing: on thirty rows some of them seem to help, and on none that
    # the choice had not seen.
    draw = np.random.default_rng(2)
    labels = np.arange(30) % 3
    said = 1.5 * draw.normal(size=(8, 30, 3))
    said[0] += np.eye(3)[labels]
    guarded = guard_views(said, labels, ViewChoice(choose=choose), folds=3)
    assert guarded.refused
    assert guarded.after.loss < guarded.before.loss < guarded.outside.loss
    assert guarded.kept == (0,)
    assert (guarded.row_weights[:, 0] == 1).all()
    assert (guarded.row_weights[:, 1:] == 0).all()
    np.testing.assert_allclose(guarded.merge_held_out(said), softmax(said[0]), rtol=1e-6)
    report = " ".join(guarded.report([f"view {i}" for i in range(8)]))
    assert "did not help on rows that the choice had not seen" in report
    assert f"{guarded.before.loss:.4f} -> {guarded.outside.loss:.4f}" in report


def test_all_is_a_wish_that_is_reported_and_not_refused():
    said, labels = noisy(2, noise=(0.1, 50.0))
    guarded = guard_views(said, labels, ViewChoice(choose="all"))
    assert guarded.kept == (0, 1)
    assert guarded.after == guarded.outside
    assert guarded.after.loss > guarded.before.loss
    np.testing.assert_allclose(guarded.merge_held_out(said), softmax(said).mean(0))
    assert guarded.report(["plain", "noise"])[1].startswith("With all calibrated NLL 0.")


def test_a_row_is_merged_by_a_choice_that_did_not_see_it():
    said, labels = noisy(3, 60, noise=(1.4, 1.3, 1.5), seed=2)
    groups = np.arange(60) // 2  # folds by group, which no label moves
    first = guard_views(said, labels, ViewChoice(choose="weights"), groups=groups)
    assert len(np.unique(first.row_weights, axis=0)) == 5
    changed = labels.copy()
    changed[7] = (changed[7] + 1) % 3
    second = guard_views(said, changed, ViewChoice(choose="weights"), groups=groups)
    same = (first.row_weights == second.row_weights).all(-1)
    assert same[7]
    assert same[6]  # of its group
    assert not same.all()  # other rows saw it


# how views are chosen -----------------------------------------------------------------------------


def test_greedy_keeps_a_view_where_loss_and_score_allow_it():
    said, labels = noisy(5, 80, noise=(2.0, 2.0, 1.0, 9.0, 2.5), seed=3)
    choice = ViewChoice(metric=accuracy).fit(said, labels)

    def figures(views):  # by scikit-learn, in fp64
        mean = softmax(said[list(views)]).mean(0)
        return calibrated(labels, mean), (mean.argmax(-1) == labels).mean()

    plain, kept = figures([0]), [0]
    pairs = {view: figures([0, view]) for view in range(1, 5)}
    order = sorted(pairs, key=lambda v: (pairs[v][1] < plain[1], pairs[v][0]))
    for view in order:
        before, after = figures(kept), figures([*kept, view])
        trial = next(t for t in choice.trials_ if t.view == view)
        np.testing.assert_allclose(trial.before, before, rtol=1e-6)
        np.testing.assert_allclose(trial.after, after, rtol=1e-6)
        if after[0] < before[0] and after[1] >= plain[1]:
            kept.append(view)
        assert trial.kept == (view in kept)
    assert choice.kept_ == tuple(sorted(kept))
    assert 1 < len(kept) < 5
    np.testing.assert_allclose(choice.predict_proba(said), softmax(said[sorted(kept)]).mean(0))


def test_a_view_that_costs_score_is_left_out_whatever_the_loss():
    # The first view is right by a hair everywhere; the second is sure, and wrong in one row.
    labels = np.zeros(20, int)
    plain = np.tile([0.1, 0.0], (20, 1))
    sure = np.tile([4.0, 0.0], (20, 1))
    sure[0] = [-0.2, 0.0]
    assert ViewChoice(loss="nll").fit([plain, sure], labels).kept_ == (0, 1)
    assert ViewChoice(loss="nll", metric=accuracy).fit([plain, sure], labels).kept_ == (0,)
    wrong = ViewChoice(loss="nll", metric=error, higher_is_better=False)
    assert wrong.fit([plain, sure], labels).kept_ == (0,)


def test_learned_weights_are_those_of_the_simplex_and_small_ones_go():
    said, labels = noisy(4, noise=(1.0, 1.2, 5.0, 1.1), seed=5)
    choice = ViewChoice(choose="weights", least=0.0).fit(said, labels)
    expected = SimplexWeights().fit(softmax(said), labels)
    np.testing.assert_allclose(choice.weights_, expected.weights_, atol=1e-6)
    small = float(np.sort(choice.weights_[choice.weights_ > 0])[0])
    fewer = ViewChoice(choose="weights", least=small * 1.01).fit(said, labels)
    assert len(fewer.kept_) == len(choice.kept_) - 1
    assert fewer.weights_.sum() == pytest.approx(1)
    places = list(fewer.kept_)
    again = SimplexWeights().fit(softmax(said[places]), labels)
    np.testing.assert_allclose(fewer.weights_[places], again.weights_, atol=1e-6)


@pytest.mark.parametrize("heads", [(), (3,)])
def test_class_weights_merge_as_the_paper_has_it(heads):
    # Shanmugam et al. 2021: p(c) = sum_v w[v, c] p_v(c), each class's weights on the simplex.
    said, labels = noisy(3, 50, noise=(1.0, 2.0, 1.5), seed=6, heads=heads)
    choice = ViewChoice(choose="class_weights").fit(said, labels)
    assert choice.weights_.shape == (3, 3)
    np.testing.assert_allclose(choice.weights_.sum(0), 1)
    mixed = np.einsum("vc,v...c->...c", choice.weights_, softmax(said))
    np.testing.assert_allclose(choice.predict_proba(said), mixed / mixed.sum(-1, keepdims=True))


def test_members_are_merged_each_and_judged_by_their_mean():
    said, labels = noisy(6, 40, noise=(2.0, 1.5, 6.0), seed=7)
    together = said.reshape(3, 2, 40, 3, order="F").swapaxes(1, 2)  # (view, sample, member, class)
    choice = ViewChoice(combiner=geometric_mean, members=True).fit(together, labels)
    answers = choice.predict_proba(together)
    assert answers.shape == (40, 2, 3)
    each = softmax(together[list(choice.kept_)].mean(0))
    np.testing.assert_allclose(answers, each)
    assert choice.figures(answers, labels).loss == pytest.approx(calibrated(labels, each.mean(1)))


def test_numbers_are_judged_by_their_squared_error():
    draw = np.random.default_rng(8)
    truth = draw.normal(size=200)
    said = truth + draw.normal(size=(3, 200)) * np.array([1.0, 1.0, 9.0])[:, None]
    guarded = guard_views(said, truth, ViewChoice(loss="rmse"))
    assert guarded.kept == (0, 1)
    np.testing.assert_allclose(guarded.merge(said), said[:2].mean(0))
    assert guarded.after.loss == pytest.approx(np.sqrt(((said[:2].mean(0) - truth) ** 2).mean()))
    learned = ViewChoice(choose="weights", loss="rmse").fit(said, truth)
    weights = SimplexWeights(loss="mse").fit(said, truth).weights_
    np.testing.assert_allclose(learned.weights_, np.where(weights < 0.01, 0, weights), atol=0.01)
    np.testing.assert_allclose(learned.predict_proba(said), learned.weights_ @ said)


# merging by row -----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), by_class=st.booleans())
def test_merged_by_row_is_the_loop_over_rows(seed, by_class):
    said, _ = noisy(3, 7, seed=seed)
    draw = np.random.default_rng(seed)
    sets = draw.dirichlet(np.ones(3), (2, 3) if by_class else 2)
    weights = (sets.swapaxes(1, 2) if by_class else sets)[draw.integers(0, 2, 7)]
    choice = ViewChoice(choose="class_weights" if by_class else "weights")
    loop = [merged(said[:, i : i + 1], weights[i], choice)[0] for i in range(7)]
    np.testing.assert_allclose(merged_by_row(said, weights, choice), loop, rtol=1e-12)
    logs = merged_by_row(said, weights, choice, returns="log_prob")
    np.testing.assert_allclose(np.exp(logs), loop, rtol=1e-9)


def test_a_view_without_weight_is_not_read():
    said, labels = noisy(2)
    choice = ViewChoice().fit(said, labels)
    said[1] = np.nan
    kept = merged(said, np.array([1.0, 0.0]), choice)
    np.testing.assert_allclose(kept, softmax(said[0]))


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"choose": "gredy"}, "choose='gredy' is not known; did you mean 'greedy'?; it is one of"),
        ({"loss": "mse"}, "loss='mse' is not known; did you mean 'rmse'?"),
        ({"least": 1.0}, "least=1.0 is a share of the weights; give 0 to 1"),
        ({"choose": "class_weights", "loss": "rmse"}, "weighs classes; loss='rmse' has none"),
        ({"combiner": hard_vote}, "merged to probabilities, and this combiner decides classes"),
    ],
)
def test_options_that_are_refused(options, fault):
    said, labels = noisy(2)
    with pytest.raises(DataError) as caught:
        ViewChoice(**options).fit(said, labels)
    assert fault in str(caught.value)


@pytest.mark.parametrize("choose", CHOICES)
def test_rows_that_the_net_trained_on_are_refused(choose):
    said, labels = noisy(2, 4)
    with pytest.raises(DataError, match="a choice of views would learn from rows that its members"):
        guard_views(said, labels, ViewChoice(choose=choose), trained=np.ones((2, 4), bool))


def test_other_views_than_were_fitted_are_refused():
    said, labels = noisy(3)
    with pytest.raises(DataError, match="outputs of 2 views do not fit weights of 3"):
        ViewChoice().fit(said, labels).predict_proba(said[:2])
    with pytest.raises(DataError, match="this ViewChoice is not fitted"):
        ViewChoice().predict_proba(said)


def test_a_combiner_of_numbers_may_be_named():
    said = np.array([[1.0, 2.0], [3.0, 4.0]])
    choice = ViewChoice(loss="rmse", combiner=mean_value, choose="all").fit(said, np.zeros(2))
    assert choice.predict_proba(said).tolist() == [2.0, 3.0]

"""Cross-fitting: no fit ever saw the row it predicts, nor its group, nor a later row."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.calibration import CalibratedPool
from polyfuse.classical import fold_rows
from polyfuse.cross_fitting import cross_fitted
from polyfuse.dynamic_selection import DynamicSelection
from polyfuse.errors import DataError
from polyfuse.greedy_selection import GreedySelection
from polyfuse.leaks import trained_mask
from polyfuse.metrics import accuracy, nll
from polyfuse.parameters import Parameters
from polyfuse.simplex import SimplexWeights


def drawn(members=4, n=60, classes=3, seed=0, skill=1.0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    z = draw.normal(size=(members, n, classes)) + skill * np.eye(classes)[labels]
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True), labels


@dataclass(kw_only=True, eq=False)
class Spy(Parameters):
    """Remembers which rows it was fitted on: the rows' own numbers are the predictions."""

    log: list = field(default_factory=list)
    fitted_on_: np.ndarray = field(init=False, repr=False)

    def fit(self, predictions, labels, *, groups=None, trained=None, inputs=None):
        self.fitted_on_ = predictions[0, :, 0].astype(int)
        assert np.array_equal(labels, self.fitted_on_ % 3)
        for given_too in (groups, None if trained is None else trained[0], inputs):
            assert given_too is None or len(given_too) == len(labels)
        self.log.append((self.fitted_on_, groups, trained, inputs))
        return self

    def predict_proba(self, predictions, *, inputs=None):
        rows = predictions[0, :, 0].astype(int)
        if inputs is not None:
            assert np.array_equal(inputs[:, 0], rows * 10)
        self.log[-1] = (*self.log[-1], rows)
        return predictions.mean(0)


def numbered(n):
    rows = np.arange(n)
    return np.broadcast_to(rows[None, :, None], (2, n, 3)).astype(float), rows % 3


@st.composite
def cases(draw):
    n = draw(st.integers(6, 40))
    groups = draw(st.none() | st.lists(st.integers(0, 6), min_size=n, max_size=n).map(np.array))
    units = n if groups is None else len(np.unique(groups))
    ordered = draw(st.booleans())
    folds = draw(st.integers(2, max(2, n - 1 if ordered else units)))
    return n, groups, folds, ordered, draw(st.integers(0, 99))


@settings(max_examples=40)
@given(cases())
def test_no_fit_contains_the_row_its_group_or_a_later_row(case):
    n, groups, folds, ordered, seed = case
    p, labels = numbered(n)
    spy = Spy()
    asked = {"folds": folds, "groups": groups, "ordered": ordered, "seed": seed}
    try:
        said = cross_fitted(spy, p, labels, **asked, inputs=np.arange(n)[:, None] * 10.0)
    except DataError as error:
        # Too few groups, or none left before.
        if groups is None or "groups" not in str(error):
            raise
        return
    assert not hasattr(spy, "fitted_on_")  # what was given stays as it is
    for fitted_on, own_groups, trained, inputs, held in spy.log:
        assert not set(fitted_on) & set(held)
        assert trained is None
        assert np.array_equal(inputs[:, 0], fitted_on * 10)
        if groups is not None:
            assert not set(groups[fitted_on]) & set(groups[held])
            assert np.array_equal(own_groups, groups[fitted_on])
        if ordered:
            assert fitted_on.max() < held.min()
        else:
            assert len(fitted_on) + len(held) == n
    predicted = np.concatenate([log[-1] for log in spy.log])
    assert len(set(predicted)) == len(predicted)
    assert np.array_equal(np.flatnonzero(~np.isnan(said[:, 0])), np.sort(predicted))
    assert np.array_equal(said[predicted], p[0][predicted])
    if not ordered:
        assert len(predicted) == n


def test_time_ordered_folds_leave_the_first_block_unpredicted():
    p, labels = numbered(12)
    said = cross_fitted(Spy(), p, labels, folds=3, ordered=True)
    assert np.isnan(said).all(-1).tolist() == [True] * 3 + [False] * 9


def test_a_group_that_comes_again_later_is_not_learned_from():
    groups = np.array([0, 1, 2, 3, 0, 4, 5, 6])
    parts = [
        (a.tolist(), b.tolist()) for a, b in fold_rows(8, 3, seed=0, groups=groups, ordered=True)
    ]
    assert parts == [([0, 1], [2, 3]), ([1, 2, 3], [4, 5]), ([0, 1, 2, 3, 4, 5], [6, 7])]
    with pytest.raises(
        DataError, match=r"folds=8 does not fit 8 rows in the order of time.* 2 to 7"
    ):
        list(fold_rows(8, 8, seed=0, ordered=True))


@pytest.mark.parametrize(
    "make",
    [
        SimplexWeights(),
        lambda: GreedySelection(rounds=5),
        CalibratedPool(),
        DynamicSelection(k=3),
    ],
)
def test_it_is_the_plain_loop(make):
    p, labels = drawn()
    expected = np.full(p.shape[1:], np.nan)
    for fit_rows, held in fold_rows(60, 4, seed=3, classes=labels):
        new = make() if not hasattr(make, "fit") else type(make)(**make.get_params())
        expected[held] = new.fit(p[:, fit_rows], labels[fit_rows]).predict_proba(p[:, held])
    assert np.array_equal(cross_fitted(make, p, labels, folds=4, seed=3), expected)
    assert np.array_equal(cross_fitted(make, list(p), labels.tolist(), folds=4, seed=3), expected)


@settings(max_examples=5)
@given(st.permutations(range(4)))
def test_members_in_another_order_say_the_same(order):
    p, labels = drawn()
    for make in (
        SimplexWeights(l2=0.1),
        GreedySelection(rounds=6),
        DynamicSelection(method="soft"),
    ):
        one, other = (cross_fitted(make, q, labels) for q in (p, p[list(order)]))
        assert np.allclose(one, other, atol=1e-5)


def test_numbers_and_classes_are_predicted_on_request():
    draw = np.random.default_rng(0)
    y = draw.normal(size=50)
    said = cross_fitted(
        SimplexWeights(loss="mse"), y + draw.normal(size=(3, 50)), y, method="predict"
    )
    assert said.shape == (50,)
    assert ((said - y) ** 2).mean() < 1
    p, labels = drawn()
    classes = cross_fitted(SimplexWeights(), p, labels, method="predict")
    assert np.array_equal(classes, cross_fitted(SimplexWeights(), p, labels).argmax(-1))


def test_options_of_the_fit_and_rows_without_a_say():
    p, labels = drawn()
    p[0, :7] = np.nan
    cheap = GreedySelection(budget=1.0, uncovered="leave_out")
    said = cross_fitted(cheap, p, labels, fit_options={"costs": [5.0, 5.0, 1.0, 1.0]})
    alone = np.stack([p[2], p[3]])
    assert (
        np.isclose(said, alone).all(-1).any(0).all()
    )  # one member a row: the budget allows no more
    with pytest.raises(
        DataError, match=r"fold 0 of 5, fitted on 48 rows: \d of 48 rows are not covered"
    ):
        cross_fitted(SimplexWeights(), p, labels)


@pytest.mark.parametrize("fit", [SimplexWeights(), GreedySelection(rounds=8)])
def test_on_noise_the_fitted_rows_flatter_and_cross_fitting_does_not(fit):
    """Labels have nothing to do with the 60 members: an honest score is at chance."""
    inside, outside = [], []
    for seed in range(12):
        p, labels = drawn(members=60, n=200, seed=seed, skill=0.0)
        for said, scores in (
            (fit.fit(p, labels).predict_proba(p), inside),
            (cross_fitted(fit, p, labels), outside),
        ):
            scores.append([accuracy(said.argmax(-1), labels).value, nll(said, labels).value])
    assert np.mean(inside, 0)[0] > 0.42
    assert np.max(inside, 0)[1] < np.log(3)
    right, loss = np.mean(outside, 0)
    assert abs(right - 1 / 3) < 4 * np.sqrt(2 / 9 / 2400)  # four standard errors
    assert loss > np.log(3)


def test_noise_and_dynamic_selection():
    """Each row is its own nearest neighbour, so that fitted rows look nearly perfect."""
    p, labels = drawn(members=20, n=600, skill=0.0)
    knora = DynamicSelection(k=1)
    inside = (knora.fit(p, labels).predict(p) == labels).mean()
    outside = (cross_fitted(knora, p, labels).argmax(-1) == labels).mean()
    assert inside > 0.95
    assert abs(outside - 1 / 3) < 0.08  # four standard errors


def test_leaking_requests_are_refused_and_the_mask_is_handed_on():
    p, labels = drawn()
    trained = trained_mask([[0, 1], None, None, [5]], 60)
    with pytest.raises(DataError, match=r"cross-fitting .*\nmember 0 .* 2 of .*\nmember 3 .* 1 of"):
        cross_fitted(SimplexWeights(), p, labels, trained=trained)
    rows, by_row = numbered(12)
    spy, none = Spy(), np.zeros((2, 12), bool)
    cross_fitted(spy, rows, by_row, folds=3, trained=none)
    assert all(log[2].shape == (2, len(log[0])) for log in spy.log)


def test_bad_requests_are_refused_all_at_once():
    p, labels = drawn()
    with pytest.raises(DataError) as told:
        cross_fitted(SimplexWeights(), p, labels[:9], groups=np.zeros((60, 2)), inputs=np.zeros(3))
    text = str(told.value)
    assert "labels of 9 rows" in text
    assert "inputs of 3 rows" in text
    assert "groups must be (sample,)" in text
    with pytest.raises(DataError, match="folds=61 does not fit 60 rows"):
        cross_fitted(SimplexWeights(), p, labels, folds=61)
    with pytest.raises(DataError, match="did you mean 'predict'"):
        cross_fitted(SimplexWeights(), p, labels, method="predictt")
    with pytest.raises(DataError, match="function that makes one; got float"):
        cross_fitted(0.5, p, labels)
    with pytest.raises(DataError, match="no fold has rows to fit on"):
        cross_fitted(SimplexWeights(), p, labels, groups=np.zeros(60), ordered=True)

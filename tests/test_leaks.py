"""Who trained on what: masks from row numbers, refusals that name everybody, shared rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.calibration import CalibratedPool
from polyfuse.dynamic_selection import DynamicSelection
from polyfuse.errors import DataError
from polyfuse.greedy_selection import GreedySelection
from polyfuse.leaks import refuse_shared, refuse_trained, refuse_trained_rows, trained_mask
from polyfuse.simplex import SimplexWeights
from polyfuse.thresholds import DecisionThresholds

ON_MEMBERS = [
    GreedySelection,
    SimplexWeights,
    CalibratedPool,
    DynamicSelection,
    lambda: SimplexWeights(loss="mse"),
]


def drawn(members=4, n=800, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    return draw.dirichlet(np.ones(classes), (members, n)), draw.integers(0, classes, n)


@given(st.lists(st.none() | st.lists(st.integers(0, 9)), min_size=1, max_size=5))
def test_a_mask_is_true_exactly_where_rows_were_named(rows):
    mask = trained_mask(rows, 10)
    assert mask.dtype == bool
    for own, said in zip(rows, mask, strict=True):
        assert set(np.flatnonzero(said)) == set(own or [])
    as_masks = trained_mask(
        [None if own is None else m for own, m in zip(rows, mask, strict=True)], 10
    )
    assert np.array_equal(as_masks, mask)


def test_arrays_and_tensors_are_rows_too():
    rows = [
        np.array([1, 2], np.uint8),
        torch.tensor([0]),
        np.array([], np.int64),
        [True, False, False],
    ]
    assert trained_mask(rows, 3).astype(int).tolist() == [
        [0, 1, 1],
        [1, 0, 0],
        [0, 0, 0],
        [1, 0, 0],
    ]


def test_what_is_no_rows_is_refused_all_at_once():
    with pytest.raises(DataError) as told:
        trained_mask([[0.5], [3], [-1], [[0, 1]], [True, False], [0]], 3)
    lines = str(told.value).splitlines()
    assert [line[:8] for line in lines] == [
        "member 0",
        "member 1",
        "member 2",
        "member 3",
        "member 4",
    ]
    assert "rows from 3 to 3 do not fit 3 rows" in lines[1]
    assert "booleans of shape (2,) do not fit 3 rows" in lines[4]


def test_every_member_is_named_with_its_rows_and_the_fix():
    p, _ = drawn()
    trained = trained_mask([None, np.arange(640), None, np.arange(10, 20)], 800)
    with pytest.raises(DataError) as told:
        refuse_trained(p, trained, "this selection")
    assert str(told.value).splitlines() == [
        "this selection would learn from rows that its members trained on:",
        "member 1 trained on 640 of the 800 rows",
        "member 3 trained on 10 of the 800 rows",
        "bring out-of-fold predictions, NaN where a member trained: predictions[trained] = np.nan; "
        "or rows that no member saw (the 160 in ~trained.any(0))",
    ]


def test_the_fix_that_is_named_works():
    p, _ = drawn()
    trained = trained_mask([np.arange(300), None, None, None], 800)
    out_of_fold = p.copy()
    out_of_fold[trained] = np.nan
    refuse_trained(out_of_fold, trained)
    unseen = ~trained.any(0)
    refuse_trained(p[:, unseen], trained[:, unseen])


@given(st.integers(0, 10**6))
def test_refused_exactly_where_a_member_that_trained_has_a_say(seed):
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.ones(2), (3, 6, 2))  # two heads
    p[draw.random((3, 6, 2)) < 0.5] = np.nan
    trained = draw.random((3, 6)) < 0.1
    said = ~np.isnan(p).all((-2, -1))  # a say in one head is a say
    leaks = (said & trained).any()
    for form in (p, list(p), said, torch.tensor(p)):
        if leaks:
            with pytest.raises(DataError, match="trained on"):
                refuse_trained(form, trained)
        else:
            refuse_trained(form, trained)


def test_nothing_known_is_nothing_refused():
    refuse_trained(drawn()[0], None)
    refuse_trained_rows(np.ones(3), None)


@pytest.mark.parametrize("trained", [np.zeros((4, 800), int), np.zeros((800, 4), bool), [True]])
def test_a_mask_of_another_form_is_refused(trained):
    with pytest.raises(DataError, match=r"booleans \(member, row\) of shape \(4, 800\)"):
        refuse_trained(drawn()[0], trained)


@pytest.mark.parametrize("make", ON_MEMBERS)
def test_every_fit_on_members_refuses_rows_they_trained_on(make):
    p, labels = drawn(n=40)
    if make is ON_MEMBERS[-1]:
        p, labels = p[..., 0], labels.astype(float)
    trained = trained_mask([None, [3], None, None], 40)
    with pytest.raises(DataError, match="member 1 trained on 1 of the 40 rows"):
        make().fit(p, labels, trained=trained)
    p[1, 3] = np.nan
    fitted = make().set_params(uncovered="leave_out").fit(p, labels, trained=trained)
    assert np.isfinite(
        fitted.predict_proba(p[:, 4:]) if p.ndim == 3 else fitted.predict(p[:, 4:])
    ).all()


def test_thresholds_refuse_rows_that_members_trained_on():
    p, labels = drawn(n=40)
    pool, trained = p.mean(0), np.arange(40) < 15
    with pytest.raises(DataError, match="these thresholds would learn from 15 of the 40 rows"):
        DecisionThresholds().fit(pool, labels, trained=trained)
    without = DecisionThresholds().fit(pool[15:], labels[15:], trained=trained[15:])
    pool[:15] = np.nan
    left_out = DecisionThresholds(uncovered="leave_out").fit(pool, labels, trained=trained)
    assert np.array_equal(without.thresholds_, left_out.thresholds_)
    with pytest.raises(DataError, match=r"booleans \(row,\) of shape \(40,\)"):
        DecisionThresholds().fit(pool, labels, trained=np.zeros((4, 40), bool))


def test_rows_that_are_fitted_and_judged_on_are_named():
    with pytest.raises(
        DataError, match=r"2 rows are both fitted and judged on: 'b', 'd'; .*cross_fitted"
    ):
        refuse_shared(["a", "b", "d"], ["d\x1b", "b", "d", "b"])
    with pytest.raises(DataError, match=r"100 rows .*: 0, 1, 2, 3, 4 and 95 more"):
        refuse_shared(np.arange(200), range(100))
    refuse_shared([], ["a"])
    refuse_shared(iter("abc"), iter("xyz"))

"""Blending fits on a hold-out part that no member trained on, and looks at nothing else."""

import numpy as np
import pytest
from noisy_members import members, numbers

from polyfuse.errors import DataError
from polyfuse.stacking import Blender, Stacker


def test_it_is_stacking_on_the_part():
    p, labels = members()
    rows = np.arange(5, 90)
    mask = np.isin(np.arange(240), rows)
    alone = Stacker().fit(p[:, rows], labels[rows])
    for holdout in (rows, mask, rows.tolist()):
        blended = Blender(holdout=holdout).fit(p, labels)
        assert np.array_equal(blended.rows_, mask)
        assert np.array_equal(blended.predict_proba(p), alone.predict_proba(p))


def test_what_lies_outside_of_the_part_has_no_influence():
    p, labels = members()
    blender = Blender(holdout=0.3, seed=4)
    part = blender.holdout_rows(240)
    assert part.sum() == 72
    expected = blender.fit(p, labels).predict_proba(p)
    other, wrong = p.copy(), np.where(part, labels, (labels + 1) % 3)
    other[:, ~part] = np.eye(3)[wrong[~part]]  # learned by heart, and wrong
    other[1, np.flatnonzero(~part)[:9]] = np.nan
    again = Blender(holdout=0.3, seed=4).fit(other, wrong, trained=np.tile(~part, (4, 1)))
    assert np.array_equal(again.predict_proba(p), expected)
    assert np.array_equal(again.rows_, part)


def test_rows_of_the_part_that_members_trained_on_are_refused():
    p, labels = members()
    trained = np.zeros((4, 240), bool)
    trained[1, :7] = True
    told = "this stacking would learn from rows.*\n*member 1 trained on 7 of the 100 rows"
    with pytest.raises(DataError, match=told):
        Blender(holdout=np.arange(100)).fit(p, labels, trained=trained)
    fitted = Blender(holdout=np.arange(7, 100)).fit(p, labels, trained=trained)
    assert fitted.rows_.sum() == 93


def test_without_a_choice_the_part_is_what_no_member_trained_on():
    p, labels = members()
    trained = np.zeros((4, 240), bool)
    trained[0, 50:] = trained[3, 40:100] = True
    fitted = Blender().fit(p, labels, trained=trained)
    assert np.flatnonzero(fitted.rows_).tolist() == list(range(40))
    with pytest.raises(DataError, match="which rows are held out is not known"):
        Blender().fit(p, labels)
    with pytest.raises(DataError, match="no row is held out"):
        Blender().fit(p, labels, trained=np.ones((4, 240), bool))


def test_groups_are_held_out_whole():
    groups = np.random.default_rng(0).integers(0, 40, 240)
    part = Blender(holdout=0.25).holdout_rows(240, groups=groups)
    assert 0 < part.sum() < 240
    assert not set(groups[part]) & set(groups[~part])
    p, labels = members()
    assert np.array_equal(Blender(holdout=0.25).fit(p, labels, groups=groups).rows_, part)
    with pytest.raises(DataError, match="the hold-out cuts groups"):
        Blender(holdout=np.arange(100)).fit(p, labels, groups=groups)


def test_in_the_order_of_time_the_last_rows_are_held_out_without_groups_that_began_before():
    blender = Blender(holdout=0.4, ordered=True)
    assert np.flatnonzero(blender.holdout_rows(10)).tolist() == [6, 7, 8, 9]
    groups = [0, 0, 1, 1, 2, 2, 2, 3, 3, 4]
    late = np.array(groups)
    mask = np.array([False] * 7 + [True] * 3)
    assert not np.isin(late[mask], late[~mask]).any()
    assert np.array_equal(blender.holdout_rows(10, groups=groups), mask)


def test_layers_groups_and_inputs_are_those_of_the_part():
    p, labels = members()
    inputs, groups = np.random.default_rng(0).normal(size=(240, 2)), np.arange(240) // 4
    rows = np.arange(0, 160)
    options = {"layers": [["logistic"]], "passthrough": True, "final": "mean"}
    blended = Blender(holdout=rows, **options)
    blended.fit(p, labels, inputs=inputs, groups=groups)
    alone = Stacker(**options)
    alone.fit(p[:, rows], labels[rows], inputs=inputs[rows], groups=groups[rows])
    assert np.array_equal(
        blended.predict_proba(p, inputs=inputs), alone.predict_proba(p, inputs=inputs)
    )


def test_numbers_are_blended_too():
    said, targets = numbers()
    fitted = Blender(target="numbers", holdout=0.5).fit(said, targets)
    best = np.abs(said[0] - targets).mean()
    assert np.abs(fitted.predict(said) - targets).mean() < best


@pytest.mark.parametrize(
    ("holdout", "told"),
    [
        (1.5, "fraction 1.5|between 0 and 1"),
        ([0, 240], "holdout has rows from 0 to 240 of 240 rows"),
        ([0.5, 0.7], "holdout must be a share"),
        (np.ones(7, bool), "holdout must be a share"),
        ([], "holdout must be a share"),
        (np.zeros(240, bool), "no row is held out"),
    ],
)
def test_parts_that_are_none_are_refused(holdout, told):
    p, labels = members()
    with pytest.raises(DataError, match=told):
        Blender(holdout=holdout).fit(p, labels)


def test_lengths_that_do_not_fit_are_refused_all_at_once():
    p, labels = members()
    with pytest.raises(DataError, match=r"labels of shape \(100,\)[^$]*inputs of shape \(3, 2\)"):
        Blender(holdout=0.5, passthrough=True).fit(p, labels[:100], inputs=np.zeros((3, 2)))
    with pytest.raises(DataError, match="trained must be booleans"):
        Blender(holdout=0.5).fit(p, labels, trained=np.zeros((2, 240), bool))

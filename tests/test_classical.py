"""scikit-learn's door: the bundled digits, folds, and the slice that stops training."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.classical import bundled_digits, fold_rows, inner_slice
from polyfuse.errors import DataError


def test_the_digits_are_real_and_of_all_classes():
    images, labels = bundled_digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 16)
    assert labels.dtype == np.int64
    assert np.bincount(labels).min() > 170
    assert len(np.bincount(labels)) == 10


@st.composite
def rows_and_groups(draw):
    n = draw(st.integers(2, 40))
    groups = draw(st.none() | st.lists(st.integers(0, 8), min_size=n, max_size=n).map(np.array))
    units = n if groups is None else len(np.unique(groups))
    folds = draw(st.integers(2, max(2, units)))
    return n, folds, groups, units


@given(rows_and_groups(), st.integers(0, 99))
def test_every_row_is_held_out_once_and_groups_are_never_cut(case, seed):
    n, folds, groups, units = case
    if folds > units:
        with pytest.raises(DataError, match="does not fit 1 groups"):
            list(fold_rows(n, folds, seed=seed, groups=groups))
        return
    pairs = list(fold_rows(n, folds, seed=seed, groups=groups))
    assert len(pairs) == folds
    held = np.concatenate([held for _, held in pairs])
    np.testing.assert_array_equal(np.sort(held), np.arange(n))
    for part, held_out in pairs:
        np.testing.assert_array_equal(np.union1d(part, held_out), np.arange(n))
        assert len(part) + len(held_out) == n
        if groups is not None:
            assert not set(groups[part]) & set(groups[held_out])


def test_classes_are_balanced_over_folds():
    classes = np.repeat([0, 1, 2], [50, 30, 10])
    for _, held in fold_rows(90, 5, seed=0, classes=classes):
        assert np.bincount(classes[held]).tolist() == [10, 6, 2]


def test_a_class_too_rare_to_balance_is_no_fault():
    classes = np.repeat([0, 1], [19, 1])
    held = np.concatenate([held for _, held in fold_rows(20, 5, seed=0, classes=classes)])
    assert sorted(held.tolist()) == list(range(20))


def test_the_seed_decides_the_folds():
    def folds(seed):
        return [held.tolist() for _, held in fold_rows(30, 3, seed=seed)]

    assert folds(0) == folds(0)
    assert folds(0) != folds(1)


@pytest.mark.parametrize("folds", [-1, 0, 1, 11])
def test_folds_that_do_not_fit_are_refused_with_those_that_do(folds):
    with pytest.raises(DataError, match=f"folds={folds} does not fit 10 rows.* from 2 to 10"):
        list(fold_rows(10, folds, seed=0))


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 99), st.booleans())
def test_the_slice_divides_the_rows_and_keeps_groups_whole(n, fraction, seed, grouped):
    rows = np.arange(0, 3 * n, 3)
    groups = np.arange(3 * n) // 10 if grouped else None
    learn, stop = inner_slice(rows, fraction, seed=seed, groups=groups)
    assert len(learn) > 0
    assert len(stop) > 0
    np.testing.assert_array_equal(np.sort(np.concatenate([learn, stop])), rows)
    assert (np.diff(learn) > 0).all()
    assert (np.diff(stop) > 0).all()
    if grouped and len(np.unique(groups[rows])) > 1:
        assert not set(groups[learn]) & set(groups[stop])


def test_the_slice_has_the_size_asked_for_and_follows_the_seed():
    rows = np.arange(100)
    _, stop = inner_slice(rows, 0.2, seed=0)
    assert len(stop) == 20
    assert inner_slice(rows, 0.2, seed=0)[1].tolist() == stop.tolist()
    assert inner_slice(rows, 0.2, seed=1)[1].tolist() != stop.tolist()


def test_a_single_group_is_cut_rather_than_left_without_a_stop():
    learn, stop = inner_slice(np.arange(10), 0.2, seed=0, groups=np.zeros(10, int))
    assert (len(learn), len(stop)) == (8, 2)


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.5), (0, 0.5), (9, 0.0), (9, 1.0), (9, -1.0)])
def test_a_slice_that_leaves_nothing_is_refused(n, fraction):
    with pytest.raises(DataError, match="cannot set aside"):
        inner_slice(np.arange(n), fraction, seed=0)


def test_shuffled_groups_are_dealt_by_the_seed_and_never_cut():
    groups = np.arange(60) // 4
    dealt = []
    for seed in (0, 0, 1):
        pairs = list(fold_rows(60, 3, seed=seed, groups=groups, shuffled=True))
        for part, held in pairs:
            assert not set(groups[part]) & set(groups[held])
            assert len(held) == 20
        assert sorted(np.concatenate([held for _, held in pairs]).tolist()) == list(range(60))
        dealt.append([held.tolist() for _, held in pairs])
    assert dealt[0] == dealt[1] != dealt[2]


def test_shuffled_groups_are_balanced_by_class():
    groups, classes = np.arange(60) // 4, np.repeat([0, 1], [36, 24])
    for _, held in fold_rows(60, 3, seed=0, groups=groups, classes=classes, shuffled=True):
        assert np.bincount(classes[held]).tolist() == [12, 8]

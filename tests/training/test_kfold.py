from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import Arrays, Member, kfold
from polyfuse.errors import DataError, RunError


def split(rows, groups=None, labels=None):
    labels = np.zeros(rows, int) if labels is None else labels
    return Arrays(np.zeros((rows, 1)), labels, groups)


def trained(job, folder):
    return Member(folder, {"index": job.index, "seed": job.seed, **job.facts})


def parts(job):
    return [part.tolist() for part in (job.learn, job.stop, job.held_out)]


@given(rows=st.integers(4, 60), folds=st.integers(2, 6), seed=st.integers(0, 9))
def test_rows_are_divided_without_rest_or_overlap(rows, folds, seed):
    folds = min(folds, rows)
    jobs = kfold(split(rows), folds=folds, seed=seed).jobs([])
    for job in jobs:
        assert all(len(part) > 0 for part in parts(job))
        assert sorted(chain(*parts(job))) == list(range(rows))
    assert sorted(row for job in jobs for row in job.held_out) == list(range(rows))


@given(
    groups=st.lists(st.integers(0, 12), min_size=6, max_size=60).filter(lambda g: len(set(g)) > 5),
    folds=st.integers(2, 3),
    seed=st.integers(0, 9),
)
def test_groups_are_never_cut(groups, folds, seed):
    plan = kfold(split(len(groups), groups), folds=folds, stop_fraction=0.3, seed=seed)
    groups = np.array(groups)
    for job in plan.jobs([]):
        learn, stop, held_out = ({*groups[part].tolist()} for part in parts(job))
        assert not learn & stop
        assert not learn & held_out
        # With one group left to train on, its own rows must stop it.
        assert not stop & held_out


@pytest.mark.parametrize(
    ("rows", "groups", "folds", "message"),
    [
        (9, [0, 0, 0, 1, 1, 1, 2, 2, 2], 4, "folds=4 does not fit 3 groups.*from 2 to 3"),
        (3, None, 4, "folds=4 does not fit 3 rows"),
        (3, None, 1, "folds=1 does not fit 3 rows"),
        (2, None, 2, "cannot set aside"),
    ],
)
def test_folds_that_do_not_fit_are_refused(rows, groups, folds, message):
    with pytest.raises(DataError, match=message):
        kfold(split(rows, groups), folds=folds)


@pytest.mark.parametrize("fraction", [1, -0.1, 1.5])
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(DataError, match="fraction"):
        kfold(split(9), folds=3, stop_fraction=fraction)


def test_the_fraction_is_a_share_of_the_training_part():
    for job in kfold(split(100), folds=5, stop_fraction=0.25).jobs([]):
        assert [len(part) for part in parts(job)] == [60, 20, 20]


def test_classes_are_balanced_over_folds():
    labels = np.arange(60) % 3
    for job in kfold(split(60, labels=labels), folds=4).jobs([]):
        assert np.bincount(labels[job.held_out]).tolist() == [5, 5, 5]


def test_the_seed_decides_rows_and_seeds():
    plans = [kfold(split(40), folds=4, seed=seed).jobs([]) for seed in (1, 1, 2)]
    drawn = [[(job.seed, parts(job)) for job in plan] for plan in plans]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len({job.seed for job in plans[0]}) == 4


def test_done_members_are_not_due_again(tmp_path):
    plan = kfold(split(12), folds=3)
    done = [trained(job, tmp_path) for job in plan.jobs([])]
    assert plan.size(done) == 3
    assert [job.index for job in plan.jobs(done[1:2])] == [0, 2]
    assert plan.jobs(done) == []


@pytest.mark.parametrize("other", [{"folds": 4}, {"folds": 2}, {"seed": 1}])
def test_members_of_another_plan_are_refused(other, tmp_path):
    done = [trained(job, tmp_path) for job in kfold(split(12), folds=3).jobs([])]
    with pytest.raises(RunError, match="trained by another plan than"):
        kfold(split(12), **{"folds": 3, **other}).jobs(done)


def test_a_job_says_what_it_is():
    jobs = kfold(split(12), folds=3).jobs([])
    assert [job.facts for job in jobs] == [
        {"strategy": "kfold", "fold": fold, "folds": 3} for fold in range(3)
    ]

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    RepeatedStratifiedKFold,
    ShuffleSplit,
    StratifiedKFold,
)

import tiny
from polyfuse import Arrays, Member, kfold, train
from polyfuse.classical import fold_rows, inner_slice
from polyfuse.errors import DataError, RunError
from polyfuse.training.base import member_seeds


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


# Kinds of folds ---------------------------------------------------------------------------------


def test_the_defaults_are_the_numbers_that_they_always_were():
    data = split(41, labels=np.arange(41) % 2)
    pairs = list(fold_rows(41, 4, seed=7, classes=data.labels))
    seeds = member_seeds(7, 4)
    jobs = kfold(data, folds=4, seed=7).jobs([])
    for job, (part, held_out), own in zip(jobs, pairs, seeds, strict=True):
        learn, stop = inner_slice(part, 0.1, seed=own)
        assert parts(job) == [learn.tolist(), stop.tolist(), np.sort(held_out).tolist()]
        assert job.seed == own


CLASSES = np.repeat([0, 1, 2], [30, 18, 12])
DEALT = np.random.default_rng(0).permutation(60)
GROUPS = np.arange(60) // 3
KINDS = {
    "stratified": split(60, labels=CLASSES[DEALT]),
    "plain": split(60, labels=CLASSES[DEALT]),
    "grouped": split(60, GROUPS[DEALT], CLASSES[DEALT]),
    "ordered": split(60, labels=np.arange(60) % 3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_kind_holds_out_new_rows(kind, seed):
    data = KINDS[kind]
    jobs = kfold(data, folds=4, kind=kind, seed=seed).jobs([])
    held = sorted(row for job in jobs for row in job.held_out.tolist())
    assert held == list(range(12 if kind == "ordered" else 0, 60))
    for job in jobs:
        learn, stop, held_out = parts(job)
        together = sorted(learn + stop)
        if kind == "ordered":
            assert together == list(range(min(held_out)))
        else:
            assert sorted(together + held_out) == list(range(60))
        if kind == "stratified":
            assert np.abs(np.bincount(data.labels[held_out]) - [7.5, 4.5, 3]).max() <= 1
        if kind == "grouped":
            assert {*data.groups[together]}.isdisjoint(data.groups[held_out])
        assert job.facts["kind"] == kind


def test_stratified_folds_of_groups_balance_classes_and_cut_no_group():
    data = split(60, GROUPS, np.repeat([0, 1], [36, 24]))
    for job in kfold(data, folds=4, kind="stratified").jobs([]):
        assert {*GROUPS[[*job.learn, *job.stop]]}.isdisjoint(GROUPS[job.held_out])
        assert np.bincount(data.labels[job.held_out]).tolist() == [9, 6]


@pytest.mark.parametrize("kind", [None, "stratified", "plain", "grouped"])
def test_repeats_divide_the_rows_anew(kind):
    data = KINDS[kind or "plain"]
    jobs = kfold(data, folds=3, kind=kind, repeats=3).jobs([])
    rounds = [[job.held_out.tolist() for job in jobs[i : i + 3]] for i in (0, 3, 6)]
    for held in rounds:
        assert sorted(chain(*held)) == list(range(60))
    assert len({tuple(map(tuple, held)) for held in rounds}) == 3
    assert len({job.seed for job in jobs}) == 9
    assert [job.facts.get("repeat", 0) for job in jobs] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    once = kfold(data, folds=3, kind=kind).jobs([])
    assert [(job.seed, parts(job)) for job in jobs[:3]] == [(j.seed, parts(j)) for j in once]


SPLITTERS = [
    (KFold(4), None),
    (StratifiedKFold(4, shuffle=True, random_state=3), None),
    (RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0), None),
    (GroupKFold(4), GROUPS),
    (LeaveOneGroupOut(), np.arange(60) // 20),
    (ShuffleSplit(3, test_size=0.2, random_state=1), None),
]


@pytest.mark.parametrize(("splitter", "groups"), SPLITTERS, ids=lambda each: type(each).__name__)
def test_the_folds_of_scikit_learn_are_its_own(splitter, groups):
    labels = np.arange(60) % 3
    jobs = kfold(split(60, groups, labels), splitter=splitter, stop_fraction=0.2).jobs([])
    wanted = list(splitter.split(np.zeros((60, 1)), labels, groups))
    assert len(jobs) == len(wanted)
    for job, (part, held_out) in zip(jobs, wanted, strict=True):
        assert np.union1d(job.learn, job.stop).tolist() == np.sort(part).tolist()
        assert job.held_out.tolist() == np.sort(held_out).tolist()
        assert job.facts["folds"] == len(wanted)


def test_members_of_another_splitter_are_refused(tmp_path):
    data = split(20)
    done = [trained(job, tmp_path) for job in kfold(data, splitter=KFold(4)).jobs([])]
    assert kfold(data, splitter=KFold(4)).jobs(done) == []
    other = KFold(4, shuffle=True, random_state=0)
    with pytest.raises(RunError, match="trained by another plan"):
        kfold(data, splitter=other).jobs(done)


@pytest.mark.parametrize("other", [{"kind": "plain"}, {"stop_fraction": 0.2}])
def test_members_of_another_kind_are_refused(other, tmp_path):
    done = [trained(job, tmp_path) for job in kfold(split(20), folds=4).jobs([])]
    with pytest.raises(RunError, match="trained by another plan"):
        kfold(split(20), folds=4, **other).jobs(done)


class Pairs:
    """A splitter that gives what it is told."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def split(self, X, y=None, groups=None):
        return iter(self.pairs)


class Broken(Pairs):
    def split(self, X, y=None, groups=None):
        raise KeyError("no\x1b[31m way")


RARE = np.array([0] * 10 + [1] * 9 + [2])


@pytest.mark.parametrize(
    ("data", "options", "facts"),
    [
        (
            split(9),
            {"kind": "stratifed", "repeats": 0, "folds": 10, "stop_fraction": 1},
            [
                "stop_fraction=1; type a fraction below 1",
                "kind='stratifed'; did you mean 'stratified'? known: stratified, plain, ",
                "repeats=0; type 1 or more",
                "folds=10 does not fit 9 rows; type a number of folds from 2 to 9",
            ],
        ),
        (split(9), {"kind": "grouped", "folds": 3}, ["kind='grouped' needs groups"]),
        (
            split(9, np.arange(9)),
            {"kind": "plain", "folds": 3},
            ["kind='plain' would cut groups of the training split; type kind='grouped'"],
        ),
        (
            split(9, np.arange(9) // 3),
            {"kind": "grouped", "folds": 4},
            ["folds=4 does not fit 3 groups"],
        ),
        (split(9), {"kind": "ordered", "folds": 9}, ["folds=9 does not fit 9 rows in the order"]),
        (
            split(9),
            {"kind": "ordered", "folds": 3, "repeats": 2},
            ["repeats=2: time has one order; leave repeats out"],
        ),
        (
            split(6, labels=np.zeros((6, 2), int)),
            {"kind": "stratified", "folds": 3},
            ["kind='stratified' needs one class a row; type kind='plain' or 'grouped'"],
        ),
        (
            split(20, labels=RARE),
            {"kind": "stratified", "folds": 3},
            ["kind='stratified' with folds=3 leaves folds with an empty class: class 2 has 1 rows"],
        ),
        (split(20, labels=RARE), {}, ["fold 0: no training row of class 2", "bring more rows"]),
        (
            split(20, labels=np.sort(RARE)),
            {"kind": "ordered", "folds": 3},
            [
                "fold 0: no training row of class 1, 2",
                "fold 1: no training row of class 1, 2",
                "fold 2: no training row of class 2",
                "bring more rows of it",
            ],
        ),
        (
            split(20),
            {"splitter": KFold(4), "folds": 4},
            ["a splitter says itself how rows are divided; leave folds, kind, repeats out"],
        ),
        (split(20), {"splitter": 3}, ["the splitter 3 has no split(X, y, groups)"]),
        (
            split(20),
            {"splitter": KFold(4, shuffle=True)},
            ["the splitter KFold(n_splits=4, random_state=None, shuffle=True) divides rows diff"],
        ),
        (
            split(20),
            {"splitter": Pairs(([0, 1, 2, 3], [3, 4]), ([4, 5], [6]), ([6, 7, 8], [6, 7]))},
            [
                "fold 0: 1 rows are trained on and held out",
                "fold 2: 2 rows are trained on and held out",
                "held-out rows must be new to the member",
            ],
        ),
        (
            split(6, [0, 0, 1, 1, 2, 2]),
            {"splitter": Pairs(([0, 1, 2], [3, 4]))},
            ["fold 0: 1 groups are trained on and held out", "held-out rows must be new"],
        ),
    ],
)
def test_folds_that_cannot_be_trained_on_are_refused_at_once(data, options, facts):
    with pytest.raises(DataError) as caught:
        kfold(data, **options)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(facts)
    assert all(line.startswith(fact) for fact, line in zip(facts, lines, strict=True))


@pytest.mark.parametrize(
    ("splitter", "facts"),
    [
        (Broken(), [r"failed: 'no\x1b[31m way'"]),
        (Pairs(), ["gives no folds"]),
        (
            Pairs(([0.5], [1]), ([0, 1], []), ([0, 20], [-1]), ([[0, 1]], [2])),
            [
                "fold 0: training rows must be row numbers from 0 to 19, got float64",
                "fold 1: held-out rows must be row numbers from 0 to 19, got float64 of shape (0,)",
                "fold 2: training rows must be row numbers from 0 to 19, got int64 of shape (2,), "
                "0 to 20",
                "fold 2: held-out rows must be row numbers from 0 to 19, got int64",
                "fold 3: training rows must be row numbers from 0 to 19, got int64 of shape (1, 2)",
            ],
        ),
    ],
)
def test_what_is_no_splitter_is_refused(splitter, facts):
    with pytest.raises(DataError) as caught:
        kfold(split(20), splitter=splitter)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(facts)
    assert all(fact in line for fact, line in zip(facts, lines, strict=True))


def test_without_stopping_rows_the_last_epoch_is_kept(tmp_path):
    data = tiny.splits()
    plan = kfold(data.train, folds=2, stop_fraction=0)
    for member in train(plan, tiny.task(data), tmp_path).members:
        assert member.record["best_epoch"] == 2
        assert len(member.rows("stopped")) == 0
        assert [*member.record["history"][0]] == ["epoch", "rate", "loss"]


def test_repeated_folds_speak_together(tmp_path):
    data = tiny.splits()
    run = train(kfold(data.train, folds=2, repeats=2), tiny.task(data), tmp_path)
    ((name, members),) = run.base_models()
    assert (name, members) == ("kfold of 4", (0, 1, 2, 3))
    stack = run.stack("train").astype(float)
    assert (np.isfinite(stack).all(-1).sum(0) == 2).all()
    np.testing.assert_allclose(run.out_of_fold(), np.nanmean(stack, 0), rtol=1e-6)
    exps = np.exp(stack)
    wanted = np.nanmean(exps / exps.sum(-1, keepdims=True), 0)
    np.testing.assert_allclose(run.base_predictions("train")[0], wanted, rtol=1e-9)

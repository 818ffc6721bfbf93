import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polyfuse
import tiny
from polyfuse.errors import DataError
from polyfuse.fitted_fusions import given_of
from polyfuse.training import STRATEGIES

holdout = STRATEGIES["holdout"]


def split(labels, groups=None):
    return polyfuse.Arrays(np.zeros((len(labels), 1)), labels, groups)


@given(
    counts=st.lists(st.integers(8, 30), min_size=1, max_size=4),
    fraction=st.floats(0.15, 0.6),
    seed=st.integers(0, 99),
)
def test_a_share_of_every_class_is_held_out(counts, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(range(len(counts)), counts))
    (job,) = holdout(split(labels), fraction=fraction, seed=seed).jobs([])
    assert len(job.held_out) == round(fraction * len(labels))
    held = np.bincount(labels[job.held_out], minlength=len(counts))
    assert (np.abs(held - fraction * np.array(counts)) <= 1.5).all()
    together = np.concatenate([job.learn, job.stop, job.held_out])
    assert sorted(together.tolist()) == list(range(len(labels)))


@given(groups=st.integers(5, 15), seed=st.integers(0, 99))
def test_groups_are_not_cut_and_classes_are_near_their_shares(groups, seed):
    draw = np.random.default_rng(seed)
    of = draw.integers(0, groups, 120)
    labels = draw.integers(0, 2, 120)
    (job,) = holdout(split(labels, of), fraction=0.3, seed=seed).jobs([])
    seen = np.concatenate([job.learn, job.stop])
    assert {*of[seen]}.isdisjoint(of[job.held_out])
    assert {*of[job.learn]}.isdisjoint(of[job.stop])
    largest = np.bincount(of).max()
    assert abs(len(job.held_out) - 36) <= largest


def test_classes_are_balanced_better_than_by_one_draw():
    # Ten groups of two kinds: a random third of them is often of one kind.
    of, labels = np.repeat(np.arange(12), 10), np.repeat(np.arange(12) % 2, 10)
    for seed in range(20):
        (job,) = holdout(split(labels, of), fraction=1 / 3, seed=seed).jobs([])
        assert np.bincount(labels[job.held_out]).tolist() == [20, 20]


def test_all_members_of_all_models_hold_out_the_same_rows():
    jobs = holdout(split(np.arange(40) % 2), members=2, factories=3).jobs([])
    assert [job.factory for job in jobs] == [0, 0, 1, 1, 2, 2]
    assert len({tuple(job.held_out.tolist()) for job in jobs}) == 1
    assert len({job.seed for job in jobs}) == 6


def test_the_seed_decides_the_rows():
    plans = [holdout(split(np.arange(40) % 2), seed=seed).jobs([])[0] for seed in (0, 0, 1)]
    rows = [job.held_out.tolist() for job in plans]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize(
    ("labels", "groups", "options", "facts"),
    [
        ([0] * 9, None, {"fraction": 0}, ["fraction=0; type a share of the rows between 0 and 1"]),
        (
            [0] * 9,
            None,
            {"fraction": 1.0, "members": 0, "factories": 0, "stop_fraction": 2},
            ["stop_fraction=2", "members=0", "factories=0", "fraction=1.0"],
        ),
        ([0] * 9, None, {"fraction": 0.01}, ["fraction=0.01 of 9 rows: there is no held-out row"]),
        ([0] * 9, [3] * 9, {}, ["of 9 rows in 1 groups: there is no training row"]),
        (
            [0, 0, 1, 1],
            [0, 0, 1, 1],
            {"fraction": 0.5},
            ["there is no training row of 1 classes: "],
        ),
    ],
)
def test_what_leaves_nothing_is_refused(labels, groups, options, facts):
    with pytest.raises(DataError) as caught:
        holdout(split(labels, groups), **options)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(facts)
    assert all(fact in line for fact, line in zip(facts, lines, strict=True))


def test_blending_is_fitted_on_the_held_out_rows_alone(tmp_path):
    data = tiny.splits(40)
    run = polyfuse.train(holdout(data.train, members=2), tiny.task(data), tmp_path)
    held_out = run.members[0].rows("held_out")
    given = given_of(run, "train")
    assert given.names == ("member 0", "member 1")
    assert given.val.labels.tolist() == data.train.labels[held_out].tolist()
    logits = np.stack([m.predictions("train")[held_out] for m in run.members]).astype(float)
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(given.val.said, exps / exps.sum(-1, keepdims=True), rtol=1e-12)

import shutil

import numpy as np
import pytest

import polyfuse
import tiny
from polyfuse.errors import DataError, RunError
from polyfuse.training import STRATEGIES

independent = STRATEGIES["independent"]


def split(rows=20, groups=None):
    return polyfuse.Arrays(np.zeros((rows, 1)), np.zeros(rows, int), groups)


def test_all_members_learn_from_the_same_rows_and_differ_by_their_seeds():
    jobs = independent(split(), members=3, stop_fraction=0.2).jobs([])
    for job in jobs:
        assert job.learn.tolist() == jobs[0].learn.tolist()
        assert job.stop.tolist() == jobs[0].stop.tolist()
        assert sorted([*job.learn.tolist(), *job.stop.tolist()]) == list(range(20))
        assert (len(job.stop), len(job.held_out)) == (4, 0)
    assert len({job.seed for job in jobs}) == 3


def test_each_member_may_stop_on_rows_of_its_own():
    jobs = independent(split(), members=4, own_stop=True).jobs([])
    assert len({tuple(job.stop.tolist()) for job in jobs}) > 1
    assert all(job.facts["own_stop"] for job in jobs)


def test_without_stopping_rows_all_are_learned_from():
    for job in independent(split(), stop_fraction=0).jobs([]):
        assert job.learn.tolist() == list(range(20))
        assert len(job.stop) == 0


def test_groups_are_not_cut():
    groups = np.arange(20) // 4
    for job in independent(split(groups=groups), own_stop=True, stop_fraction=0.3).jobs([]):
        assert {*groups[job.learn]}.isdisjoint(groups[job.stop])


def test_faults_are_told_at_once():
    with pytest.raises(DataError) as caught:
        independent(split(), members=0, stop_fraction=1.0)
    assert str(caught.value).splitlines() == [
        "stop_fraction=1.0; type a fraction below 1, or 0: the last epoch is kept",
        "members=0; type 1 or more",
    ]


def test_more_members_go_on_with_those_that_are_there(tmp_path):
    data = tiny.splits()

    def members(count, folder):
        plan = independent(data.train, members=count)
        return polyfuse.train(plan, tiny.task(data), tmp_path / folder)

    members(1, "a")
    members(2, "a")
    members(2, "b")
    assert tiny.hashes(tmp_path / "a") == tiny.hashes(tmp_path / "b")
    with pytest.raises(RunError, match="another plan than the 1 members"):
        members(1, "a")


def test_members_of_a_kfold_are_another_plan(tmp_path):
    data = tiny.splits()
    run = tiny.train(tmp_path, data)
    shutil.rmtree(run.members[1].path)
    with pytest.raises(RunError, match="was trained by another plan"):
        polyfuse.train(independent(data.train), tiny.task(data), tmp_path)


def test_there_are_no_out_of_fold_predictions_and_no_score_of_them(tmp_path):
    data = tiny.splits()
    run = polyfuse.train(independent(data.train, members=2), tiny.task(data), tmp_path)
    assert np.isnan(run.stack("train")).all()
    board = polyfuse.compare_fusions(run, replicates=20)
    assert board.document["out_of_fold"] is None
    assert "out of fold" not in str(board)

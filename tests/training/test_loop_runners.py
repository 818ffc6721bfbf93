"""What the training loop asks of runners, and what it makes of their results."""

import json
import os
import signal
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import polyfuse
import tiny
from polyfuse import LocalRunner
from polyfuse.budget import STARTED
from polyfuse.determinism import seeded
from polyfuse.errors import RunError, TrainingError
from polyfuse.optimizers import adam
from polyfuse.runners.base import Fault, Result, attempt
from polyfuse.training import STRATEGIES


class Recording:
    """Runs jobs here; records which it was given, and how many members were there then."""

    def __init__(self, root, changed=lambda result: result):
        self.root, self.changed, self.given = root, changed, []

    def map(self, function, jobs, watch):
        there = len(list((self.root / "members").iterdir()))
        self.given.append((there, [job.index for job in jobs]))
        for number, job in enumerate(jobs):

            def notify(*told, number=number):
                watch(number, *told)

            result = self.changed(Result(number))
            yield attempt(function, number, job, notify) if result.error is None else result


def fit(root, strategy, runner=None, told=None, **how):
    watch = (lambda *seen: told.append(seen)) if told is not None else (lambda *seen: None)
    return polyfuse.train(strategy, tiny.task(), root, runner=runner, watch=watch, **how)


def folds():
    return polyfuse.kfold(tiny.splits().train, folds=3)


def boost(root, runner):
    """Boost on labels of a line, one in eight of them wrong, so that no round has all right."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((48, 4)).astype("f4")
    labels = (values[:, 0] > 0) ^ (draw.random(48) < 1 / 8)
    data = polyfuse.Arrays(values, labels.astype(int))
    task = tiny.task(polyfuse.Splits(data, data, data), optimizer=partial(adam, lr=0.05))
    return polyfuse.train(STRATEGIES["samme"](data, rounds=3), task, root, runner=runner)


def test_members_of_a_kfold_are_given_at_once(tmp_path):
    runner = Recording(tmp_path)
    fit(tmp_path, folds(), runner)
    assert runner.given == [(0, [0, 1, 2])]


def test_a_round_of_a_boosting_is_given_once_the_one_before_is_there(tmp_path):
    runner = Recording(tmp_path)
    made = boost(tmp_path, runner)
    assert len(made.members) == 3
    assert runner.given == [(0, [0]), (1, [1]), (2, [2])]


def failing(number, **facts):
    bad = Result(number, error="its node died", fault=Fault.LOST, attempts=3, **facts)
    return lambda result: bad if result.number == number else result


def test_what_failed_is_kept_until_the_next_run_begins(tmp_path):
    with pytest.raises(TrainingError, match="2 of 3 members are kept; what failed:") as no:
        fit(tmp_path / "RUN", folds(), Recording(tmp_path / "RUN", failing(1)))
    assert "  member 1  3 attempts  its node died" in str(no.value).splitlines()
    (failure,) = json.loads((tmp_path / "RUN" / "failures.json").read_text())["failures"]
    assert failure == {
        "members": [1],
        "attempts": 3,
        "fault": "lost",
        "reason": "its node died",
        "traceback": [],
    }
    again = Recording(tmp_path / "RUN")
    fit(tmp_path / "RUN", folds(), again)
    assert again.given == [(2, [1])]
    fit(tmp_path / "clean", folds())
    assert tiny.hashes(tmp_path / "RUN") == tiny.hashes(tmp_path / "clean")


def test_a_round_that_needs_a_failed_one_does_not_begin(tmp_path):
    runner = Recording(tmp_path, failing(0))
    with pytest.raises(TrainingError, match="0 of 3 members are kept"):
        boost(tmp_path, runner)
    assert runner.given == [(0, [0])]


class Elsewhere:
    """Says that all is done, and did it in another folder."""

    def map(self, function, jobs, watch):
        return (Result(number, True) for number in range(len(jobs)))


def test_members_that_were_trained_elsewhere_are_missed(tmp_path):
    fact = r"members \[0, 1, 2\] were trained, but are not in .*all nodes need that folder"
    with pytest.raises(RunError, match=fact):
        fit(tmp_path, folds(), Elsewhere())


class Later:
    """Gives the result of a job that had died before, and was done at its second attempt."""

    def map(self, function, jobs, watch):
        for number, job in enumerate(jobs):
            function(job, lambda *told: None)
            yield Result(number, True, attempts=2)


def test_a_job_that_needed_another_attempt_says_so(tmp_path):
    told = []
    fit(tmp_path, folds(), Later(), told)
    assert [seen[3] for seen in told] == ["done, at attempt 2"] * 3


def test_a_member_that_may_not_finish_says_so_as_it_begins(tmp_path, monkeypatch):
    # The clock runs by a minute with each look: before, at the beginning and at the end of a job.
    minutes, told = iter(range(60, 6000, 60)), []
    monkeypatch.setattr("polyfuse.budget.time", SimpleNamespace(time=lambda: next(minutes)))
    monkeypatch.setattr("polyfuse.fit.time", SimpleNamespace(time=lambda: 0))
    late = fit(tmp_path, folds(), Recording(tmp_path), told, deadline=330)
    assert len(late.members) == 2  # the third would begin after the deadline
    note = "may not finish: one before took 1.0 minutes, and 0.5 are left; progress is kept"
    assert [seen for seen in told if seen[3].startswith("may")] == [(1, 0, 2, note)]
    assert STARTED not in {seen[3] for seen in told}


def test_no_job_begins_after_the_deadline(tmp_path):
    told = []
    fit(tmp_path, folds(), Recording(tmp_path), told, deadline=1.0)
    assert told == []
    assert list((tmp_path / "members").iterdir()) == []


@dataclass(frozen=True)
class KilledInItsSecondEpoch:
    """Makes nets of which one kills its process at its third step, once."""

    seed: int
    told: Path

    def __call__(self):
        net = tiny.task().factory()
        steps = count()

        def step(module, inputs):
            if module.training and next(steps) == 2 and not self.told.exists():
                self.told.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        if torch.initial_seed() == self.seed:
            net.register_forward_pre_hook(step)
        return net


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_killed_in_an_epoch_goes_on_from_the_one_before(tmp_path):
    fit(tmp_path / "clean", folds())
    with seeded(folds().jobs([])[1].seed):
        factory = KilledInItsSecondEpoch(torch.initial_seed(), tmp_path / "told")
    killed, told = polyfuse.Task(factory, tiny.splits(), tiny.task().options), []
    polyfuse.train(
        folds(),
        killed,
        tmp_path / "RUN",
        runner=LocalRunner(2),
        watch=lambda *seen: told.append(seen),
    )
    assert factory.told.exists()
    assert tiny.hashes(tmp_path / "RUN") == tiny.hashes(tmp_path / "clean")
    ends = {seen[0]: seen[3] for seen in told if seen[3].startswith("done")}
    assert ends == {0: "done", 1: "done, at attempt 2", 2: "done"}
    assert [seen[1] for seen in told if seen[0] == 1] == [1, 2, 2]  # no epoch twice

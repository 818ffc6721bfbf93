"""Jobs in lock-step: what is chosen, kept and said; killed and resumed; equal to jobs alone."""

import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import polyfuse
import tiny
from polyfuse import FitOptions, LocalRunner, Population, Task, kfold
from polyfuse.errors import RunError, TrainingError
from polyfuse.optimizers import sgd
from polyfuse.training import loop, together
from polyfuse.training.base import Job, Planned
from polyfuse.training.together import units_of

DATA = tiny.splits(36)


def task(factory=None, **options):
    given = {"epochs": 3, "batch_size": 8, "accelerator": "cpu", "together": "always", **options}
    factory = factory or partial(polyfuse.mlp, inputs=4, classes=2, hidden=4, dropout=0.2)
    return Task(factory, DATA, FitOptions(**given))


def plan(folds=3):
    return kfold(DATA.train, folds=folds)


def train(folder, *, strategy=None, watch=lambda *_: None, runner=None, **options):
    return polyfuse.train(strategy or plan(), task(**options), folder, watch=watch, runner=runner)


class Killed(BaseException):
    """Not an Exception: like a signal, nothing inside may catch it."""


def kill_at(epoch):
    def watch(number, done, total, note):
        if done == epoch:
            raise Killed

    return watch


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Three folds that were trained in lock-step, never disturbed."""
    return train(tmp_path_factory.mktemp("clean"))


# Equal, and said --------------------------------------------------------------------------------


def test_members_are_those_of_jobs_alone_but_for_rounding(clean, tmp_path):
    alone = train(tmp_path, together="never")
    for one, other in zip(alone.members, clean.members, strict=True):
        said = {key: value for key, value in other.record.items() if key != "trained"}
        assert said.keys() == one.record.keys()
        assert other.record["trained"] == "in lock-step with 2 others"
        for key in ("seed", "fold", "best_epoch", "fingerprint", "options"):
            assert said[key] == one.record[key]
        for split in ("train", "val", "test"):
            expected = one.predictions(split)
            np.testing.assert_allclose(other.predictions(split), expected, rtol=1e-4, atol=1e-6)
        for part in ("learned", "stopped", "held_out"):
            np.testing.assert_array_equal(one.rows(part), other.rows(part))


def test_progress_is_told_of_every_member(tmp_path):
    told = []
    train(tmp_path, watch=lambda *seen: told.append(seen))
    assert told[:3] == [(m, 0, 3, "in lock-step, 3 at a time") for m in range(3)]
    assert [seen[:3] for seen in told[3:12]] == [(m, e, 3) for e in (1, 2, 3) for m in range(3)]
    assert told[3][3].endswith("3 members in lock-step")
    assert sorted(told[12:]) == [(m, 3, 3, "done") for m in range(3)]


# Killed and resumed -----------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_killed_group_goes_on_with_the_same_bits(epoch, clean, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, watch=kill_at(epoch))
    train(tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_kill_between_commits_loses_nothing(clean, tmp_path, monkeypatch):
    commit = loop._commit

    def dies(index, made, work):
        if index == 2:
            raise Killed
        commit(index, made, work)

    monkeypatch.setattr(loop, "_commit", dies)
    with pytest.raises(Killed):
        train(tmp_path)
    assert len(Population.open(tmp_path).members) == 2
    monkeypatch.setattr(loop, "_commit", commit)
    told = []
    train(tmp_path, watch=lambda *seen: told.append(seen))
    assert [seen[:2] for seen in told] == [(2, 3)]  # nothing is trained again
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_deadline_keeps_what_was_chosen(clean, tmp_path):
    assert polyfuse.train(plan(), task(), tmp_path, deadline=0).members == ()
    train(tmp_path, together="never")  # too late: the members are promised to a group
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_measurement_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "FEWEST_STEPS", 1)
    answers = iter(["", "lock-step is not faster here"])
    monkeypatch.setattr(together, "_compared", lambda works, must: next(answers))
    with pytest.raises(Killed):
        train(tmp_path, together="auto", watch=kill_at(1))
    found = train(tmp_path, together="auto")
    assert [m.record["trained"] for m in found.members] == ["in lock-step with 2 others"] * 3
    assert next(answers) == "lock-step is not faster here"


def test_a_job_that_has_begun_alone_goes_on_alone(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, together="never", watch=kill_at(1))
    found = train(tmp_path)
    trained = [m.record.get("trained") for m in found.members]
    assert trained == [None, *["in lock-step with 1 others"] * 2]


@pytest.mark.parametrize("document", [[], {"schema": 7}, {"schema": 1}])
def test_a_damaged_choice_is_refused(document, tmp_path):
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "together.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RunError, match=r"together.json' is no record of schema 1"):
        train(tmp_path)


# What is chosen ---------------------------------------------------------------------------------


def learned(monkeypatch, tmp_path, **options):
    told = []
    found = train(tmp_path, watch=lambda *seen: told.append(seen), **options)
    notes = {seen[3] for seen in told if seen[1] == 0}
    return notes, [m.record.get("trained") for m in found.members]


@pytest.mark.parametrize("answer", ["", "lock-step is not faster here"])
def test_auto_follows_the_measurement_and_says_so(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "FEWEST_STEPS", 1)
    monkeypatch.setattr(together, "_compared", lambda works, must: answer)
    notes, trained = learned(monkeypatch, tmp_path, together="auto")
    assert notes == {f"one after another: {answer}" if answer else "in lock-step, 3 at a time"}
    assert trained == [None if answer else "in lock-step with 2 others"] * 3


def test_the_measurement_gives_an_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(together, "FEWEST_STEPS", 1)
    monkeypatch.setattr(together, "LONGEST_STEP", 1e9)
    [note], trained = learned(monkeypatch, tmp_path, together="auto")
    faster = trained == ["in lock-step with 2 others"] * 3
    slower = trained == [None] * 3
    assert (faster, slower) == (note.startswith("in lock-step"), "not faster" in note)


def test_too_short_or_too_heavy_training_is_not_measured(monkeypatch, tmp_path):
    assert learned(monkeypatch, tmp_path / "short", together="auto") == (set(), [None] * 3)
    monkeypatch.setattr(together, "FEWEST_STEPS", 1)
    monkeypatch.setattr(together, "LONGEST_STEP", 0)
    notes, _ = learned(monkeypatch, tmp_path / "heavy", together="auto")
    assert notes == {"one after another: their steps are long"}


class Branching(nn.Linear):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs if outputs.sum() > 0 else -outputs


class Scaled(nn.Linear):
    """Holds a number that no state dict has, another one in each model."""

    def __init__(self):
        super().__init__(4, 2)
        self.scale = float(torch.rand(()))

    def forward(self, inputs):
        return self.scale * super().forward(inputs)


def raises_late():
    # The call that raises has moved the statistics of batch-norm by then.
    return nn.Sequential(nn.BatchNorm1d(4), Drawing(4, 2))


class Drawing(nn.Linear):
    def forward(self, inputs):
        return nn.functional.dropout(super().forward(inputs), 0.5, self.training)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (partial(Branching, 4, 2), "data-dependent control flow"),
        (Scaled, "the first loss is"),
        (raises_late, "random"),
    ],
)
def test_what_cannot_be_stacked_is_trained_alone_and_says_why(
    factory, reason, tmp_path, monkeypatch
):
    notes, trained = learned(monkeypatch, tmp_path / "always", factory=factory)
    assert len(notes) == 1
    assert reason in notes.pop()
    assert all(said.startswith("alone: ") and reason in said for said in trained)
    alone = train(tmp_path / "never", factory=factory, together="never")
    for one, other in zip(alone.members, Population.open(tmp_path / "always").members, strict=True):
        assert tiny.same(one.state(), other.state())


@dataclass(frozen=True)
class Workers:
    workers: int | None = None

    def map(self, function, jobs, watch):
        return LocalRunner().map(function, jobs, watch)


def jobs(count, **given):
    rows = np.arange(20)
    return [Job(n, n, rows[: 16 - n % 2], rows[16:], rows[:0], **given) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "runner", "sizes"),
    [
        (10, LocalRunner(), [10]),
        (10, Workers(2), [5, 5]),
        (7, LocalRunner(3), [3, 2, 2]),
        (3, LocalRunner(3), [1, 1, 1]),  # as many workers as members
        (80, LocalRunner(1), [27, 27, 26]),
        (4, Workers(), [1, 1, 1, 1]),  # nobody knows how many run at once
        (4, LocalRunner(devices=("0", "1")), [2, 2]),
    ],
)
def test_groups_are_divided_over_workers(count, runner, sizes, tmp_path, monkeypatch):
    (tmp_path / "resume").mkdir()
    monkeypatch.setattr(together, "_tried", lambda jobs, task, runner: "")
    found = units_of(jobs(count), task(), tmp_path, runner)
    assert [len(together.jobs_of(unit)) for unit in found] == sizes
    assert [job.index for unit in found for job in together.jobs_of(unit)] == list(range(count))


def another_way(work):
    return []


def test_only_jobs_that_are_alike_are_grouped(tmp_path, monkeypatch):
    (tmp_path / "resume").mkdir()
    monkeypatch.setattr(together, "_tried", lambda jobs, task, runner: "")
    rows = np.arange(20)
    others = [
        Job(4, 4, rows[:7], rows[16:], rows[:0]),  # fewer batches
        Job(5, 5, rows[:16], rows[16:], rows[:0], weights=np.ones(16)),
        Job(6, 6, rows[:16], rows[16:], rows[:0], options=task(epochs=9).options),
        Job(7, 7, rows[:16], rows[16:], rows[:0], how=another_way),
        Job(8, 8, rows[:16], rows[16:], rows[:0], count=2),
        Job(10, 10, rows[:16], rows[16:], rows[:0], options=task(together="never").options),
    ]
    found = units_of([*jobs(4), *others], task(), tmp_path, LocalRunner())
    assert [together.jobs_of(unit)[0].index for unit in found] == [0, 4, 5, 6, 7, 8, 10]
    assert len(together.jobs_of(found[0])) == 4


# What goes wrong --------------------------------------------------------------------------------


def test_a_member_that_fails_is_named_and_the_others_are_kept(tmp_path):
    rows = np.arange(36)
    wild = task(optimizer=partial(sgd, lr=1e30)).options
    calm = task(optimizer=partial(sgd, lr=0.1))
    seeds = [(0, None), (1, wild), (2, None)]
    made = [Job(n, n, rows[:24], rows[24:], rows[:0], options=own) for n, own in seeds]
    with pytest.raises(TrainingError, match="member 1: the loss became nan in epoch 1"):
        polyfuse.train(Planned(tuple(made)), calm, tmp_path)
    assert [m.index for m in Population.open(tmp_path).members] == [0, 2]


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_train_a_group_each(tmp_path):
    found = train(tmp_path, strategy=plan(4), runner=LocalRunner(2))
    assert [m.record["trained"] for m in found.members] == ["in lock-step with 1 others"] * 4

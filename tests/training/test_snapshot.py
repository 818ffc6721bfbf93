"""Snapshot ensembles: one run, members at the ends of its cycles, those that hurt left out."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import polyfuse
import tiny
from polyfuse import Arrays, FitOptions
from polyfuse.averaging import swa
from polyfuse.errors import DataError, RunError, TrainingError
from polyfuse.fit import fit_member
from polyfuse.optimizers import sgd
from polyfuse.schedules import constant, cyclic_cosine
from polyfuse.training.snapshot import snapshot

EPOCHS, CYCLES = 6, 3


def rules():
    return {"swa": partial(swa)}


def train(folder, data=None, options=None, **asked):
    data = data or tiny.splits()
    task = tiny.task(data, **{"epochs": EPOCHS, **(options or {})})
    plan = snapshot(data.train, fit=task.options, **{"cycles": CYCLES, **asked})
    return polyfuse.train(plan, task, folder)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return train(tmp_path_factory.mktemp("snapshot"), options={"averaging": rules()})


# The run ----------------------------------------------------------------------------------------


def test_members_are_the_weights_at_the_ends_of_the_cycles_of_one_run(clean):
    data, (job,) = (
        tiny.splits(),
        snapshot(tiny.splits().train, fit=tiny.task(epochs=EPOCHS).options, cycles=CYCLES).jobs([]),
    )
    # The same run with nothing of ours but the schedule, ended after each cycle.
    for place, member in enumerate(clean.members):
        options = tiny.task(epochs=EPOCHS).options
        schedule = partial(cyclic_cosine, cycles=CYCLES)
        end = 2 * (place + 1)

        def cut(step, total, end=end, schedule=schedule):
            return schedule(step, total * EPOCHS // end)

        with polyfuse.determinism.seeded(job.seed):
            model = tiny.task().factory()
        options = replace(options, epochs=end, schedule=cut)
        fitted = fit_member(model, data.train, job.learn, job.stop, options, seed=job.seed)
        assert tiny.same(member.state(), model.state_dict())
        assert member.record["best_epoch"] == end == len(member.record["history"])
        assert [e["loss"] for e in fitted.history] == [e["loss"] for e in member.record["history"]]


def test_rates_are_those_of_equation_2(clean):
    batches = 3  # 22 rows in batches of 8
    last = [epoch["rate"] for epoch in clean.members[-1].record["history"]]
    expected = [
        1e-3 * cyclic_cosine(batches * (epoch + 1) - 1, batches * EPOCHS, cycles=CYCLES)
        for epoch in range(EPOCHS)
    ]
    assert last == pytest.approx(expected, rel=1e-12)
    assert last[0] > last[1] < last[2] > last[3]


def test_the_optimiser_is_not_begun_anew(tmp_path, monkeypatch):
    made = []

    def counted(parameters):
        made.append(1)
        return sgd(parameters, lr=0.1)

    train(tmp_path, options={"optimizer": counted})
    assert made == [1]


def test_averages_are_a_by_product_and_go_with_the_last_snapshot(clean):
    assert clean.averages == ("swa",)
    assert [m.averages for m in clean.members] == [(), (), ("swa",)]
    (averaged,) = clean.averaged("swa").members
    assert averaged.index == CYCLES - 1
    assert not tiny.same(averaged.state(), clean.members[-1].state())
    board = polyfuse.compare_fusions(clean, replicates=50)
    names = [row["name"] for row in board.rows]
    assert {"member 2, swa", "mean_probability, swa", "mean_probability"} <= {*names}


def test_the_run_is_resumed_with_the_same_bits(clean, tmp_path):
    class Killed(BaseException):
        pass

    def watch(number, done, total, note):
        if done == 3:
            raise Killed

    data = tiny.splits()
    task = tiny.task(data, epochs=EPOCHS, averaging=rules())
    plan = snapshot(data.train, fit=task.options, cycles=CYCLES)
    with pytest.raises(Killed):
        polyfuse.train(plan, task, tmp_path, watch=watch)
    found = polyfuse.train(plan, task, tmp_path)
    # Killed again, in the middle of the commits: only what is missing is made.
    (gone,) = tmp_path.glob("members/001")
    for file in sorted(gone.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    gone.rmdir()
    found = polyfuse.train(plan, task, tmp_path)
    assert tiny.hashes(found.path / "members") == tiny.hashes(clean.path / "members")


def test_another_plan_is_refused(clean):
    with pytest.raises(RunError, match="another plan"):
        train(clean.path, options={"averaging": rules()}, cycles=2)


def test_the_last_snapshots_alone(clean, tmp_path):
    found = train(tmp_path, last=2, prune=False)
    for member, same in zip(found.members, clean.members[1:], strict=True):
        assert tiny.same(member.state(), same.state())
    assert all(member.fused for member in found.members)


def test_a_run_that_diverges_has_no_members(tmp_path):
    calls = []

    def breaks(outputs, labels):
        calls.append(1)
        loss = torch.nn.functional.cross_entropy(outputs, labels)
        return loss * float("nan") if len(calls) > 4 * 3 + 2 else loss  # in the fourth epoch

    with pytest.raises(TrainingError, match=r"ended in epoch 4.*after the epochs 2, 4, 6; lower"):
        train(tmp_path, options={"loss": breaks, "on_nan": "keep"})


# Which help -------------------------------------------------------------------------------------


def test_snapshots_that_hurt_are_members_and_no_part_of_fusions(tmp_path):
    # The rate is far too low for the first cycles to learn; the last one has learned more.
    data = polyfuse.Splits(tiny.arrays(200), tiny.arrays(100, seed=1), tiny.arrays(50, seed=2))
    found = train(tmp_path, data, options={"optimizer": partial(sgd, lr=0.3)})
    stack, labels = found.stack("val").astype(float), found.labels("val")

    def nll(places):
        p = torch.softmax(torch.from_numpy(stack[list(places)]), -1).mean(0).numpy()
        return -np.log(p[np.arange(len(labels)), labels]).mean()

    order = sorted(range(CYCLES), key=lambda n: nll([n]))
    kept = order[:1]
    for place in order[1:]:
        if nll([*kept, place]) < nll(kept):
            kept.append(place)
    assert [m.index for m in found.members if m.fused] == sorted(kept)
    assert len(kept) < CYCLES, "the data were made so that one hurts"
    board = polyfuse.compare_fusions(found, replicates=50)
    assert board.row("mean_probability")["members"] == sorted(kept)
    assert board.row("member 0")["members"] == [0]
    (note,) = board.document["notes"]
    assert note.startswith("Left out of fusions by greedy selection on validation: member ")


def test_snapshots_are_chosen_on_validation_never_on_test(tmp_path):
    # A peer keeps the prefix that is best on the loader of its test set.
    data = tiny.splits()
    other = Arrays(data.test.values, 1 - data.test.labels)
    found = train(tmp_path / "a", data)
    turned = train(tmp_path / "b", data._replace(test=other))
    assert [m.fused for m in found.members] == [m.fused for m in turned.members]
    assert all(
        tiny.same(a.state(), b.state()) for a, b in zip(found.members, turned.members, strict=True)
    )


# What is refused --------------------------------------------------------------------------------


def plan(epochs=20, fit=None, **options):
    return snapshot(tiny.arrays(), fit=fit or FitOptions(epochs=epochs), **options)


@pytest.mark.parametrize(
    ("epochs", "cycles", "fix"),
    [
        (20, 6, "cycles: 5 or 10, or epochs: 18 or 24"),
        (10, 3, "cycles: 2 or 5, or epochs: 9 or 12"),
        (4, 5, "cycles: 4, or epochs: 5"),
        (20, 0, "1 or more"),
    ],
)
def test_cycles_must_divide_the_epochs(epochs, cycles, fix):
    # A peer's longer last cycle begins in the middle of a cosine.
    with pytest.raises(DataError, match=f"cycles={cycles}.*{fix}"):
        plan(epochs, cycles=cycles)


@pytest.mark.parametrize("epochs", [1, 6, 12, 30])
def test_each_cycle_begins_at_the_full_rate(epochs):
    for cycles in (n for n in range(1, epochs + 1) if epochs % n == 0):
        (job,) = plan(epochs, cycles=cycles, prune=False).jobs([])
        batches = 7
        begins = [0, *(batches * end for end in job.given["epochs"][:-1])]
        factors = [job.options.schedule(step, batches * epochs) for step in begins]
        assert factors == [1.0] * cycles


def test_all_faults_are_told_at_once():
    fit = FitOptions(epochs=10, schedule=constant)
    with pytest.raises(DataError) as caught:
        plan(fit=fit, cycles=3, last=4, last_step="one", stop_fraction=1.0)
    for fault in ("cycles=3", "last=4", "last_step='one'", "leave fit.schedule out", "stop_frac"):
        assert fault in str(caught.value)


def test_patience_has_no_say():
    (job,) = plan(fit=FitOptions(epochs=20, patience=1)).jobs([])
    assert job.options.patience is None

"""Fast geometric ensembling: cycles of even length after training, members at the lowest rates."""

from functools import partial

import pytest

import polyfuse
import tiny
from polyfuse import FitOptions
from polyfuse.errors import DataError
from polyfuse.optimizers import sgd
from polyfuse.schedules import cosine, linear
from polyfuse.training.fge import fge


def plan(epochs=20, schedule=cosine, **options):
    fit = FitOptions(epochs=epochs, schedule=schedule)
    return fge(tiny.arrays(), fit=fit, **options).jobs([])[0]


@pytest.mark.parametrize("epochs", [10, 23, 40])
@pytest.mark.parametrize("cycle", [2, 4, 6])
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_rates_are_the_formula_and_lowest_where_members_are_kept(epochs, cycle, start):
    job, batches = plan(epochs, cycle=cycle, start=start, high=0.6, low=0.1), 5
    begin = job.facts["start"]
    assert start * epochs <= begin < start * epochs + cycle
    total = batches * epochs
    factors = [job.options.schedule(step, total) for step in range(total)]
    assert factors[: batches * begin] == [cosine(s, total) for s in range(batches * begin)]
    expected, ends = [], []
    for epoch in range(epochs - begin):
        for i in range(batches):
            t = ((epoch % cycle) + i / batches) / cycle
            low = (1 - 2 * t) * 0.6 + 2 * t * 0.1
            expected.append(low if t <= 0.5 else (2 - 2 * t) * 0.1 + (2 * t - 1) * 0.6)
        if epoch % cycle + 1 == cycle / 2:
            ends.append(begin + epoch + 1)
    assert factors[batches * begin :] == pytest.approx(expected, abs=1e-12)
    assert job.given["epochs"] == tuple(ends)
    assert job.count == len(ends)
    assert ends[-1] == epochs
    # The step after a member is kept is the turning point.
    for end in ends[:-1]:
        assert factors[batches * end] == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize(
    ("cycle", "fix"), [(1, "even number: 2"), (3, "even number: 2 or 4"), (0, "2"), (-2, "2")]
)
def test_odd_cycles_are_refused(cycle, fix):
    # In a peer, a cycle of 1 never ends, and one of 3 keeps weights away from the lowest rate.
    with pytest.raises(DataError, match=f"cycle={cycle} has no epoch.*{fix}"):
        plan(cycle=cycle)


def test_all_faults_are_told_at_once():
    with pytest.raises(DataError) as caught:
        plan(cycle=3, start=1.5, high=0.1, low=0.2, stop_fraction=-1)
    for fault in ("cycle=3", "start=1.5", "low=0.2", "stop_fraction=-1"):
        assert fault in str(caught.value)


def test_a_cycle_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="leaves 4, and half a cycle of 10 needs 5"):
        plan(20, start=0.8, cycle=10)
    assert plan(20, start=0.8, cycle=8).given["epochs"] == (20,)


def test_one_run_with_one_optimiser_makes_all_members(tmp_path):
    made = []

    def counted(parameters):
        made.append(1)
        return sgd(parameters, lr=0.1, momentum=0.9)

    data = tiny.splits()
    task = tiny.task(data, epochs=8, optimizer=counted, schedule=linear)
    strategy = fge(data.train, fit=task.options, start=0.5)
    found = polyfuse.train(strategy, task, tmp_path)
    assert made == [1]
    ends = [member.record["best_epoch"] for member in found.members]
    assert ends == [6, 8]
    first, last = (member.state() for member in found.members)
    assert not tiny.same(first, last)
    history = found.members[-1].record["history"]
    assert [epoch["epoch"] for epoch in history] == [*range(1, 9)]


def test_cycles_keep_what_they_are_given_for_the_fingerprint():
    one, same, other = (
        plan(schedule=partial(cosine, floor=floor)).options.fingerprint() for floor in (0, 0, 0.1)
    )
    assert one == same != other
    assert " at 0x" not in one

"""Schedules: one contract for all, and parity with torch's schedulers and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
from torch.optim.swa_utils import SWALR

from polyfuse.errors import PolyfuseError
from polyfuse.schedules import (
    SCHEDULES,
    constant,
    cosine,
    cyclic_cosine,
    joined,
    linear,
    swa,
    triangle,
)

CYCLIC = ("cyclic_cosine", "triangle")
FALLING = {name: schedule for name, schedule in SCHEDULES.items() if name not in CYCLIC}
every = pytest.mark.parametrize("schedule", FALLING.values(), ids=FALLING)
shares = st.floats(0, 1, exclude_max=True)


@every
@given(total=st.integers(1, 2000), warmup=shares, where=st.floats(0, 1))
def test_a_factor_lies_between_0_and_1(schedule, total, warmup, where):
    assert 0 <= schedule(round(where * total), total, warmup=warmup) <= 1


@every
@given(total=st.integers(1, 300), warmup=st.just(0.0) | shares)
def test_the_rate_rises_in_the_warm_up_and_never_after(schedule, total, warmup):
    factors = [schedule(step, total, warmup=warmup) for step in range(total)]
    peak = max(0, math.ceil(warmup * total) - 1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@every
@pytest.mark.parametrize("warmup", [-0.1, 1.0, 1.5, math.nan])
def test_a_warm_up_that_is_no_share_is_refused(schedule, warmup):
    with pytest.raises(PolyfuseError, match="0 <= warmup < 1"):
        schedule(0, 10, warmup=warmup)


@every
def test_the_warm_up_is_a_straight_line(schedule):
    factors = [schedule(step, 100, warmup=0.2) for step in range(20)]
    assert factors == pytest.approx([(step + 1) / 20 for step in range(20)], abs=1e-12)
    assert schedule(20, 100, warmup=0.2) == 1


@every
def test_without_warm_up_it_starts_at_1(schedule):
    assert schedule(0, 100) == 1


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_falls_to_its_floor(schedule):
    assert schedule(100, 100) == pytest.approx(0, abs=1e-12)
    assert schedule(100, 100, floor=0.3) == pytest.approx(0.3, abs=1e-12)
    assert schedule(100, 100, floor=0.3, warmup=0.1) == pytest.approx(0.3, abs=1e-12)


def rates(scheduler, optimizer, steps):
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def some_optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize("floor", [0.0, 0.2])
@pytest.mark.parametrize("total", [1, 10, 257])
def test_cosine_matches_torch(total, floor):
    optimizer = some_optimizer()
    scheduler = CosineAnnealingLR(optimizer, T_max=total, eta_min=0.5 * floor)
    ours = [0.5 * cosine(step, total, floor=floor) for step in range(total)]
    assert ours == pytest.approx(rates(scheduler, optimizer, total), abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.2])
@pytest.mark.parametrize("total", [1, 10, 257])
def test_linear_matches_torch(total, floor):
    optimizer = some_optimizer()
    scheduler = LinearLR(optimizer, 1.0, floor, total_iters=total)
    ours = [0.5 * linear(step, total, floor=floor) for step in range(total)]
    assert ours == pytest.approx(rates(scheduler, optimizer, total), abs=1e-12)


@given(st.integers(1, 1000), st.data())
def test_cosine_after_a_warm_up_is_the_formula_on_what_is_left(total, data):
    steps = data.draw(st.integers(0, total - 1))
    step = data.draw(st.integers(steps, total))
    expected = (1 + math.cos(math.pi * (step - steps) / (total - steps))) / 2
    assert cosine(step, total, warmup=steps / total) == pytest.approx(expected, abs=1e-9)


def test_constant_stays():
    assert [constant(step, 5) for step in range(5)] == [1.0] * 5


# SWA ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("start", "anneal"), [(0, 10), (30, 10), (50, 0), (90, 10), (95, 10)])
@pytest.mark.parametrize(("shape", "name"), [("cosine", "cos"), ("linear", "linear")])
def test_swa_matches_torch(start, anneal, floor, shape, name):
    optimizer = some_optimizer()
    scheduler = SWALR(optimizer, 0.5 * floor, anneal_epochs=anneal, anneal_strategy=name)
    theirs = [0.5] * start + rates(scheduler, optimizer, 100 - start)
    shares = {"start": start / 100, "anneal": anneal / 100}
    ours = [0.5 * swa(step, 100, floor=floor, shape=shape, **shares) for step in range(100)]
    assert ours == pytest.approx(theirs, abs=1e-7)  # torch goes from rate to rate, and loses some


def test_swa_is_the_schedule_of_the_paper():
    """Half of the time before SWA at the full rate, 40 % down to SWA's, then constant."""
    for epoch in range(200):
        t = epoch / 160
        paper = 1 if t <= 0.5 else 1 - 0.8 * (t - 0.5) / 0.4 if t <= 0.9 else 0.2
        ours = swa(epoch, 200, start=0.4, anneal=0.32, floor=0.2, shape="linear")
        assert ours == pytest.approx(paper, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"start": -0.1}, "start=-0.1, anneal=0.25; type shares of the run, 0 to 1"),
        ({"anneal": math.nan}, "anneal=nan; type shares"),
        ({"shape": "cos"}, "shape='cos'; type 'cosine' or 'linear'"),
    ],
)
def test_faults_of_swa(options, fact):
    with pytest.raises(PolyfuseError, match=fact):
        swa(0, 10, **options)


# Cycles -----------------------------------------------------------------------------------------


@given(
    total=st.integers(1, 3000), cycles=st.integers(1, 20), step=st.floats(0, 1, exclude_max=True)
)
def test_cyclic_cosine_is_equation_2_of_huang_et_al(total, cycles, step):
    t = int(step * total) + 1  # the paper counts iterations from 1
    length = math.ceil(total / cycles)
    expected = 0.5 * (math.cos(math.pi * ((t - 1) % length) / length) + 1)
    assert cyclic_cosine(t - 1, total, cycles=cycles) == pytest.approx(expected, abs=1e-12)


@given(batches=st.integers(1, 40), each=st.integers(1, 8), cycles=st.integers(1, 6))
def test_last_step_zero_is_the_code_of_its_authors(batches, each, cycles):
    # T_cur = ((epoch - 1) % E) * batches + i, with epoch and i from 1.
    expected = [
        0.5 * (1 + math.cos(math.pi * ((epoch - 1) % each * batches + i) / (each * batches)))
        for epoch in range(1, cycles * each + 1)
        for i in range(1, batches + 1)
    ]
    total = len(expected)
    found = [cyclic_cosine(s, total, cycles=cycles, last_step="zero") for s in range(total)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[each * batches - 1 :: each * batches] == pytest.approx([0] * cycles, abs=1e-12)


def test_the_two_conventions_differ_at_the_last_step_alone_of_what_is_saved():
    last = 7
    assert cyclic_cosine(last, 32, cycles=4) == pytest.approx((1 - math.cos(math.pi / 8)) / 2)
    assert cyclic_cosine(last, 32, cycles=4, last_step="zero") == pytest.approx(0, abs=1e-15)


@given(
    batches=st.integers(1, 40),
    half=st.integers(1, 4),
    cycles=st.integers(1, 5),
    high=st.floats(0.1, 1),
    low=st.floats(0, 0.1),
)
def test_triangle_is_the_formula_of_garipov_et_al(batches, half, cycles, high, low):
    c = 2 * half
    expected = []
    for epoch in range(c * cycles):
        for i in range(batches):
            t = ((epoch % c) + i / batches) / c
            expected.append(
                (1 - 2 * t) * high + 2 * t * low
                if t <= 0.5
                else (2 - 2 * t) * low + (2 * t - 1) * high
            )
    total = len(expected)
    found = [triangle(s, total, cycles=cycles, high=high, low=low) for s in range(total)]
    assert found == pytest.approx(expected, abs=1e-12)
    # Half a cycle less leaves all others as they are, and ends at the lowest rate.
    short = total - half * batches
    cut = [triangle(s, short, cycles=cycles - 0.5, high=high, low=low) for s in range(short)]
    assert cut == pytest.approx(expected[:short], abs=1e-12)


@given(total=st.integers(1, 500), start=st.floats(0, 1))
def test_joined_schedules_are_each_on_its_side(total, start):
    begin = round(start * total)
    then = lambda step, rest: triangle(step, rest, cycles=1.5)  # noqa: E731
    found = [joined(cosine, then, step, total, start=start) for step in range(total)]
    assert found[:begin] == [cosine(step, total) for step in range(begin)]
    assert found[begin:] == [then(step, total - begin) for step in range(total - begin)]


@pytest.mark.parametrize(
    ("schedule", "options", "fix"),
    [
        (cyclic_cosine, {"cycles": 0}, "cycles=0"),
        (cyclic_cosine, {"last_step": "one"}, "'eq2' or 'zero'"),
        (triangle, {"cycles": math.nan}, "cycles=nan"),
        (triangle, {"low": 0.5, "high": 0.1}, "0 <= low <= high"),
        (triangle, {"low": -0.1}, "0 <= low <= high"),
    ],
)
def test_cycles_that_are_none_are_refused(schedule, options, fix):
    with pytest.raises(PolyfuseError, match=fix):
        schedule(0, 10, **options)

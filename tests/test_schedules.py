"""Schedules: one contract for all, and parity with torch's schedulers and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from polyfuse.errors import PolyfuseError
from polyfuse.schedules import SCHEDULES, constant, cosine, linear

every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
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

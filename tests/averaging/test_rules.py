"""Every rule against its closed form, in double precision, from a formula written down here."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.averaging import (
    RULES,
    Moment,
    custom,
    ema,
    from_avg_fn,
    half_life,
    lawa,
    make_rule,
    power_ema,
    rule_weights,
    shares,
    swa,
    tanh_ema,
)
from polyfuse.errors import PolyfuseError


def by_decays(decays):
    """Shares of snapshots 0, 1, ... where snapshot n comes in with decay `decays[n - 1]`."""
    weights = [1.0]
    for decay in decays:
        weights = [w * decay for w in weights] + [1 - decay]
    return weights


def power_profile(gamma, count, every):
    """Shares of a power-EMA: what `t ** gamma` gives the time between two snapshots."""
    edges = np.concatenate([[0], every * np.arange(1, count + 1)]).astype(float) ** (gamma + 1)
    return np.diff(edges) / edges[-1]


COUNT = 12
N = range(1, COUNT)
CASES = {
    "ema": (ema(0.9), by_decays([0.9 for _ in N])),
    "ema zero": (ema(0), [0.0] * (COUNT - 1) + [1.0]),
    "swa": (swa(), [1 / COUNT] * COUNT),
    "tanh_ema": (tanh_ema(0.9), by_decays([0.9 * math.tanh(n) for n in N])),
    "tanh_ema slow": (tanh_ema(0.8, scale=5), by_decays([0.8 * math.tanh(n / 5) for n in N])),
    "power": (
        ema(0.8, warmup="power"),
        by_decays([min(0.8, 1 - (1 + n) ** (-2 / 3)) for n in N]),
    ),
    "power, others": (
        ema(0.99, warmup="power", gamma=2.0, power=0.5, min_decay=0.3),
        by_decays([max(0.3, 1 - (1 + n / 2) ** -0.5) for n in N]),
    ),
    "tf": (ema(0.5, warmup="tf"), by_decays([min(0.5, (1 + n) / (10 + n)) for n in N])),
    "exponential": (
        ema(0.9, warmup="exponential", tau=5.0),
        by_decays([0.9 * (1 - math.exp(-n / 5)) for n in N]),
    ),
    "cumulative": (
        ema(0.75, warmup="cumulative"),
        by_decays([min(0.75, n / (n + 1)) for n in N]),
    ),
    "power_ema": (power_ema(gamma=3.0), power_profile(3.0, COUNT, 1)),
    "half_life": (half_life(steps=2), by_decays([0.5**0.5 for _ in N])),
    "lawa": (lawa(5), [0.0] * (COUNT - 5) + [0.2] * 5),
    "lawa young": (lawa(50), [1 / COUNT] * COUNT),
    "custom": (custom(torch.clone, lambda a, c, n: a + (c - a) / (n + 1)), [1 / COUNT] * COUNT),
}
every_case = pytest.mark.parametrize("case", CASES)


def followed(rule, values, every=1):
    """The average of values that come one after the other."""
    kept = rule.init(values[0])
    for n, value in enumerate(values[1:], 1):
        kept = rule.update(kept, value, Moment(n, (n + 1) * every, every, copied=every))
    return rule.value(kept, len(values) - 1) if rule.value else kept


@every_case
def test_weights_are_the_closed_form(case):
    rule, expected = CASES[case]
    weights = rule_weights(rule, COUNT)
    np.testing.assert_allclose(weights, expected, rtol=1e-12, atol=1e-15)
    assert sum(weights) == pytest.approx(1)


@every_case
def test_a_ramp_and_constants(case):
    rule, expected = CASES[case]
    ramp = [torch.tensor([float(n), -2.0 * n], dtype=torch.float64) for n in range(COUNT)]
    mean = np.dot(expected, range(COUNT))
    np.testing.assert_allclose(followed(rule, ramp), [mean, -2 * mean], rtol=1e-12)
    same = [torch.full((2,), 3.25, dtype=torch.float64)] * COUNT
    np.testing.assert_allclose(followed(rule, same), [3.25, 3.25], rtol=1e-12)


@every_case
def test_a_rule_is_pure(case):
    rule, _ = CASES[case]
    first, second = torch.ones(2), torch.full((2,), 2.0)
    kept = rule.init(first)
    assert kept.data_ptr() != first.data_ptr()
    before = kept.clone()
    rule.update(kept, second, Moment(1, 2))
    assert torch.equal(kept, before)
    assert torch.equal(second, torch.full((2,), 2.0))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rule_keeps_the_dtype(name, dtype):
    rule = RULES[name](**({"steps": 5} if name == "half_life" else {}))
    values = [torch.full((2,), float(n), dtype=dtype) for n in range(4)]
    assert followed(rule, values).dtype == dtype


@pytest.mark.parametrize(
    "case", ["ema", "power", "power, others", "tf", "exponential", "half_life"]
)
@given(every=st.integers(1, 9))
def test_rarer_updates_keep_the_horizon(case, every):
    """Weights that change only where they are looked at: the rest of the steps adds nothing."""
    rule, _ = CASES[case]
    rare = rule_weights(rule, 4, every)
    each = shares(rule, [Moment(0, every, copied=every)] + [
        Moment(n, every + n, copied=every) for n in range(1, 3 * every + 1)
    ])  # fmt: skip
    blocks = [each[0], *(math.fsum(each[1 + every * i : 1 + every * (i + 1)]) for i in range(3))]
    np.testing.assert_allclose(rare, blocks, rtol=1e-9, atol=1e-15)


@given(st.floats(0.02, 0.28), st.integers(1, 50))
def test_power_ema_has_the_width_that_was_asked_for(sigma, every):
    """Mean and deviation of the profile over a long run, whatever the steps between updates."""
    count = 2000
    weights = np.array(rule_weights_closed(power_ema(sigma), count, every))
    times = (np.arange(count) + 0.5) / count
    mean = weights @ times
    assert np.sqrt(weights @ (times - mean) ** 2) == pytest.approx(sigma, rel=0.01)


def rule_weights_closed(rule, count, every):
    weights, left = [], 1.0
    for n in reversed(range(1, count)):
        weight = rule.weight(Moment(n, (n + 1) * every, every, copied=every))
        weights.append(left * weight)
        left *= 1 - weight
    return [left, *weights[::-1]]


def test_power_ema_known_exponents():
    assert power_ema(0.05).options["gamma"] == pytest.approx(16.97, abs=0.005)
    assert power_ema(0.10).options["gamma"] == pytest.approx(6.937, abs=0.001)
    for sigma in (0.03, 0.1, 0.25):
        g = power_ema(sigma).options["gamma"]
        assert ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 == pytest.approx(sigma)


def test_t_adema_saturates_within_four_updates():
    decays = [1 - tanh_ema(0.9).weight(Moment(n, n + 1)) for n in range(1, 5)]
    np.testing.assert_allclose(decays, [0.9 * math.tanh(n) for n in range(1, 5)])
    assert decays[3] == pytest.approx(0.9, rel=1e-3)
    assert RULES["t_adema"] is RULES["tanh_ema"]


def test_t_adema_in_epochs():
    rule = tanh_ema(0.9, scale=2.0, unit="epochs")
    for epoch in (1, 2, 7):
        weight = rule.weight(Moment(n=100, step=101, epoch=epoch))
        assert 1 - weight == pytest.approx(0.9 * math.tanh(epoch / 2))


def test_half_life_in_samples_and_tokens():
    assert half_life(samples=64).weight(Moment(1, 2, samples=128)) == 0.75
    assert half_life(tokens=64).weight(Moment(1, 2, tokens=64)) == 0.5
    with pytest.raises(
        PolyfuseError, match=r"half_life\(samples=...\) needs update\(samples=...\)"
    ):
        half_life(samples=64).weight(Moment(1, 2))


def test_torch_avg_fn():
    from torch.optim.swa_utils import get_swa_avg_fn

    np.testing.assert_allclose(rule_weights(from_avg_fn(get_swa_avg_fn()), 7), [1 / 7] * 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ema(1.0), "decay=1.0; type 0 <= decay < 1"),
        (lambda: ema(-0.1), "decay=-0.1; type 0 <= decay < 1"),
        (lambda: ema(math.nan), "decay=nan"),
        (lambda: ema("0.9"), "decay='0.9'"),
        (lambda: ema(True), "decay=True"),
        (lambda: ema(warmup="powr"), "warmup='powr'; did you mean 'power'"),
        (lambda: ema(warmup="power", gamma=0), "gamma=0; type a number above 0"),
        (lambda: ema(0.5, warmup="power", min_decay=0.6), "min_decay=0.6"),
        (lambda: ema(warmup="exponential", tau=math.inf), "tau=inf"),
        (lambda: tanh_ema(1.0), "alpha=1.0; type 0 <= alpha < 1"),
        (lambda: tanh_ema(scale=0), "scale=0; type a number above 0"),
        (lambda: tanh_ema(unit="steps"), "unit='steps'; known: updates, epochs"),
        (lambda: power_ema(0.3), "sigma_rel=0.3; type 0 < sigma_rel < 0.288"),
        (lambda: power_ema(0.1, gamma=5.0), "sigma_rel or gamma, not both"),
        (lambda: power_ema(gamma=-1), "gamma=-1; type a number from 0"),
        (lambda: half_life(), "takes one of steps, samples and tokens"),
        (lambda: half_life(steps=1, tokens=1), "takes one of"),
        (lambda: half_life(steps=0), "steps=0; type a number above 0"),
        (lambda: lawa(0), "k=0; type a whole number from 1"),
        (lambda: lawa(2.5), "k=2.5"),
        (lambda: swa().timed(update_every=0), "update_every=0; type a whole number from 1"),
        (lambda: swa().timed(update_every="step"), "update_every='step'"),
        (lambda: swa().timed(start_step=-1), "start_step=-1; type a whole number from 0"),
        (lambda: swa().timed(start_epoch=1.5), "start_epoch=1.5"),
        (lambda: make_rule("t_adem", {}), "no rule is called 't_adem'; did you mean 't_adema'"),
        (lambda: rule_weights(swa(), 0), "at least one"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(PolyfuseError) as caught:
        make()
    assert message in str(caught.value)


def test_make_rule_takes_times_apart():
    rule = make_rule("t_adema", {"alpha": 0.5, "start_epoch": 5, "update_every": 3})
    assert rule.options == {"alpha": 0.5, "scale": 1.0, "unit": "updates"}
    assert rule.timing == (3, None, 5)


def test_an_option_that_a_rule_does_not_take_is_named():
    with pytest.raises(PolyfuseError, match="ema has no option 'decya'; did you mean 'decay'"):
        make_rule("ema", {"decya": 0.9})

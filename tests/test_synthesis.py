"""Averages from files equal those that were kept while training; post-hoc EMA; what goes wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyfuse.averaging import Averages, custom, ema, half_life, lawa, power_ema, swa, tanh_ema
from polyfuse.averaging.rules import RULES, exponent
from polyfuse.checkpoints import load_checkpoint, open_checkpoint
from polyfuse.errors import CheckpointError, PolyfuseError
from polyfuse.streaming.provenance import read_provenance
from polyfuse.synthesis import post_hoc, synthesise
from polyfuse.verification import verify
from polyfuse.weights import save_checkpoint

KEPT = {
    "ema": ema(0.8),
    "power": ema(0.9, warmup="power"),
    "tf": ema(0.95, warmup="tf"),
    "exponential": ema(0.9, warmup="exponential", tau=4.0),
    "cumulative": ema(0.8, warmup="cumulative"),
    "swa": swa(),
    "tanh_ema": tanh_ema(0.9, scale=3.0),
    "power_ema": power_ema(0.1),
    "lawa": lawa(3),
    "half_life": half_life(steps=4),
}


def trained(folder, rules, *, steps=12, every=1, dtype=torch.float64):
    """Train a small net, keep averages, and save a checkpoint at each of their updates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    averages = Averages(model, rules, update_every=every)
    paths = []
    for step in range(1, steps + 1):
        loss = model(torch.randn(8, 5, dtype=dtype)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averages.update(samples=8, tokens=100)
        if step % every == 0:
            paths.append(save_checkpoint(model.state_dict(), folder / f"step{step}.pt"))
    return averages, paths


def same(ours, theirs, rtol):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=rtol, atol=rtol)


def named(count, form="{}.pt"):
    return [form.format(10 * (i + 1)) for i in range(count)]


# Rules ------------------------------------------------------------------------------------------


def test_every_rule_is_tested():
    made = {rule.name for rule in KEPT.values()}
    assert made == {made.name for made in (make() for make in map(_made, RULES))}


def _made(name):
    return lambda: RULES[name](**({"steps": 1} if name == "half_life" else {}))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("every", [1, 3])
def test_from_files_is_what_was_kept_while_training(tmp_path, every, dtype, rtol):
    averages, paths = trained(tmp_path, KEPT, every=every, dtype=dtype)
    for name, rule in KEPT.items():
        found = synthesise(paths, rule, every=every).average().state_dict
        same(found, averages.average(name), rtol)


@pytest.mark.parametrize("name", ["half_life", "power_ema", "ema"])
def test_the_numbers_in_the_names_are_steps(tmp_path, name):
    averages, paths = trained(tmp_path, KEPT, every=3)
    every = "numbers" if name == "ema" else None  # the others go by them anyway
    found = synthesise(paths, KEPT[name], every=every).average().state_dict
    same(found, averages.average(name), 1e-13)


@pytest.mark.parametrize(("unit", "each"), [("samples", 8), ("tokens", 100)])
def test_half_lives_in_samples_or_tokens_go_by_names_that_count_them(tmp_path, unit, each):
    rule = half_life(**{unit: 3 * each})
    averages, paths = trained(tmp_path, {"kept": rule})
    times = [each * (i + 1) for i in range(len(paths))]
    same(synthesise(paths, rule, times=times).average().state_dict, averages.average("kept"), 1e-13)


def test_a_decay_is_one_of_a_checkpoint_unless_told_otherwise():
    a, b = 0.9, 0.9**10
    assert synthesise(named(3), ema(a)).shares == pytest.approx((a * a, a * (1 - a), 1 - a))
    for wish in ({"every": 10}, {"every": "numbers"}, {"times": [10, 20, 30]}):
        found = synthesise(named(3), ema(a), **wish)
        assert found.shares == pytest.approx((b * b, b * (1 - b), 1 - b))


@given(st.floats(0, 0.999), st.integers(1, 40))
def test_shares_of_ema_have_the_closed_form(decay, count):
    shares = np.zeros(count)
    found = synthesise(named(count), ema(decay))
    shares[[t // 10 - 1 for t in found.times]] = found.shares
    powers = decay ** np.arange(count)[::-1]
    expected = np.where(np.arange(count) > 0, (1 - decay) * powers, powers)
    np.testing.assert_allclose(shares, expected, rtol=1e-9, atol=1e-12)


@given(st.sampled_from(sorted(KEPT)), st.sets(st.integers(1, 999), min_size=1, max_size=12))
def test_shares_sum_to_one_and_do_not_depend_on_the_order(name, numbers):
    paths = [f"{number}.pt" for number in numbers]
    found = synthesise(sorted(paths), KEPT[name], every="numbers")
    assert sum(found.shares) == pytest.approx(1)
    assert list(found.times) == sorted(found.times)
    assert found == synthesise(sorted(paths, reverse=True), KEPT[name], every="numbers")


def test_checkpoints_without_a_share_are_not_read_and_are_named(tmp_path):
    paths = [save_checkpoint({"w": torch.ones(1) * i}, tmp_path / f"{i}.pt") for i in (9, 10, 11)]
    (tmp_path / "8.pt").write_bytes(b"damaged")
    found = synthesise([*paths, tmp_path / "8.pt"], lawa(2))
    assert [path.name for path in found.left_out] == ["8.pt", "9.pt"]
    assert found.average().state_dict["w"].item() == 10.5


def test_at_leaves_out_what_comes_later():
    found = synthesise(named(4), swa(), at=29)
    assert found.times == (10, 20)
    assert [path.name for path in found.left_out] == ["30.pt", "40.pt"]


def test_the_step_inside_a_checkpoint_is_its_time(tmp_path):
    for name, step in (("a", 20), ("b", 10), ("c", 30)):
        torch.save({"step": step, "model": {"w": torch.tensor([step])}}, tmp_path / f"{name}.pt")
    found = synthesise(sorted(tmp_path.glob("*.pt")), ema(0.5))
    assert found.times == (10, 20, 30)
    assert [path.name for path in found.paths] == ["b.pt", "a.pt", "c.pt"]


def test_epochs_of_tanh_ema_are_numbered_by_checkpoints():
    by_updates = synthesise(named(5), tanh_ema(0.9, scale=3.0))
    by_epochs = synthesise(named(5, "epoch{}.pt"), tanh_ema(0.9, scale=3.0, unit="epochs"))
    decays = [0.9 * np.tanh(n / 3) for n in (2, 3, 4, 5)]  # the first update is in epoch 2
    assert by_epochs.shares[-1] == pytest.approx(1 - decays[-1])
    assert by_epochs.shares[0] == pytest.approx(np.prod(decays))
    assert by_updates.shares[0] == pytest.approx(
        np.prod([0.9 * np.tanh(n / 3) for n in range(1, 5)])
    )


def test_the_output_holds_the_coefficients_and_can_be_verified(tmp_path):
    _, paths = trained(tmp_path, {"kept": swa()}, steps=4, dtype=torch.float32)
    found = synthesise(paths, ema(0.7))
    out = tmp_path / "ema.safetensors"
    found.average(out, dtype=torch.bfloat16)
    with open_checkpoint(out) as checkpoint:
        told = read_provenance(checkpoint)
    assert told["options"]["weights"] == list(found.shares)
    assert [entry["path"] for entry in told["inputs"]] == [path.name for path in found.paths]
    assert verify(out, everything=True)
    assert load_checkpoint(out)["0.weight"].dtype == torch.bfloat16


# Power-EMA --------------------------------------------------------------------------------------


def profile(grid, time, gamma):
    """Return the weight that a power-EMA at a time gives to moments before it."""
    return np.where(grid <= time, (gamma + 1) * grid**gamma / time ** (gamma + 1), 0.0)


def by_quadrature(times, gammas, time, gamma):
    """Solve the same problem with integrals by the midpoint rule and a plain solver."""
    grid = (np.arange(400_000) + 0.5) * (time / 400_000)
    basis = np.stack([profile(grid, t, g) for t, g in zip(times, gammas, strict=True)])
    goal = profile(grid, time, gamma)
    cell = grid[1] - grid[0]
    found = np.linalg.solve(basis @ basis.T * cell, basis @ goal * cell)
    found /= found.sum()
    norm = np.sqrt(np.sum(goal**2))
    return found, np.sqrt(np.sum((found @ basis - goal) ** 2)) / norm


@pytest.mark.parametrize("sigma", [0.04, 0.07, 0.15, 0.2])
@pytest.mark.parametrize("time", [400, 475])
def test_post_hoc_equals_quadrature_and_a_plain_solver(sigma, time):
    times = [100, 200, 300, 400] * 2
    gammas = [exponent(0.05)] * 4 + [exponent(0.1)] * 4
    found, residual = post_hoc(times, gammas, time, exponent(sigma))
    expected, rest = by_quadrature(times, gammas, time, exponent(sigma))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    assert residual == pytest.approx(rest, rel=1e-3)
    assert sum(found) == pytest.approx(1)


@given(
    st.lists(st.tuples(st.integers(1, 500), st.sampled_from([0.05, 0.1])), min_size=1, max_size=20),
    st.floats(0.03, 0.25),
)
def test_post_hoc_survives_any_snapshots(snapshots, sigma):
    times, sigmas = zip(*snapshots, strict=True)
    found, residual = post_hoc(times, list(map(exponent, sigmas)), max(times), exponent(sigma))
    assert sum(found) == pytest.approx(1)
    assert np.isfinite(found).all()
    assert residual >= 0


def test_a_snapshot_of_the_wanted_profile_is_taken_alone():
    gammas = [exponent(s) for s in (0.05, 0.1, 0.05, 0.1)]
    found, residual = post_hoc([50, 50, 100, 100], gammas, 100, exponent(0.1))
    np.testing.assert_allclose(found, [0, 0, 0, 1], atol=1e-9)
    assert residual < 1e-7


def test_hundreds_of_close_snapshots_do_not_blow_up():
    """Where the matrix is singular in fp64, a plain solver's coefficients are noise."""
    times = np.concatenate([np.arange(1000, 1200), np.arange(1000, 1200)])
    gammas = np.concatenate([np.full(200, exponent(0.05)), np.full(200, exponent(0.1))])
    found, residual = post_hoc(times, gammas, 1199, exponent(0.15))
    assert residual < 0.2
    assert np.abs(found).sum() < 100


@pytest.mark.parametrize("sigma", [0.07, 0.15])
def test_post_hoc_from_files_is_near_the_average_that_was_kept(tmp_path, sigma):
    """Two power-EMAs stored eight times make a third one, as near as the residual says."""
    rules = {s: power_ema(s) for s in (0.05, 0.1, sigma)}
    torch.manual_seed(0)
    model = nn.Linear(20, 20, bias=False).double()
    averages = Averages(model, {str(s): rule for s, rule in rules.items()})
    paths, times, stored = [], [], []
    for step in range(1, 801):
        with torch.no_grad():
            model.weight.add_(torch.randn(20, 20), alpha=0.05)
        averages.update()
        for s in (0.05, 0.1) if step % 100 == 0 else ():
            paths.append(save_checkpoint(averages.average(str(s)), tmp_path / f"{s}-{step}.pt"))
            times.append(step)
            stored.append(s)
    found = synthesise(paths, rules[sigma], times=times, stored=stored)
    made, kept = found.average().state_dict["weight"], averages.average(str(sigma))["weight"]
    nearest = min((load_checkpoint(path)["weight"] - kept).norm() for path in paths[-2:])
    assert (made - kept).norm() < 0.25 * nearest
    assert 0 < found.residual < 0.05
    assert min(found.shares) < 0  # so it is no mean of any snapshots
    assert found == synthesise(paths, rules[sigma], stored=stored)  # by the numbers in the names


def test_the_residual_of_raw_snapshots_tells_how_coarse_they_are():
    coarse, fine = (
        synthesise([f"{100 * (i + 1) // n}.pt" for i in range(n)], power_ema(0.1)) for n in (5, 100)
    )
    assert coarse.residual > 10 * fine.residual > 0
    gamma, time = exponent(0.1), 100
    grid = (np.arange(100_000) + 0.5) / 1000
    stairs = np.repeat(np.array(coarse.shares) / 20, 20_000)
    goal = profile(grid, time, gamma)
    expected = np.sqrt(np.sum((stairs - goal) ** 2) / np.sum(goal**2))
    assert coarse.residual == pytest.approx(expected, rel=1e-5)
    assert synthesise(named(3), ema(0.9)).residual is None


def test_only_snapshots_up_to_the_wanted_time_are_used():
    paths = [f"{s}-{t}.pt" for s in (0.05, 0.1) for t in (100, 200, 300)]
    found = synthesise(paths, power_ema(0.07), stored=[0.05] * 3 + [0.1] * 3, at=250)
    assert set(found.times) == {100, 200}
    assert {path.name for path in found.left_out} == {"0.05-300.pt", "0.1-300.pt"}
    expected, _ = post_hoc(
        [100, 100, 200, 200], [*map(exponent, (0.05, 0.1))] * 2, 250, exponent(0.07)
    )
    assert found.shares == pytest.approx(expected)


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "no checkpoints to average"),
        (
            ["a/1.pt", "b/1.pt", "b/2.pt"],
            {},
            "'a/1.pt' and 'b/1.pt' are both of time 1\nname the files of",
        ),
        (["1.pt", "best.pt"], {}, "none in 'best.pt'; name the files of one run only"),
        (["1.pt", "2.pt"], {"times": [1]}, "1 times for 2 checkpoints; give one each"),
        (["1.pt", "2.pt"], {"times": [-1, 1]}, "time -1 of a checkpoint; times are from 0"),
        (["1.pt", "2.pt"], {"every": 0}, "every=0; type a whole number from 1, or 'numbers'"),
        (["1.pt", "2.pt"], {"every": "number"}, "every='number'; type a whole number from 1, or"),
        (["1.pt", "2.pt"], {"every": 2, "times": [1, 2]}, "every goes with raw checkpoints"),
        (["1.pt", "2.pt"], {"at": 0}, "at=0 is before the first checkpoint, of time 1"),
        (["1.pt", "2.pt"], {"stored": 0.1}, "stored power-EMAs make another power-EMA, not 'ema'"),
    ],
)
def test_what_does_not_go_together_is_refused(names, options, message):
    with pytest.raises(PolyfuseError) as caught:
        synthesise(names, ema(0.9), **options)
    assert message in str(caught.value)


def test_stored_power_emas_that_cannot_be_are_refused():
    for stored, message in (
        ([0.1], "1 stored for 2 checkpoints; give one each"),
        ([0.1, 0.5], "sigma_rel=0.5; type 0 < sigma_rel < 0.288"),
    ):
        with pytest.raises(PolyfuseError, match=message):
            synthesise(["1.pt", "2.pt"], power_ema(0.1), stored=stored)
    with pytest.raises(PolyfuseError, match="times above 0 and up to the wanted one, 2; got 0 to"):
        synthesise(["0.pt", "2.pt"], power_ema(0.1), stored=0.05)


def test_checkpoints_that_tell_no_time_are_named(tmp_path):
    paths = [save_checkpoint({"w": torch.ones(1)}, tmp_path / f"{name}.pt") for name in "ab"]
    with pytest.raises(CheckpointError, match=r"no step or epoch is stated by '.*a.pt', '.*b.pt'"):
        synthesise(paths, ema(0.5))


def test_a_rule_that_is_no_weighted_mean_is_refused():
    largest = custom(torch.clone, lambda average, current, n: average.maximum(current))
    with pytest.raises(PolyfuseError, match="'custom' is no weighted mean of the weights"):
        synthesise(named(3), largest)
    slow = custom(torch.clone, lambda average, current, n: average + (current - average) / (n + 2))
    assert synthesise(named(3), slow).shares == pytest.approx((1 / 2, 1 / 4, 1 / 4))

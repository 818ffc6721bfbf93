"""Averages of a member in training: what they hold, which epoch is kept, resumed bit for bit."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tiny
from polyfuse import Arrays, FitOptions, fit_member, mlp
from polyfuse.averaging import ema, half_life, lawa, power_ema, swa, tanh_ema
from polyfuse.errors import TrainingError
from polyfuse.optimizers import sgd

LEARN, STOP = np.arange(16), np.arange(16, 24)
fixed = partial(FitOptions, accelerator="cpu", batch_size=8, epochs=4)
DATA = tiny.arrays()


def net(seed=0):
    torch.manual_seed(seed)
    return mlp(inputs=4, classes=2, hidden=8, dropout=0.3)


def normed(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def fit(model, options, *, data=DATA, **others):
    return fit_member(model, data, LEARN, STOP, options, seed=3, **others)


class Recording:
    """Makes an optimiser that notes the weights after each of its steps."""

    def __init__(self):
        self.steps = []

    def __call__(self, parameters):
        parameters = list(parameters)
        optimizer = sgd(parameters, lr=0.3)
        optimizer.register_step_post_hook(
            lambda *_: self.steps.append([p.detach().double().clone() for p in parameters])
        )
        return optimizer


def mean(steps, shares):
    """Return the weighted sum of the weights of several steps, in fp64."""
    tensors = zip(*steps, strict=True)
    return [sum(w * t for w, t in zip(shares, each, strict=True)) for each in tensors]


def of_ema(steps, decay):
    shares = [decay ** (len(steps) - 1)]
    shares += [(1 - decay) * decay ** (len(steps) - 1 - i) for i in range(1, len(steps))]
    return mean(steps, shares)


def of_tanh(steps, alpha):
    average = steps[0]
    for n, step in enumerate(steps[1:], 1):
        decay = alpha * np.tanh(n)
        average = [decay * a + (1 - decay) * b for a, b in zip(average, step, strict=True)]
    return average


def alike(steps):
    return mean(steps, [1 / len(steps)] * len(steps))


RULES = {
    "ema": (ema(0.8), lambda steps: of_ema(steps, 0.8)),
    "late": (swa().timed(start_epoch=2), lambda steps: alike(steps[4:])),
    "t_adema": (tanh_ema(0.9), lambda steps: of_tanh(steps, 0.9)),
    "last": (lawa(3), lambda steps: alike(steps[-3:])),
    "rows": (half_life(samples=16), lambda steps: of_ema(steps, 0.5**0.5)),  # 8 rows a step
}


@pytest.fixture(scope="module")
def tracked():
    """Return training with several averages: what was kept, the weights of all steps, the model."""
    recording, model = Recording(), net()
    rules = {name: rule for name, (rule, _) in RULES.items()}
    options = fixed(optimizer=recording, averaging=rules)
    return fit(model, options), recording.steps, model


@pytest.mark.parametrize("name", RULES)
def test_an_average_is_that_of_the_weights_after_each_step(tracked, name):
    fitted, steps, model = tracked
    assert len(steps) == 8  # two batches in each of four epochs
    kept = fitted.averages[name]
    expected = RULES[name][1](steps[: 2 * kept.best_epoch])
    names = [name for name, _ in model.named_parameters()]
    for each, value in zip(names, expected, strict=True):
        torch.testing.assert_close(kept.state[each].double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_an_average_keeps_its_own_best_epoch(tracked, name):
    fitted, _, _ = tracked
    losses = [epoch.get(f"{name}_stopping_loss", np.inf) for epoch in fitted.history]
    kept = fitted.averages[name]
    assert kept.best_epoch == 1 + int(np.argmin(losses))
    model = net()
    model.load_state_dict(kept.state)
    with torch.no_grad():
        logits = model.eval()(DATA.values[STOP])
    loss = functional.cross_entropy(logits, torch.from_numpy(DATA.labels[STOP]))
    assert kept.loss == min(losses) == pytest.approx(float(loss), rel=1e-6)


def test_without_stopping_rows_the_last_epoch_is_kept(tmp_path):
    class Killed(BaseException):
        pass

    def kill(done, total, note):
        if done == 2:
            raise Killed

    recording, none = Recording(), STOP[:0]
    options = fixed(averaging={"swa": swa()}, optimizer=recording)
    whole = fit_member(net(), DATA, LEARN, none, options, seed=3)
    kept = whole.averages["swa"]
    assert (kept.best_epoch, kept.loss) == (4, None)
    for place, (name, _) in enumerate(net().named_parameters()):
        mean = torch.stack([step[place].double() for step in recording.steps]).mean(0)
        torch.testing.assert_close(kept.state[name].double(), mean, rtol=1e-5, atol=1e-6)
    again = partial(fit_member, net(), DATA, LEARN, none, options, seed=3, resume=tmp_path / "r")
    with pytest.raises(Killed):
        again(notify=kill)
    resumed = again().averages["swa"]
    assert tiny.same(resumed.state, kept.state)
    assert resumed[1:] == kept[1:]


def test_an_average_that_has_not_begun_is_not_scored(tracked):
    fitted, _, _ = tracked
    assert ["late_stopping_loss" in epoch for epoch in fitted.history] == [False, False, True, True]


@pytest.mark.parametrize("model", [net, normed])
def test_tracking_changes_nothing_of_the_member(model):
    plain, own = model(), model()
    alone = fit(plain, fixed())
    beside = fit(own, fixed(averaging={"ema": ema(0.9), "swa": swa().timed(start_epoch=1)}))
    assert tiny.same(alone.state, beside.state)
    assert tiny.same(plain.state_dict(), own.state_dict())
    assert alone.history == [
        {key: value for key, value in epoch.items() if not key.endswith("a_stopping_loss")}
        for epoch in beside.history
    ]


def test_batch_norm_is_measured_with_the_averaged_weights():
    fitted = fit(normed(), fixed(averaging={"ema": ema(0.9)}))
    state = fitted.averages["ema"].state
    hidden = DATA.values[LEARN] @ state["0.weight"].T + state["0.bias"]
    torch.testing.assert_close(state["1.running_mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state["1.running_var"], hidden.var(0), rtol=1e-5, atol=1e-6)
    assert not torch.equal(state["1.running_mean"], fitted.state["1.running_mean"])


# Resuming -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: like a signal, nothing inside may catch it."""


def raising_after(epochs):
    def notify(done, total, note):
        if done == epochs:
            raise Killed

    return notify


AVERAGING = {
    "ema": ema(0.9, warmup="power"),
    "swa": partial(swa),
    "late": swa().timed(start_epoch=2, update_every="epoch"),
    "epochs": tanh_ema(0.9, scale=2.0, unit="epochs"),
    "power": power_ema(0.1),
    "lawa": lawa(2),
    "rows": half_life(samples=20).timed(update_every=2),
}
CASES = {
    "dropout": (net, {}),
    "batch-norm": (normed, {}),
    "accumulate": (net, {"batch_size": 4, "accumulate": 3}),
    "bfloat16": (normed, {"precision": "bf16-mixed"}),
    "bfloat16 throughout": (normed, {"precision": "bf16-true"}),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_after_any_epoch_and_resumed_gives_the_same_bits(case, tmp_path):
    model, changes = CASES[case]
    options = fixed(averaging=AVERAGING, **changes)
    whole_file = tmp_path / "whole.safetensors"
    whole = fit(model(), options, resume=whole_file)
    for done in (1, 2, 3):
        file = tmp_path / f"{done}.safetensors"
        with pytest.raises(Killed):
            fit(model(), options, resume=file, notify=raising_after(done))
        again = fit(model(seed=9), options, resume=file)
        assert again.history == whole.history
        assert again.averages.keys() == AVERAGING.keys()
        for name, kept in again.averages.items():
            assert tiny.same(kept.state, whole.averages[name].state)
            assert kept[1:] == whole.averages[name][1:]
        assert file.read_bytes() == whole_file.read_bytes()


def test_patience_waits_until_every_average_has_begun():
    still = fixed(epochs=9, patience=1, optimizer=partial(sgd, momentum=0.0, lr=0.0))
    assert len(fit(net(), still).history) == 2
    late = {"swa": swa().timed(start_epoch=4)}
    fitted = fit(net(), FitOptions(**{**vars(still), "averaging": late}))
    assert len(fitted.history) == 5
    assert fitted.best_epoch == 1


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("averaging", "fact"),
    [
        ({"swa": swa().timed(start_epoch=4)}, "swa: start_epoch=4; training has 4 epochs, so it"),
        ({"a/b": swa()}, "'a/b' names a folder, so it has letters, digits, - and _ only"),
        ({"": swa()}, "'' names a folder"),
        ({"ema": partial(ema, 1.5)}, "averaging: ema: decay=1.5; type 0 <= decay < 1"),
        ({"ema": lambda: 0.9}, "ema: expected a rule, such as ema.*; got a float"),
    ],
)
def test_averages_that_cannot_begin(averaging, fact):
    with pytest.raises(TrainingError, match=fact):
        fixed(averaging=averaging)


def test_a_start_after_the_last_step_is_refused_before_training():
    options = fixed(averaging={"a": swa().timed(start_step=8), "b": swa().timed(start_step=7)})
    with pytest.raises(TrainingError, match="averaging: a: start_step=8; training has 8 steps"):
        fit(net(), options)


def test_fingerprints_tell_averages_apart_and_hold_no_addresses():
    plain = fixed()
    options = [
        plain,
        fixed(averaging={"ema": ema(0.9)}),
        fixed(averaging={"mine": ema(0.9)}),
        fixed(averaging={"ema": ema(0.99)}),
        fixed(averaging={"ema": ema(0.9).timed(start_step=3)}),
        fixed(averaging={"ema": partial(ema, 0.9)}),
    ]
    prints = [option.fingerprint() for option in options]
    assert len(set(prints)) == len(prints)
    assert not any("0x" in text for text in prints)
    assert "averaging" not in prints[0]


def test_data_of_one_dimension_more():
    """Images, channels last: strides of averages follow those of their weights."""
    draw = torch.Generator().manual_seed(0)
    images = Arrays(torch.rand(24, 3, 8, 8, generator=draw), np.arange(24) % 2)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).to(memory_format=torch.channels_last)
    fitted = fit(model, fixed(averaging={"ema": ema(0.9)}), data=images)
    assert fitted.averages["ema"].state["0.weight"].shape == (4, 3, 3, 3)

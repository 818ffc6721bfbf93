"""Three faults of voting in torchensemble 0.2.0, each with what it looks like, and that we lack it.

Where `make peers` has been, the first two are seen in torchensemble itself.

(a) members that are "best" are the objects that go on training; (b) the first validation is run in
training mode; (c) one schedule, that of the first member, sets the rates of all.
"""

import json
import math
import os
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tiny
from polyfuse import Arrays, FitOptions, Task, fit_member, train
from polyfuse.optimizers import adamw, sgd
from polyfuse.schedules import constant, cosine
from polyfuse.training.independent import independent

LEARN, STOP = np.arange(16), np.arange(16, 24)
fixed = partial(FitOptions, accelerator="cpu", batch_size=8)


class Net(nn.Module):
    """Batch-norm and dropout, which tell the two modes apart; notes the mode of every pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)
        )
        self.passes = []

    def forward(self, x):
        self.passes.append((self.training, len(x)))
        return self.body(x)


def turned():
    """Labels of the stopping rows are flipped, so that training makes them worse."""
    data = tiny.arrays()
    labels = data.labels.copy()
    labels[STOP] = 1 - labels[STOP]
    return Arrays(data.values, labels)


def loss_of(model, data, rows, *, training=False):
    model.train(training)
    with torch.no_grad():
        logits = model(data.values[rows])
    return float(functional.cross_entropy(logits, torch.from_numpy(data.labels[rows])))


def loaded(state):
    model = Net()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def theirs():
    """What torchensemble does on rows whose labels training makes worse."""
    root = Path(__file__).parents[2]
    python = Path(os.environ.get("POLYFUSE_PEERS", root / ".venv-peers")) / "bin" / "python"
    if not python.exists():
        pytest.skip("torchensemble is not installed beside this; `make peers` does that")
    command = [python, root / "tests" / "peer_faults.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_torchensemble_has_the_first_two_faults(theirs):
    assert theirs["kept"] < theirs["logged"] - 1  # percent right, of members that it calls the best
    assert theirs["first_modes"] == [True, True]


# (a) --------------------------------------------------------------------------------------------


def test_the_best_is_no_object_that_trains_on():
    data, model = turned(), Net()
    fast = fixed(epochs=15, optimizer=partial(adamw, lr=0.03), schedule=constant)
    fitted = fit_member(model, data, LEARN, STOP, fast, seed=3)
    logged = min(epoch["stopping_loss"] for epoch in fitted.history)
    assert fitted.best_epoch < 15
    assert loss_of(loaded(fitted.state), data, STOP) == pytest.approx(logged, rel=1e-5)
    # The fault: what is kept is the model itself, so the loss is that of the last epoch.
    assert loss_of(model, data, STOP) > 1.05 * logged


def test_members_that_were_trained_keep_their_bits_while_others_are():
    data, model = turned(), Net()
    first = fit_member(model, data, LEARN, STOP, fixed(epochs=2), seed=3, collect=[1])
    kept = {name: value.clone() for name, value in first.state.items()}
    early = {name: value.clone() for name, value in first.collected[1].items()}
    fit_member(model, data, LEARN, STOP, fixed(epochs=2), seed=4)
    assert tiny.same(first.state, kept)
    assert tiny.same(first.collected[1], early)
    assert not tiny.same(first.state, model.state_dict())


# (b) --------------------------------------------------------------------------------------------


def test_the_first_validation_is_in_eval_mode_and_every_other():
    data, model = tiny.arrays(), Net()
    still = fixed(epochs=3, optimizer=partial(sgd, lr=0.0))
    fitted = fit_member(model, data, LEARN, STOP, still, seed=3)
    assert model.passes[1:] == 3 * [
        (True, 8),
        (True, 8),
        (False, 8),
    ]  # the first is of check_labels
    one = fit_member(Net(), data, LEARN, STOP, fixed(epochs=1, optimizer=still.optimizer), seed=3)
    wanted = loss_of(loaded(one.state), data, STOP)
    assert fitted.history[0]["stopping_loss"] == pytest.approx(wanted, rel=1e-5)
    # The fault: batch-norm of the batch, dropout at work.
    faulty = loss_of(loaded(one.state), data, STOP, training=True)
    assert abs(faulty - wanted) > 0.01


def test_training_goes_on_in_training_mode_after_a_validation():
    model = Net()
    fit_member(model, tiny.arrays(), LEARN, STOP, fixed(epochs=2), seed=3)
    assert all(module.training for module in model.modules())


# (c) --------------------------------------------------------------------------------------------


def two_rates(parameters, *, lr=0.1):
    """Give weights ten times the rate of biases."""
    parameters = list(parameters)
    biases = [p for p in parameters if p.ndim == 1]
    weights = [p for p in parameters if p.ndim > 1]
    return torch.optim.SGD([{"params": weights, "lr": lr}, {"params": biases, "lr": lr / 10}])


def test_a_schedule_scales_the_rate_of_each_group(monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def watching(self, closure=None):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", watching)
    options = fixed(epochs=2, optimizer=two_rates)
    fit_member(Net(), tiny.arrays(), LEARN, STOP, options, seed=3)
    factors = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert seen == [pytest.approx([0.1 * f, 0.01 * f]) for f in factors]


def test_every_member_has_the_whole_schedule(tmp_path):
    splits = tiny.splits(36)
    options = fixed(epochs=4, optimizer=partial(sgd, lr=0.2), together="never")
    population = train(independent(splits.train, members=3), Task(Net, splits, options), tmp_path)
    rates = [[epoch["rate"] for epoch in m.record["history"]] for m in population.members]
    steps = math.ceil(len(population.members[0].rows("learned")) / 8)
    wanted = [0.2 * cosine((epoch + 1) * steps - 1, 4 * steps) for epoch in range(4)]
    # The fault: the second member begins where the first has ended, at a rate of about 0.
    assert rates == 3 * [pytest.approx(wanted)]


def test_members_of_other_schedules_do_not_mix():
    for schedule, last in ((constant, 0.2), (cosine, 0.2 * cosine(3, 4))):
        options = fixed(epochs=2, optimizer=partial(sgd, lr=0.2), schedule=schedule)
        fitted = fit_member(Net(), tiny.arrays(), LEARN, STOP, options, seed=3)
        assert fitted.history[-1]["rate"] == pytest.approx(last)

"""Joint training: the losses by their formulas, and members as the parts of one training."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import polyfuse
import tiny
from polyfuse import FitOptions, Task, fit_member
from polyfuse.averaging import ema
from polyfuse.errors import TrainingError
from polyfuse.losses import cross_entropy, loss_of_mean, negative_correlation_loss
from polyfuse.optimizers import sgd
from polyfuse.training.base import member_seeds
from polyfuse.training.joint import joint, negative_correlation


def squared(outputs, labels, *, weights=None):
    each = (outputs - labels).square().flatten(1).sum(1)
    return (each if weights is None else each * weights).mean()


def brier(logits, labels, *, weights=None):
    return squared(logits.softmax(-1), functional.one_hot(labels, logits.shape[-1]))


def drawn(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()


def gradient(loss, outputs):
    return torch.autograd.grad(loss, outputs)[0]


# Losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_of_a_squared_error_it_is_liu_and_yao(strength):
    f, y = drawn(4, 6, 3), drawn(6, 3, seed=1).detach()
    loss = negative_correlation_loss(squared, f, y, strength=strength, mean="output")
    spread = (f - f.mean(0)).square()
    formula = ((f - y).square() - strength * spread).sum() / 6
    torch.testing.assert_close(loss, formula, rtol=1e-12, atol=0)
    # The gradient of the paper's equation 5, with the others' answers held still.
    by_hand = 2 * ((f - y) - strength * (f - f.mean(0))) / 6
    torch.testing.assert_close(gradient(loss, f), by_hand, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_of_a_squared_error_of_probabilities_likewise(strength):
    z, labels = drawn(4, 6, 3), torch.arange(6) % 3
    p, y = z.softmax(-1), functional.one_hot(labels, 3)
    loss = negative_correlation_loss(brier, z, labels, strength=strength)
    formula = ((p - y).square() - strength * (p - p.mean(0)).square()).sum() / 6
    torch.testing.assert_close(gradient(loss, z), gradient(formula, z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_of_a_cross_entropy_it_takes_off_the_divergence_from_the_mean(strength):
    z, labels = drawn(4, 6, 3), torch.arange(6) % 3
    loss = negative_correlation_loss(cross_entropy, z, labels, strength=strength, mean="output")
    logs, centre = z.log_softmax(-1), z.mean(0).log_softmax(-1)
    right = logs.gather(-1, labels.expand(4, 6)[..., None])
    divergence = (centre.exp() * (centre - logs)).sum(-1)
    formula = (-right[..., 0] - strength * divergence).sum() / 6
    torch.testing.assert_close(loss, formula, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mean", ["output", "probability"])
@pytest.mark.parametrize("each", [cross_entropy, brier])
def test_full_strength_is_joint_training_of_the_mean(each, mean):
    z, labels = drawn(5, 6, 3), torch.arange(6) % 3
    full = negative_correlation_loss(each, z, labels, strength=1, mean=mean)
    of_mean = loss_of_mean(each, z, labels, mean=mean)
    torch.testing.assert_close(gradient(full, z), 5 * gradient(of_mean, z), rtol=1e-9, atol=1e-12)


def test_the_mean_of_probabilities_is_that_of_the_softmax():
    z, labels = drawn(5, 6, 2, 3), torch.arange(12).view(6, 2) % 3
    mean = z.softmax(-1).mean(0)
    wanted = -mean.log().gather(-1, labels[..., None]).sum() / 6
    torch.testing.assert_close(loss_of_mean(cross_entropy, z, labels), wanted, rtol=1e-12, atol=0)


def test_weights_reach_every_part():
    z, labels = drawn(3, 4, 2), torch.tensor([0, 1, 1, 0])
    weights = torch.tensor([0.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    some = negative_correlation_loss(cross_entropy, z, labels, weights=weights)
    only = negative_correlation_loss(cross_entropy, z[:, 1:3], labels[1:3])
    torch.testing.assert_close(some, only, rtol=1e-12, atol=0)


# Training ---------------------------------------------------------------------------------------


def normed():
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2)]
    return nn.Sequential(*layers)


def task(factory=normed, **options):
    return Task(factory, tiny.splits(), tiny.task(**options).options)


def trained(folder, strategy, **options):
    return polyfuse.train(strategy, task(**options), folder)


@pytest.mark.parametrize("plan", [joint, negative_correlation])
def test_members_are_the_parts_of_what_was_trained(plan, tmp_path):
    found = trained(tmp_path, plan(tiny.splits().train, members=3), averaging={"ema": ema(0.5)})
    assert len(found.members) == 3
    losses = [m.record["history"] for m in found.members]
    assert losses[0] == losses[1] == losses[2]
    data = tiny.splits().val
    for member in found.members:
        with torch.no_grad():
            said = member.model(normed)(data.values).numpy()
        np.testing.assert_allclose(member.predictions("val"), said, rtol=1e-5, atol=1e-6)
        assert member.averages == ("ema",)
    weights = [m.state()["0.weight"] for m in found.members]
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("plan", [joint, negative_correlation])
def test_the_epoch_is_chosen_by_the_loss_of_the_mean(plan, tmp_path):
    data = tiny.splits()
    options = {"epochs": 4, "optimizer": partial(sgd, lr=0.5)}
    found = trained(tmp_path, plan(data.train, members=3), **options)
    [member, *_] = found.members
    history, best = member.record["history"], member.record["best_epoch"]
    stopping = [epoch["stopping_loss"] for epoch in history]
    assert best == 1 + int(np.argmin(stopping))
    rows = member.rows("stopped")
    with torch.no_grad():
        z = torch.stack([m.model(normed)(data.train.values[rows]) for m in found.members])
    labels = torch.from_numpy(data.train.labels[rows])
    assert stopping[best - 1] == pytest.approx(float(loss_of_mean(cross_entropy, z, labels)), 1e-5)


def test_without_strength_each_member_is_trained_as_if_alone(tmp_path):
    factory = partial(polyfuse.mlp, inputs=4, classes=2, hidden=5)
    strategy = negative_correlation(tiny.splits().train, members=2, strength=0)
    [job] = strategy.jobs([])
    found = polyfuse.train(strategy, task(factory, epochs=1), tmp_path)
    options = FitOptions(epochs=1, batch_size=8, accelerator="cpu")
    for member, seed in zip(found.members, member_seeds(job.seed, 2), strict=True):
        with polyfuse.determinism.seeded(seed):
            model = factory()
        fitted = fit_member(model, tiny.splits().train, job.learn, job.stop, options, seed=job.seed)
        for name, value in member.state().items():
            torch.testing.assert_close(value, fitted.state[name], rtol=1e-5, atol=1e-6)


class Killed(BaseException):
    """Not an Exception: like a signal, nothing inside may catch it."""


def test_a_killed_joint_training_goes_on_with_the_same_bits(tmp_path):
    strategy = negative_correlation(tiny.splits().train, members=2)

    def die(number, done, total, note):
        if done == 1:
            raise Killed

    with pytest.raises(Killed):
        polyfuse.train(strategy, task(), tmp_path / "killed", watch=die)
    polyfuse.train(strategy, task(), tmp_path / "killed")
    polyfuse.train(strategy, task(), tmp_path / "clean")
    assert tiny.hashes(tmp_path / "killed") == tiny.hashes(tmp_path / "clean")


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (joint, {"members": 1}, "members=1; joint training needs 2 or more"),
        (negative_correlation, {"strength": 1.5}, r"strength=1.5; it must be from 0"),
        (negative_correlation, {"strength": float("nan")}, "strength=nan"),
    ],
)
def test_plans_of_nothing_are_refused(plan, options, message):
    with pytest.raises(TrainingError, match=message):
        plan(tiny.splits().train, **options)


def test_one_model_twice_is_refused(tmp_path):
    model = normed()
    with pytest.raises(TrainingError, match="returns the same object again"):
        polyfuse.train(joint(tiny.splits().train), task(lambda: model), tmp_path)


def test_members_that_would_begin_as_one_are_refused(tmp_path):
    torch.save(normed().state_dict(), tmp_path / "start.pt")
    options = {"start": str(tmp_path / "start.pt")}
    with pytest.raises(TrainingError, match="would begin all members of a joint training as one"):
        trained(tmp_path / "run", joint(tiny.splits().train), **options)

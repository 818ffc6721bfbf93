"""Optimisers: one contract for all, and parity with torch's own."""

import inspect

import pytest
import torch

from polyfuse.optimizers import OPTIMIZERS, adam, adamw, rmsprop, sgd

every = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
PEERS = {
    adamw: torch.optim.AdamW,
    adam: torch.optim.Adam,
    sgd: torch.optim.SGD,
    rmsprop: torch.optim.RMSprop,
}
OPTIONS = [
    (adamw, {"lr": 0.01, "weight_decay": 0.3}),
    (adam, {"lr": 0.01, "weight_decay": 0.3}),
    (sgd, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.3}),
    (sgd, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    (rmsprop, {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "weight_decay": 0.3}),
]


def trained(make, steps=5):
    """Return weights after some steps down a bowl."""
    weights = torch.nn.Parameter(torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = make([weights])
    for _ in range(steps):
        optimizer.zero_grad()
        (weights * torch.tensor([1.0, 0.1, 5.0])).square().sum().backward()
        optimizer.step()
    return weights.detach()


@every
def test_steps_down(optimizer):
    def height(weights):
        return (weights * torch.tensor([1.0, 0.1, 5.0])).square().sum()

    lower = trained(lambda p: optimizer(p, lr=0.01), 20)
    assert height(lower) < height(trained(optimizer, 0))


@every
def test_is_a_torch_optimizer_with_the_rate_asked_for(optimizer):
    made = optimizer(torch.nn.Linear(2, 2).parameters(), lr=0.25)
    assert isinstance(made, torch.optim.Optimizer)
    assert made.param_groups[0]["lr"] == 0.25


@every
def test_a_rate_of_zero_changes_nothing(optimizer):
    weights = trained(lambda p: optimizer(p, lr=0.0))
    assert torch.equal(weights, trained(optimizer, 0))


@pytest.mark.parametrize(("optimizer", "options"), OPTIONS)
def test_matches_torch_with_options(optimizer, options):
    ours = trained(lambda p: optimizer(p, **options))
    assert torch.equal(ours, trained(lambda p: PEERS[optimizer](p, **options)))


@every
def test_its_defaults_are_those_of_its_signature(optimizer):
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(optimizer).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    group = optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert {name: group[name] for name in defaults} == defaults


def test_every_optimizer_has_its_peer():
    assert set(OPTIMIZERS.values()) == set(PEERS)

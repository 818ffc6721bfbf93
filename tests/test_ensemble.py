"""Ensemble: members and a combiner as one module."""

import pytest
import torch
from torch import nn

from polyfuse.combine import CLASS_COMBINERS, hard_vote, mean_probability
from polyfuse.compare import FUSIONS
from polyfuse.ensemble import Ensemble
from polyfuse.errors import PolyfuseError


def some_members(count=3):
    torch.manual_seed(0)
    sizes = range(5, 5 + count)
    return [nn.Sequential(nn.Linear(4, k), nn.Dropout(), nn.Linear(k, 3)) for k in sizes]


@pytest.mark.parametrize("combiner", CLASS_COMBINERS.values(), ids=CLASS_COMBINERS)
def test_answers_as_the_combiner_of_its_members(combiner):
    members = some_members()
    ensemble, inputs = Ensemble(members, combiner).eval(), torch.randn(7, 4)
    stacked = torch.stack([member(inputs) for member in members])
    torch.testing.assert_close(ensemble.logits(inputs), stacked)
    torch.testing.assert_close(ensemble(inputs), combiner(stacked))


@pytest.mark.parametrize("combiner", FUSIONS.values(), ids=FUSIONS)
def test_takes_members_with_several_heads(combiner):
    torch.manual_seed(0)
    heads = [nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))) for _ in range(3)]
    answer = Ensemble(heads, combiner)(torch.randn(7, 4))
    assert answer.shape[:2] == (7, 2)


def test_averages_probabilities_unless_told_otherwise():
    ensemble, inputs = Ensemble(some_members()).eval(), torch.randn(7, 4)
    torch.testing.assert_close(ensemble(inputs), mean_probability(ensemble.logits(inputs)))


def test_modes_state_and_parameters_reach_the_members():
    members = some_members()
    ensemble = Ensemble(iter(members)).eval()
    assert not any(module.training for member in members for module in member.modules())
    assert len(list(ensemble.parameters())) == 12
    ensemble.double()
    assert ensemble(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float64
    other = Ensemble(some_members()).double().eval()
    nn.init.zeros_(other.members[0][0].weight)
    other.load_state_dict(ensemble.state_dict())
    inputs = torch.randn(7, 4, dtype=torch.float64)
    assert torch.equal(other(inputs), ensemble(inputs))


def test_it_can_be_trained_through():
    ensemble = Ensemble(some_members())
    ensemble(torch.randn(7, 4)).log()[:, 0].sum().backward()
    assert all(p.grad is not None for p in ensemble.parameters())


def test_one_member_is_itself():
    [member] = some_members(1)
    inputs = torch.randn(7, 4)
    answer = Ensemble([member.eval()])(inputs)
    torch.testing.assert_close(answer, member(inputs).softmax(-1))
    assert Ensemble([member], hard_vote)(inputs).tolist() == answer.argmax(-1).tolist()


def test_no_members_are_refused():
    with pytest.raises(PolyfuseError, match="at least one member; got none"):
        Ensemble([])

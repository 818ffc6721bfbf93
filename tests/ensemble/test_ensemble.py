"""Ensemble: members and a combiner as one module."""

import copy
import io
import pickle
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from polyfuse.combine import (
    CLASS_COMBINERS,
    COMBINERS,
    hard_vote,
    mean_probability,
    trimmed_mean,
)
from polyfuse.ensemble import Ensemble
from polyfuse.errors import DataError, PolyfuseError
from polyfuse.tasks import FUSIONS, RULES


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


@pytest.mark.parametrize("name", [*RULES["classification"].fusions, "mean_value"])
def test_takes_members_with_several_heads(name):
    combiner = FUSIONS[name]
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


def test_state_round_trip_is_exact_and_holds_the_weights():
    torch.manual_seed(0)
    inputs = torch.randn(7, 4)
    one = Ensemble(some_members(), weights=[3, 1, 2]).eval()
    other = Ensemble(some_members(), weights=[1, 1, 1]).eval()
    nn.init.zeros_(other.members[0][0].weight)
    assert not torch.equal(one(inputs), other(inputs))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(one(inputs), other(inputs))
    assert torch.equal(copy.deepcopy(one)(inputs), one(inputs))
    assert torch.equal(pickle.loads(pickle.dumps(one))(inputs), one(inputs))


def test_weights_keep_their_precision_when_members_are_cast():
    ensemble = Ensemble(some_members(), weights=[1, 1, 1]).eval().half()
    assert ensemble.weights.dtype == torch.float64
    assert ensemble.members[0][0].weight.dtype == torch.float16
    answer = ensemble(torch.randn(7, 4).half())
    assert answer.dtype == torch.float16
    torch.testing.assert_close(answer.float().sum(-1), torch.ones(7), atol=2e-3, rtol=0)


def test_shared_parts_are_counted_once_and_stay_shared():
    trunk = nn.Linear(4, 8)
    ensemble = Ensemble([nn.Sequential(trunk, nn.Linear(8, 3)) for _ in range(2)])
    assert sum(p.numel() for p in ensemble.parameters()) == 40 + 2 * 27
    copied = copy.deepcopy(ensemble)
    assert copied.members[0][0] is copied.members[1][0]
    ensemble.load_state_dict(copied.state_dict())
    assert ensemble.members[0][0] is ensemble.members[1][0]


def test_returns_members_on_request():
    ensemble = Ensemble(some_members(), weights=[1, 0, 1]).eval()
    inputs = torch.randn(7, 4)
    answer, logits = ensemble(inputs, return_members=True)
    assert torch.equal(logits, ensemble.logits(inputs))
    assert logits.shape == (3, 7, 3)
    assert torch.equal(answer, ensemble(inputs))


def test_a_member_without_a_weight_is_not_run():
    def never(inputs):
        raise AssertionError

    inputs = torch.randn(7, 4)
    [member, _, _] = some_members()
    answer = Ensemble([member.eval(), never], weights=[2, 0])(inputs)
    torch.testing.assert_close(answer, member(inputs).softmax(-1))


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mean_probability", "mean_logit", "geometric_mean"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_sums_equal_the_combiner_however_large_the_outputs(
    name, dtype, weights, exclusive, monkeypatch
):
    torch.manual_seed(0)
    stored = torch.randn(3, 7, 3, dtype=dtype)
    members = [partial(torch.add, one) for one in stored]
    inputs = torch.zeros(7, 3, dtype=dtype)
    ensemble = Ensemble(members, name, weights=weights, exclusive=exclusive)
    expected = COMBINERS[name](stored, weights=weights, exclusive=exclusive)
    slack = {"atol": 1e-6, "rtol": 0} if dtype != torch.bfloat16 else {}
    torch.testing.assert_close(ensemble(inputs), expected, **slack)
    monkeypatch.setattr("polyfuse.ensemble.gathering.AT_ONCE", 0)
    if exclusive:  # the same operations in the same order
        assert torch.equal(ensemble(inputs), expected)
    torch.testing.assert_close(ensemble(inputs), expected, **slack)


def test_large_outputs_are_not_kept(monkeypatch):
    monkeypatch.setattr("polyfuse.ensemble.gathering.AT_ONCE", 0)
    alive, most = weakref.WeakSet(), []

    def member(inputs):
        most.append(len(alive))
        output = inputs + 1
        alive.add(output)
        return output

    Ensemble([member] * 5, "mean_value")(torch.zeros(4, 3))
    assert max(most) <= 2  # the last, and the one before


def test_mean_of_numbers_and_other_options():
    members = [partial(torch.add, float(number)) for number in range(3)]
    assert Ensemble(members, "mean_value", weights=[1, 1, 2])(torch.zeros(2)).tolist() == [1.25] * 2
    stored = torch.randn(3, 7, 4)
    members = [partial(torch.add, one) for one in stored]
    answer = Ensemble(members, "trimmed_mean", cut=0.4)(torch.zeros(7, 4))
    torch.testing.assert_close(answer, trimmed_mean(stored, cut=0.4))
    same = Ensemble(members, partial(trimmed_mean, cut=0.4))(torch.zeros(7, 4))
    assert torch.equal(answer, same)


def test_gradients_reach_members_through_weights():
    ensemble = Ensemble(some_members(), weights=[1, 2, 3])
    ensemble(torch.randn(7, 4))[:, 0].log().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in ensemble.parameters())


def test_a_module_as_combiner_is_part_of_the_state():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.ones(3))

        def forward(self, logits):
            return torch.einsum("m,mnc->nc", self.weights.softmax(0), logits)

    ensemble = Ensemble(some_members(), Learned()).eval()
    assert "combiner.weights" in ensemble.state_dict()
    torch.testing.assert_close(
        ensemble(torch.ones(2, 4)), ensemble.logits(torch.ones(2, 4)).mean(0)
    )


def test_nan_is_told_by_the_members_name():
    def bad(inputs):
        return torch.where(inputs > 1, torch.nan, inputs)

    ensemble = Ensemble([nn.Identity(), bad], check=True)
    inputs = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 0.0]])
    with pytest.raises(
        DataError, match=r"member 1 \(Function\) has NaN .* in 2 rows, the first is 1"
    ):
        ensemble(inputs)
    quiet = Ensemble([nn.Identity(), bad])
    assert quiet(inputs).isnan().any(-1).tolist() == [False, True, True]
    assert ensemble(inputs[:1]).shape == (1, 2)

"""Tensors by name through wrappers, differences said in words, and changes that are noticed."""

import pytest
import torch
from odd import Odd
from torch import nn

from polyfuse.averaging.structure import Watch, clean, differences, tensors_of, unwrap


def eager(model):
    return torch.compile(model, backend="eager")


def test_wrappers_are_looked_through():
    model = nn.Sequential(nn.Linear(2, 2))
    assert unwrap(nn.DataParallel(eager(model))) is model
    assert unwrap(eager(nn.DataParallel(model))) is model
    model[0] = eager(model[0])
    assert list(tensors_of(model).averaged) == ["0.weight", "0.bias"]
    assert clean("_orig_mod.a._fsdp_wrapped_module._checkpoint_wrapped_module.w") == "a.w"


def test_kinds_of_tensors():
    found = tensors_of(Odd())
    assert found.order == list(Odd().state_dict())
    assert found.aliases == {"twin.weight": "conv.weight"}
    assert "codes" in found.followed
    assert {"mean", "norm.running_mean"} <= found.followed.keys()
    assert {"mean", "norm.running_mean"} <= tensors_of(Odd(), use_buffers=True).averaged.keys()
    assert {"none", "wave", "scale", "frozen"} <= found.averaged.keys()


def test_all_differences_are_told():
    faults = differences({"a": [1], "b": [2], "c": [3]}, {"a": [2], "zz": [3]}, ("one", "two"))
    assert faults == [
        "two lacks 'b', 'c', which one has",
        "one lacks 'zz', which two has",
        "'a' has shape (1,) in one and (2,) in two",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.append(nn.Linear(1, 1)),
        lambda m: m.register_parameter("x", nn.Parameter(torch.ones(1))),
        lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach())),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data.clone()),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data.t()),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data[:1]),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data.double()),
        lambda m: setattr(m, "0", nn.Linear(2, 2)),
        lambda m: m.__delattr__("1"),
        lambda m: m._modules.update(b=m._modules.pop("1")),
    ],
)
def test_changes_are_noticed(change):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    watch = Watch(model, model.parameters())
    model[0].weight.data.add_(1)
    assert watch.unchanged()
    change(model)
    assert not watch.unchanged()


def test_buffers_are_watched_where_they_are_averaged():
    model = nn.BatchNorm1d(2)
    watches = [Watch(model, model.parameters(), buffers=each) for each in (False, True)]
    model.running_mean = torch.ones(2)
    assert [watch.unchanged() for watch in watches] == [True, False]

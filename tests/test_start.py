"""Weights to start from: any format, wrapped names, one digest; all misfits are told."""

import pytest
import torch
from torch import nn

from polyfuse.checkpoints import safetensors
from polyfuse.errors import CheckpointError
from polyfuse.start import begin, digest_of
from polyfuse.statedict import digest
from tiny import same


def net(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def test_any_format_and_wrapper_gives_the_same_weights_and_digest(tmp_path):
    state = net().state_dict()
    safetensors.write(tmp_path / "a.safetensors", dict(state))
    torch.save({"epoch": 3, "model": state}, tmp_path / "b.pt")
    torch.save({f"module._orig_mod.{k}": v for k, v in state.items()}, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pt", "c.pt"):
        model = net()
        begin(model, tmp_path / name)
        assert same(model.state_dict(), state)
    assert digest_of(tmp_path / "a.safetensors") == digest_of(tmp_path / "b.pt")
    assert digest_of(tmp_path / "a.safetensors") == digest(reversed(state.items()))


def test_no_start_leaves_the_model_as_it_is():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    begin(model, None)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (net(5), ["size mismatch for 0.weight", "size mismatch for 1.bias"]),
        (nn.Sequential(nn.Linear(3, 4)), ["the model' lacks 5", "'1.bias'"]),
        (nn.Sequential(*net(), nn.Linear(4, 1)), ["lacks 2 that 'the model' has", "'2.weight'"]),
    ],
)
def test_misfits_are_told_and_the_model_is_left(tmp_path, model, facts):
    safetensors.write(tmp_path / "start.safetensors", dict(net().state_dict()))
    with pytest.raises(CheckpointError, match=r"start='.*' does not fit the model") as caught:
        begin(model, tmp_path / "start.safetensors")
    assert all(fact in str(caught.value) for fact in facts)


@pytest.mark.parametrize("other", ["name", "dtype", "shape", "value"])
def test_a_digest_tells_names_dtypes_shapes_and_values(other):
    base = {"w": torch.zeros(4), "v": torch.ones(2)}
    changed = {
        "name": {"w": base["w"], "u": base["v"]},
        "dtype": {**base, "w": torch.zeros(4, dtype=torch.int32)},
        "shape": {**base, "w": torch.zeros(2, 2)},
        "value": {**base, "v": torch.tensor([1.0, 1.0000001])},
    }[other]
    assert digest(base.items()) != digest(changed.items())
    strided = torch.zeros(8)[::2]
    assert digest({**base, "w": strided}.items()) == digest(base.items())

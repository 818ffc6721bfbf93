"""What is said of one checkpoint, against what torch says of the same file."""

import pytest
import torch

from polyfuse.checkpoints import open_checkpoint
from polyfuse.inspection.contents import contents, is_equal


def saved(tmp_path, state, name="a.pt"):
    torch.save(state, tmp_path / name)
    return open_checkpoint(tmp_path / name)


def test_parameters_and_buffers_are_those_of_the_module(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    net.register_buffer("ids", torch.arange(5))
    with saved(tmp_path, net.state_dict()) as checkpoint:
        found = contents(checkpoint)
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.buffers == {"running statistics": 2, "counters": 1, "integers": 1}
    assert found.dtypes == {"float32": 6, "int64": 2}
    assert found.tensors == len(net.state_dict())
    assert found.nbytes == sum(t.nbytes for t in net.state_dict().values())
    assert found.nonfinite is None


def test_ties_and_equal_copies_are_told_apart(tmp_path):
    weight = torch.arange(600.0).reshape(20, 30)
    late = weight.clone()
    late[-1, -1] = -1
    state = {"a": weight, "tied": weight, "copy": weight.clone(), "late": late, "t": weight.T}
    state |= {"zero": torch.zeros(20, 30), "zeros": torch.zeros(20, 30), "bias": weight[0].clone()}
    state |= {"late copy": late.clone(), "bias copy": weight[0].clone()}
    with saved(tmp_path, state) as checkpoint:
        found = contents(checkpoint)
    assert found.tied == [["a", "tied"]]
    assert sorted(map(sorted, found.equal)) == [["a", "copy"], ["late", "late copy"]]


def test_what_a_training_state_tells(tmp_path):
    ema = {"w": torch.ones(2)}
    state = {"epoch": 3, "global_step": 7, "model": {"w": torch.ones(2)}, "model_ema": ema}
    with saved(tmp_path, state | {"best_acc": 0.5}) as checkpoint:
        facts = contents(checkpoint).facts
    assert facts["key"] == "model"
    assert facts["ema"] == ["model_ema"]
    assert (facts["epoch"], facts["step"], facts["metrics"]["best_acc"]) == (3, 7, 0.5)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2]
)
def test_what_is_not_finite_is_counted(tmp_path, dtype):
    weight = torch.zeros(300_000, dtype=dtype)
    weight[[0, 1, -1]] = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=dtype)
    state = {"bad": weight, "good": torch.ones(3), "ints": torch.arange(3)}
    with saved(tmp_path, state) as checkpoint:
        assert contents(checkpoint, check_values=True).nonfinite == {"bad": 3}


def test_equality_needs_dtype_shape_and_every_byte(tmp_path):
    weight = torch.rand(1 << 19)
    other = weight.clone()
    other[-1] += 1
    state = {"a": weight, "b": weight.clone(), "c": other, "d": weight.double()}
    state["e"] = weight.reshape(2, -1).clone()
    with saved(tmp_path, state) as checkpoint:
        same = [is_equal(checkpoint, "a", checkpoint, name) for name in state]
    assert same == [True, True, False, False, False]

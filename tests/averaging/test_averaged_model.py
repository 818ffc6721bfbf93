"""AveragedModel beside torch's own, in the same loop; and its checkpoints, both ways."""

import copy

import pytest
import torch
from odd import Odd, generator, move, tensors
from torch import nn
from torch.optim import swa_utils

from polyfuse.averaging import AveragedModel, ema, lawa, swa
from polyfuse.errors import CheckpointError, PolyfuseError, TrainingError
from tiny import same

RULES = {
    "swa": (swa, dict),
    "swa multi": (swa, lambda: {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()}),
    "ema": (lambda: ema(0.9), lambda: {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)}),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def train(model, averaged, steps, seed=0):
    draw = generator(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(6, 3, generator=draw)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for each in averaged:
            each.update_parameters(model)


def torch_has(state):
    return {key: value for key, value in state.items() if key != "_extra_state"}


@pytest.mark.parametrize("rule", RULES)
def test_as_torch_to_the_bit(rule):
    make, options = RULES[rule]
    model = net()
    ours, theirs = AveragedModel(model, make()), swa_utils.AveragedModel(model, **options())
    for _ in range(3):
        train(model, [ours, theirs], 2)
        if rule == "swa":
            torch.testing.assert_close(torch_has(ours.state_dict()), dict(theirs.state_dict()))
        else:
            assert same(torch_has(ours.state_dict()), theirs.state_dict())
    x = torch.ones(4, 3)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    batches = [torch.randn(5, 3) for _ in range(3)]
    for each in (ours, theirs):
        swa_utils.update_bn(batches, each)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("wrapped", [lambda m: m, nn.DataParallel])
def test_torch_checkpoints_are_read_and_written(tmp_path, wrapped):
    model = net()
    multi = swa_utils.get_ema_multi_avg_fn(0.9)
    theirs = swa_utils.AveragedModel(wrapped(model), multi_avg_fn=multi)
    train(model, [], 1)
    for _ in range(3):
        theirs.update_parameters(wrapped(model))
        move(model, generator())
    torch.save(theirs.state_dict(), tmp_path / "torch.pt")
    ours = AveragedModel(model, ema(0.9))
    ours.load_state_dict(torch.load(tmp_path / "torch.pt", weights_only=True))
    assert ours.n_averaged == 3
    move(model, generator(1))
    ours.update_parameters(model)
    theirs.update_parameters(wrapped(model))
    inner = {key.replace("module.module", "module"): t for key, t in theirs.state_dict().items()}
    assert same(torch_has(ours.state_dict()), inner)
    plain = swa_utils.AveragedModel(model, multi_avg_fn=multi)
    plain.load_state_dict(torch_has(ours.state_dict()))
    assert same(plain.state_dict(), inner)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [ema(0.9, warmup="power"), swa(), lawa(3)], ids=lambda r: r.name)
@pytest.mark.parametrize("make", [Odd, lambda dtype: net().to(dtype)], ids=["odd", "net"])
def test_resumed_is_bit_identical(tmp_path, dtype, rule, make):
    model, draw = make(dtype), generator()
    whole = AveragedModel(model, rule, update_every=2)
    for _ in range(5):
        move(model, draw)
        whole.update_parameters(model)
    torch.save(whole.state_dict(), tmp_path / "a.pt")
    resumed = AveragedModel(model, rule, update_every=2)
    resumed.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    copied = copy.deepcopy(whole)
    for _ in range(4):
        move(model, draw)
        for each in (whole, resumed, copied):
            each.update_parameters(model)
    assert same(tensors(resumed.module), tensors(whole.module))
    assert same(tensors(copied.module), tensors(whole.module))
    assert str(resumed.state_dict()) == str(whole.state_dict())
    assert resumed.n_averaged == 4


def test_the_module_is_the_averages_memory_and_stays_so():
    model = net()
    averaged = AveragedModel(model, ema(0.5))
    reference = AveragedModel(model, ema(0.5))
    states = averaged.state_dict()["_extra_state"]["averages"]["average"]["rows"]
    assert states == []
    for change in (
        lambda: averaged.module.to(memory_format=torch.channels_last),
        lambda: setattr(averaged.module[0].weight, "data", averaged.module[0].weight.data.clone()),
        lambda: averaged.load_state_dict(copy.deepcopy(averaged.state_dict()), assign=True),
    ):
        train(model, [averaged, reference], 2)
        change()
        assert same(tensors(averaged.module), tensors(reference.module))
    train(model, [averaged, reference], 1)
    assert same(tensors(averaged.module), tensors(reference.module))


def test_tied_weights_stay_tied_and_the_model_is_no_part_of_it():
    model = Odd()
    averaged = AveragedModel(model, swa())
    for _ in range(3):
        move(model, generator())
        averaged.update_parameters(model)
    assert averaged.module.twin.weight is averaged.module.conv.weight
    assert len(list(averaged.parameters())) == len(list(model.parameters()))
    assert list(averaged.children()) == [averaged.module]


def test_another_wrapper_or_object_of_the_model_is_followed():
    model = net()
    averaged, reference = AveragedModel(model, swa()), AveragedModel(model, swa())
    for wrap in (lambda m: m, nn.DataParallel, copy.deepcopy):
        train(model, [], 1)
        averaged.update_parameters(wrap(model))
        reference.update_parameters(model)
    assert same(tensors(averaged.module), tensors(reference.module))
    with pytest.raises(CheckpointError, match="the model is not the one that is averaged"):
        averaged.update_parameters(nn.Linear(3, 8))


def test_refusals():
    with pytest.raises(PolyfuseError, match="rule='cpu' is no rule; give one, as ema"):
        AveragedModel(net(), "cpu")
    averaged, model = AveragedModel(net(), ema(0.9), looks=1), net()
    train(model, [averaged], 1)
    other = AveragedModel(net(), ema(0.8))
    with pytest.raises(CheckpointError, match=r"'average' has the options \{'decay': 0.9\}"):
        other.load_state_dict(averaged.state_dict())
    model[0].weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"weights '0\.weight'"):
        averaged.update_parameters(model)
    assert averaged.n_averaged == 1

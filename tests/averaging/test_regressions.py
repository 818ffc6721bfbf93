"""Faults of other implementations, by their names; ours has none of them.

test_averaging_peers.py has one more: ema-pytorch's power-EMA, whose horizon depends on
`update_every`.
"""

import copy

import pytest
import torch
from odd import generator, move, tensors
from torch import nn
from torch.optim import swa_utils

from polyfuse.averaging import AveragedModel, Averages, ema, make_rule, swa
from polyfuse.errors import PolyfuseError
from tiny import same


def norm():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def trained(model, steps, *followers):
    draw = generator()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(8, 3, generator=draw)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for follower in followers:
            follower()


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("rule", [swa(), ema(0.9)], ids=["swa", "ema"])
def test_torch_froze_num_batches_tracked(use_buffers, rule):
    """torch with use_buffers=True: it stayed 1 while the model was at 50; ema-pytorch: 0."""
    model = norm()
    averaged = AveragedModel(model, rule, use_buffers=use_buffers)
    averages = Averages(model, {"a": rule}, use_buffers=use_buffers)
    trained(model, 50, lambda: averaged.update_parameters(model), averages.update)
    assert averaged.module[1].num_batches_tracked == 50
    assert averages.average("a")["1.num_batches_tracked"] == 50
    assert averages.model("a")[1].num_batches_tracked == 50


def test_torch_swa_raised_on_integer_buffers():
    """get_swa_multi_avg_fn with use_buffers=True: "Integer division with addcdiv"."""
    model = norm()
    theirs = swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_swa_multi_avg_fn(), use_buffers=True
    )
    theirs.update_parameters(model)
    with pytest.raises(RuntimeError, match="addcdiv"):
        theirs.update_parameters(model)
    ours = AveragedModel(model, swa(), use_buffers=True)
    trained(model, 3, lambda: ours.update_parameters(model))


def test_torch_took_a_parameter_for_another_of_the_same_place():
    """torch zips parameters in their order, so a model that lists them otherwise is mixed up."""
    first = nn.Module()
    first.a, first.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    second = nn.Module()
    second.b, second.a = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    theirs, ours = swa_utils.AveragedModel(first), AveragedModel(first, swa())
    for each in (theirs, ours):
        each.update_parameters(second)
    assert theirs.module.a.tolist() == [1, 1]  # the fault
    assert ours.module.a.tolist() == [0, 0]


def test_an_average_in_bf16_never_moved():
    """decay .9999, from 1 towards 2: after 10,000 updates 1.632 in fp32, 1.000 in bf16."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    multi = swa_utils.get_ema_multi_avg_fn(0.9999)
    ours = Averages(model, {"a": ema(0.9999)})
    averaged, theirs = (
        AveragedModel(model, ema(0.9999)),
        swa_utils.AveragedModel(model, multi_avg_fn=multi),
    )
    model.weight.data.fill_(1)
    for _ in range(1001):
        ours.update()
        averaged.update_parameters(model)
        theirs.update_parameters(model)
        model.weight.data.fill_(2)
    expected = 2 - 0.9999**1000
    assert theirs.module.weight.item() == 1  # the fault
    [row] = ours.state_dict()["averages"]["a"]["rows"]
    assert row["weight"].item() == pytest.approx(expected, rel=1e-4)
    assert ours.average("a")["weight"].item() == pytest.approx(expected, rel=0.01)
    assert averaged.module.weight.item() == pytest.approx(expected, rel=0.01)


def test_lightly_train_892_the_warm_ups_counter_was_not_saved():
    model = norm()
    rule = ema(0.99, warmup="power")
    whole = Averages(model, {"a": rule})
    trained(model, 5, whole.update)
    resumed = Averages(model, {"a": rule})
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    move(model, generator())
    whole.update()
    resumed.update()
    assert same(whole.average("a"), resumed.average("a"))
    assert resumed.updates("a") == 6


def test_lightning_21724_an_average_without_updates_was_validated():
    """The average of a later start was the model at its birth; it must be the model as it is."""
    model = norm()
    averages = Averages(model, {"a": ema(0.9)}, start_epoch=1)
    trained(model, 5, averages.update)
    own = tensors(model)
    with averages.applied("a", saving=True):
        assert same(tensors(model), own)
    assert same(averages.average("a"), own)


def test_nequip_590_a_checkpoint_was_saved_while_swapped():
    model = norm()
    averages = Averages(model, {"a": ema(0.9)})
    trained(model, 3, averages.update)
    with averages.applied("a"):
        for save in (model.state_dict, averages.state_dict):
            with pytest.raises(PolyfuseError, match="`with` block"):
                save()


def test_anemoi_1373_option_that_did_nothing():
    with pytest.raises(PolyfuseError, match=r"decya.*did you mean 'decay'"):
        make_rule("ema", {"decya": 0.9})


def test_luxonis_372_shared_and_later_frozen_parameters_broke_the_pairs():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    averages = Averages(model, {"a": ema(0.5)})
    trained(model, 2, averages.update)
    model[0].bias.requires_grad_(False)
    trained(model, 2, averages.update)
    found = averages.average("a")
    assert torch.equal(found["0.weight"], found["1.weight"])
    assert list(found) == list(model.state_dict())


def test_lightning_20545_whose_weights_are_in_the_checkpoint():
    """The model's state dict has its own weights, that of the averages has the averages."""
    model = norm()
    averages = Averages(model, {"a": ema(0.5), "b": swa()})
    trained(model, 3, averages.update)
    own = tensors(model)
    with averages.applied("a"):
        pass
    assert same(tensors(model), own)
    assert list(averages.state_dict()["averages"]) == ["a", "b"]


def test_senpai_2899_nothing_was_averaged_of_a_compiled_model():
    model = norm()
    compiled = torch.compile(model, backend="eager")
    averages = Averages(compiled, {"a": ema(0.5)})
    averaged = AveragedModel(compiled, ema(0.5))
    reference = Averages(model, {"a": ema(0.5)})
    trained(
        model, 3, averages.update, lambda: averaged.update_parameters(compiled), reference.update
    )
    assert same(averages.average("a"), reference.average("a"))
    assert list(averages.average("a")) == list(model.state_dict())
    assert torch.equal(averaged.module[0].weight, reference.average("a")["0.weight"])


def test_pytorch_84053_buffers_were_those_of_the_first_copy():
    model = norm()
    averages = Averages(model, {"a": swa()})
    trained(model, 4, averages.update)
    assert torch.equal(averages.average("a")["1.running_mean"], model[1].running_mean)


@pytest.mark.parametrize("updates", [2, 3, 4])
def test_torch_uncertainty_counted_the_first_model_twice(updates):
    """Its SWA set the counter to 1 and raised it to 2: .667, .5, .4 for the first of 2, 3, 4."""
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(model, {"swa": swa()})
    for number in range(updates):
        nn.init.constant_(model.weight, float(number == 0))  # the average is the first one's weight
        averages.update()
    assert averages.average("swa")["weight"].item() == pytest.approx(1 / updates, rel=1e-6)

"""Checkpoints of other averages are refused, by all their faults, and nothing is changed."""

import copy

import pytest
import torch
from odd import MANY, Odd, generator, move
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from polyfuse.averaging import Averages, ema, lawa, swa, tanh_ema
from polyfuse.errors import CheckpointError
from tiny import same


def started(model, rules, **options):
    averages = Averages(model, rules, **options)
    draw = generator()
    for _ in range(3):
        move(model, draw)
        averages.update()
    return averages


OTHERS = {
    "decay": ({"a": ema(0.8)}, r"'a' has the options \{'decay': 0.9\}, where \{'decay': 0.8\} is"),
    "rule": ({"a": swa()}, "'a' has the rule ema, where swa is expected.* has the options"),
    "names": ({"b": ema(0.9)}, "it has 'a', where 'b' is expected"),
    "more": ({"a": ema(0.9), "b": swa()}, "it has 'a', where 'a', 'b' is expected"),
    "timing": ({"a": ema(0.9).timed(update_every=2)}, "'a' has the timing .*'update_every': 1"),
    "window": ({"a": lawa(3)}, "'a' has the rule ema, where lawa is expected"),
    "unit": ({"a": tanh_ema(0.9, unit="epochs")}, "'a' has the rule ema"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_rule_is_refused(case):
    rules, message = OTHERS[case]
    state = started(nn.Linear(2, 2), {"a": ema(0.9)}).state_dict()
    averages = started(nn.Linear(2, 2), rules)
    before = copy.deepcopy(averages.state_dict())
    with pytest.raises(CheckpointError, match=message):
        averages.load_state_dict(state)
    assert str(averages.state_dict()) == str(before)


def test_a_checkpoint_of_another_model_is_refused_with_all_faults():
    state = started(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), {"a": swa()}).state_dict()
    averages = started(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2, bias=False)), {"a": swa()})
    with pytest.raises(CheckpointError) as caught:
        averages.load_state_dict(state)
    for part in (
        "the averages lacks '1.bias', which the checkpoint has",
        "'0.weight' has shape (1, 2) in the averages and (2, 2) in the checkpoint",
        "'1.weight' has shape (2, 1) in the averages and (3, 2) in the checkpoint",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "state", [{}, {"weight": torch.ones(1)}, {"format": "polyfuse averages 2"}]
)
def test_what_is_no_state_is_refused(state):
    with pytest.raises(CheckpointError, match="this is no state of Averages"):
        Averages(nn.Linear(1, 1), {"a": swa()}).load_state_dict(state)


def test_a_checkpoint_of_torch_goes_into_one_average():
    model = nn.Linear(2, 1)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ours = Averages(model, {"a": ema(0.9)})
    for _ in range(3):
        move(model, generator())
        theirs.update_parameters(model)
    ours.load_state_dict(theirs.state_dict())
    move(model, generator(1))
    ours.update()
    theirs.update_parameters(model)
    assert same(ours.average("a"), theirs.module.state_dict())
    assert (ours.updates("a"), ours.step) == (4, 4)
    with pytest.raises(CheckpointError, match="load it into Averages with one rule, not 8"):
        Averages(model, MANY).load_state_dict(theirs.state_dict())
    with pytest.raises(CheckpointError, match="'weight' has shape"):
        Averages(nn.Linear(3, 1), {"a": swa()}).load_state_dict(theirs.state_dict())


def test_a_state_is_plain_data_and_tensors():
    state = started(Odd(), MANY).state_dict()

    def leaves(node):
        if isinstance(node, dict):
            return [leaf for value in node.values() for leaf in leaves(value)]
        if isinstance(node, list):
            return [leaf for value in node for leaf in leaves(value)]
        return [node]

    kinds = {type(leaf) for leaf in leaves(state)}
    assert kinds <= {torch.Tensor, int, float, str, type(None)}

"""Nested layouts: which state dict is taken, and what is said of the rest."""

import pytest
import torch
from torch import nn

from polyfuse.checkpoints.nested import ORDER, choose, facts, kind
from polyfuse.checkpoints.pickles import Global, Opaque
from polyfuse.checkpoints.torch_zip import Unreadable
from polyfuse.errors import CheckpointError

STATE = nn.Linear(2, 3).state_dict()
OTHER = nn.Linear(2, 4).state_dict()


def chosen(tree, key=None, index=None):
    return choose("a.pt", tree, key, index)


def told(tree, key=None, in_tensor=lambda tensor: tensor.item()):
    return facts(tree, chosen(tree, key), in_tensor)


def test_the_file_itself():
    choice = chosen(STATE)
    assert (choice.key, choice.state, choice.keys) == ("", STATE, {"": 2})


@pytest.mark.parametrize("key", ORDER)
def test_the_usual_keys(key):
    tree = {"epoch": 3, "other": OTHER, key: STATE, "loss": torch.tensor(0.5)}
    assert chosen(tree).state is STATE


def test_the_first_of_the_usual_keys():
    tree = dict.fromkeys(reversed(ORDER), OTHER)
    assert chosen(tree).key == "state_dict"


@pytest.mark.parametrize(
    "ema", ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "EMA", "shadow"]
)
def test_an_average_is_taken_only_when_asked_for(ema):
    tree = {ema: OTHER, "weights_of_mine": STATE}
    assert chosen(tree).state is STATE
    assert chosen(tree, ema).state is OTHER
    assert told(tree)["ema"] == [ema]
    with pytest.raises(CheckpointError, match=rf"only an average \(EMA\); choose .*'{ema}' \(2\)"):
        chosen({ema: OTHER})


def test_deeper_ones():
    tree = {"checkpoint": {"model": {"state_dict": STATE}, "model_ema": {"module": OTHER}}}
    assert chosen(tree).key == "checkpoint.model.state_dict"
    assert chosen(tree, "checkpoint.model_ema.module").state is OTHER
    assert chosen(tree, "checkpoint.model_ema").key == "checkpoint.model_ema.module"
    assert chosen(tree, "checkpoint.model").state is STATE


def test_the_only_one_under_an_unusual_name():
    tree = {"G": STATE, "loss": torch.tensor(0.5), "metrics": {"acc": torch.tensor([0.5])}}
    assert chosen(tree).key == "G"


def test_a_small_model_under_a_usual_key():
    tree = {"model": {"scale": torch.tensor(2.0)}, "rng": torch.ones(9)}
    assert chosen(tree).key == "model"


def test_several_and_no_choice():
    with pytest.raises(CheckpointError, match=r"several .* --key: 'G' \(2\), 'D' \(2\)$"):
        chosen({"G": STATE, "D": OTHER})


def test_a_wrong_key():
    with pytest.raises(CheckpointError, match=r"'modle'; did you mean 'model'\?; it holds 'model'"):
        chosen({"model": STATE}, "modle")


def test_states_of_optimizers_are_no_candidates():
    named = {"state": {"weight": {"exp_avg": torch.ones(2)}}}
    numbered = {"state": {0: {"exp_avg": torch.ones(2)}}}
    tree = {"net": STATE, "optimizer": named, "optim": numbered, "lr_schedulers": [numbered]}
    assert chosen(tree).keys == {"net": 2}


def test_a_list():
    assert chosen([STATE, OTHER], index=1).state is OTHER
    assert chosen(({"model": STATE},), index=0).key == "model"
    message = r"'a\.pt' holds a list; name one of it: 'a\.pt\[0\]' to 'a\.pt\[1\]'"
    for index in (None, 2, -1):
        with pytest.raises(CheckpointError, match=message):
            chosen([STATE, OTHER], index=index)


def test_a_list_under_a_key():
    tree = {"models": [STATE, OTHER]}
    assert chosen(tree, "models", 1).state is OTHER
    assert chosen(tree, index=0).state is STATE
    with pytest.raises(CheckpointError, match="holds a list"):
        chosen(tree, "models")


def test_a_number_for_what_is_no_list():
    with pytest.raises(CheckpointError, match=r"'a\.pt' is one state dict, no list; leave \[0\]"):
        chosen(STATE, index=0)
    with pytest.raises(CheckpointError, match=r"'model' in 'a\.pt' is one state dict"):
        chosen({"model": STATE}, index=0)


def module():
    made = Opaque(Global("mine", "Net"))
    made.state = {"_modules": {}, "_parameters": {}}
    return made


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (module(), r"a whole nn\.Module was pickled, .*\('a\.pt', weights_only=False\)\.state_"),
        ({"model": module(), "epoch": 3}, r"under \['model'\], .*\)\['model'\]\.state_dict\(\)"),
        (torch.ones(2), "it is one tensor; save it with a name"),
        (Opaque(Global("mine", "Thing")), r"''? ?\(?mine\.Thing"),
        ({"epoch": 3}, r"'epoch' \(int\); save one"),
        ({}, "dict of 0; save one"),
        ({0: torch.ones(2)}, "'0' .tensor.; save one"),
        ([], "holds an empty list"),
        (3, "int; save one"),
    ],
)  # fmt: skip
def test_no_state_dict(tree, message):
    with pytest.raises(CheckpointError, match=message):
        chosen(tree, index=None)


def test_a_module_does_not_block_a_state_dict():
    assert chosen({"model": module(), "state_dict": STATE}).key == "state_dict"


def test_cycles_are_harmless():
    tree = {"model": STATE}
    tree["self"], tree["list"] = tree, [tree]
    assert chosen(tree).key == "model"


def test_dicts_without_end_are_harmless():
    tree = inner = {}
    for _ in range(100_000):
        inner["a"] = {}
        inner = inner["a"]
    inner["w"] = torch.ones(2)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        chosen(tree)


def test_what_a_training_state_tells():
    tree = {
        "epoch": 3,
        "global_step": 700,
        "state_dict": {**STATE, "count": 5, "_extra_state": None},
        "best_acc1": torch.tensor(76.5),
        "arch": "resnet18",
        "finished": True,
        "metrics": {"loss": 0.25, "name": "x"},
        "args": module(),
        "huge": 1 << 70,
        "nan": float("nan"),
    }
    found = told(tree)
    assert (found["epoch"], found["step"]) == (3, 700)
    assert found["metrics"] == {"best_acc1": 76.5, "loss": 0.25}
    assert found["ignored"] == {"count": "int", "_extra_state": "None"}
    assert found["other"]["args"] == "mine.Net"
    assert found["other"].keys() == tree.keys() - {"state_dict"}
    assert (found["key"], found["keys"], found["ema"]) == ("state_dict", {"state_dict": 2}, [])


def test_what_lightning_tells():
    stopper = {"monitor": "val_acc", "best_model_score": torch.tensor(0.5), "current_score": 0.25}
    tree = {
        "state_dict": STATE,
        "callbacks": {"ModelCheckpoint{'monitor': 'val_acc'}": stopper, "Timer": {}},
    }
    assert told(tree)["metrics"] == {"best_model_score": 0.5, "val_acc": 0.25}


def test_fairseq():
    tree = {"model": STATE, "args": module(), "extra_state": {"val_loss": 2.5, "best": 2.0}}
    found = told(tree)
    assert (found["key"], found["metrics"]) == ("model", {"val_loss": 2.5, "best": 2.0})


def test_tensors_of_a_flat_state_dict_are_no_metrics():
    found = told({**STATE, "num_batches_tracked": torch.tensor(5), "epoch": 3})
    assert (found["metrics"], found["epoch"]) == ({}, 3)
    assert found["ignored"] == {"epoch": "int"}


def test_kinds():
    values = [{}, (1,), torch.ones(1), Unreadable("sparse", ""), Global("a", "b"), "x", True]
    words = ["dict of 0", "tuple of 1", "tensor", "sparse tensor", "a.b", "str", "bool"]
    assert [kind(value) for value in values] == words

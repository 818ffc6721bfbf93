"""Can these be averaged: the verdict is what `average` does, with the options it proposes."""

import re
import shlex

import pytest
import torch

from polyfuse.errors import CheckpointError
from polyfuse.inspection.comparison import compare, farthest
from polyfuse.streaming import make_plan
from polyfuse.streaming.base import Request
from polyfuse.weights import in_memory


def state(**changes):
    random = torch.Generator().manual_seed(0)
    base = {
        "body.weight": torch.randn(20, 20, generator=random),
        "bn.running_mean": torch.zeros(4),
        "bn.running_var": torch.ones(4),
        "bn.num_batches_tracked": torch.tensor(1),
        "head.weight": torch.randn(3, 20, generator=random),
        "head.bias": torch.zeros(3),
        "ids": torch.arange(3),
    }
    found = {**base, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in found.items() if value is not None}


def compared(*states, sample=None):
    checkpoints = [in_memory(one, f"{'abcdefg'[i]}.pt") for i, one in enumerate(states)]
    return checkpoints, compare(checkpoints, sample=sample, progress=lambda *_: None)


def plan(checkpoints, options=()):
    words = shlex.split(" ".join(options))
    pairs = list(zip(words[::2], words[1::2], strict=True))
    policies = dict(text.split("=") for option, text in pairs if option == "--policy")
    exclude = [text for option, text in pairs if option == "--exclude"]
    return make_plan(checkpoints, [Request(policies=policies)], exclude=exclude)


FINE = {
    "equal": state(),
    "another counter": state(bn__num_batches_tracked=torch.tensor(9)),
    "a prefix": {f"module.{name}": tensor for name, tensor in state().items()},
    "another float": {k: v.half() if v.is_floating_point() else v for k, v in state().items()},
}
MENDABLE = {
    "a layer less": state(head__weight=None, head__bias=None),
    "a layer more": state(extra__weight=torch.ones(2, 2)),
    "another head": state(head__weight=torch.ones(5, 20), head__bias=torch.zeros(5)),
    "integers for floats": state(head__weight=torch.ones(3, 20, dtype=torch.int64)),
    "other integers": state(ids=torch.tensor([0, 1, 5])),
}


@pytest.mark.parametrize("name", FINE)
def test_what_can_be_averaged(name):
    checkpoints, found = compared(state(), FINE[name])
    assert (found.verdict, list(found.faults)) == ("yes", [])
    assert plan(checkpoints)


@pytest.mark.parametrize("name", MENDABLE)
def test_what_can_be_averaged_with_an_option(name):
    checkpoints, found = compared(state(), MENDABLE[name])
    assert found.faults
    assert re.fullmatch(r"yes, with (--(exclude|policy) '[^']+' ?)+", found.verdict)
    assert plan(checkpoints, found.options)
    if name != "other integers":  # that one shows only when the values are read
        with pytest.raises(CheckpointError):
            plan(checkpoints)


def test_what_cannot_be_averaged():
    other = {f"layer{i}.weight": torch.ones(2, 2) for i in range(20)}
    _, found = compared(state(), other)
    assert found.verdict == "no"
    assert found.distances is None


def test_many_mendable_faults_are_no_longer_mendable():
    one = {f"layer{i}.weight": torch.ones(2, 2) for i in range(20)}
    other = {f"layer{i}.weight": torch.ones(3, 2) for i in range(19)}
    assert compared(one, {**other, "layer19.weight": torch.ones(2, 2)})[1].verdict == "no"


def test_every_difference_is_told():
    other = state(head__weight=torch.ones(5, 20), ids=torch.tensor([7, 8, 9]), body__weight=None)
    text = "\n".join(compared(state(), other)[1].faults)
    assert "'body.weight'" in text
    assert "shapes differ: 'head.weight' is [3, 20] and [5, 20]" in text
    assert "integers differ: 'ids'" in text


def test_names_that_no_shell_could_take_are_not_proposed():
    _, found = compared(state(), state() | {"it's $(rm)": torch.ones(2)})
    assert (found.verdict, found.options) == ("no", [])


def test_dtypes_that_differ_are_noted():
    _, found = compared(state(), FINE["another float"])
    [note] = found.notes
    assert "are float32 in 'a.pt', float16 in 'b.pt'; an average is float32" in note


def test_the_same_weights_under_two_names():
    other = state(body__weight=torch.ones(20, 20))
    bias = state(head__bias=torch.ones(3))  # the same matrices only
    _, found = compared(state(), other, state(), bias, other)
    assert found.same == [[0, 2], [1, 4]]
    assert any("'a.pt' and 'c.pt' have the same weights" in text for text in found.warnings)


def test_independent_runs_are_warned_of():
    strange = state(body__weight=torch.randn(20, 20), head__weight=torch.randn(3, 20))
    _, found = compared(state(), strange)
    [warning] = found.warnings
    assert warning.startswith("these look like independent runs: a.pt; b.pt. The cosine of their")


def test_a_strange_head_is_warned_of():
    _, found = compared(state(), state(head__weight=torch.randn(3, 20)))
    [warning] = found.warnings
    assert "'head.weight'" in warning
    assert "a new head?" in warning


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    _, found = compared(state(), state(head__weight=torch.full((3, 20), value)))
    assert "--check-values" in found.warnings[0]
    assert compared(state(), FINE["equal"])[1].warnings[0].endswith("each of them counts")


def test_zero_weights_do_not_stop_it():
    zero = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    assert compared(zero, zero)[1].verdict == "yes"


def test_the_farthest_pair():
    states = [state(body__weight=torch.full((20, 20), v)) for v in (1.0, 1.1, 3.0)]
    i, j, cosine, apart = farthest(compared(*states)[1].distances)
    assert (i, j) == (0, 2)
    assert 0 < apart < 2
    assert 0 < cosine < 1

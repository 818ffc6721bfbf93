"""Averages on another device: the weights come later, and the numbers are the same."""

import pytest
import torch
from odd import MANY, Odd, generator, move, tensors
from torch import nn

from polyfuse.averaging import Averages, subject
from polyfuse.averaging.offload import Mirror
from polyfuse.errors import TrainingError
from tiny import same


@pytest.fixture
def mirrored(monkeypatch):
    """Let every subject read a mirror, as that of a model on a GPU does."""
    monkeypatch.setattr(subject, "is_far", lambda tensors, device: device is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_that_waits_is_the_same_update(mirrored, dtype):
    model = Odd(dtype)
    direct, later = Averages(model, MANY), Averages(model, MANY, device="cpu")
    assert later._subject.mirror
    draw = generator()
    for _ in range(4):
        move(model, draw)
        direct.update()
        later.update()
        assert later._waiting
    own = tensors(model)
    for name in MANY:
        with later.applied(name, saving=True):
            assert same(tensors(model), direct.average(name))
        assert same(tensors(model), own)
        assert same(later.average(name), direct.average(name))
    assert str(later.state_dict()) == str(direct.state_dict())


def test_what_waits_is_taken_in_before_a_change_and_a_state(mirrored):
    model = nn.Linear(2, 2)
    direct, later = Averages(model, MANY), Averages(model, MANY, device="cpu")
    for change in (lambda: None, lambda: setattr(model.weight, "data", model.weight.data.clone())):
        move(model, generator())
        direct.update()
        later.update()
        change()
    twin = Averages(model, MANY, device="cpu")
    twin.load_state_dict(later.state_dict())
    assert same(twin.average("swa"), direct.average("swa"))


def test_nan_is_found_when_the_weights_arrive(mirrored):
    model = nn.Linear(2, 2)
    averages = Averages(model, MANY, device="cpu")
    averages.update()
    model.weight.data.fill_(torch.nan)
    averages.update()
    with pytest.raises(TrainingError, match="NaN or infinity in the weights 'weight'"):
        averages.update()


def test_a_mirror_copies_tensors_as_they_lie():
    scattered = torch.arange(12.0).view(3, 4)[:, ::2]
    mirror = Mirror({"a": scattered, "b": torch.ones(2, 3).t()})
    mirror.start()
    mirror.wait()
    assert torch.equal(mirror.tensors["a"], scattered)
    assert mirror.tensors["a"].is_contiguous()
    assert mirror.tensors["b"].stride() == (1, 3)

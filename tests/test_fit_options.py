"""FitOptions: what they refuse, and how they are told apart."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse import Arrays, FitOptions, fit_member
from polyfuse.errors import TrainingError
from polyfuse.optimizers import sgd
from polyfuse.schedules import constant

fixed = partial(FitOptions, accelerator="cpu", batch_size=8)
DATA = Arrays(torch.zeros(24, 4), np.zeros(24, int))


@pytest.mark.parametrize("name", ["epochs", "batch_size", "patience", "accumulate", "threads"])
def test_options_below_one_are_refused(name):
    with pytest.raises(TrainingError, match=f"{name}=0"):
        FitOptions(**{name: 0})


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_would_stop_all_steps_is_refused(clip):
    with pytest.raises(TrainingError, match=r"clip=.*more than 0, or null"):
        FitOptions(clip=clip)


@pytest.mark.parametrize("wrong", [{"accelerator": "abacus"}, {"precision": "3-bit"}])
def test_what_fabric_refuses_is_named(wrong):
    options = FitOptions(**{"accelerator": "cpu", **wrong})
    rows = np.arange(24)
    with pytest.raises(TrainingError, match="|".join(wrong.values())):
        fit_member(nn.Linear(4, 2), DATA, rows[:16], rows[16:], options, seed=0)


def test_fingerprints_tell_options_apart_and_hold_no_addresses():
    options = [
        fixed(),
        fixed(clip=1.0),
        fixed(optimizer=sgd),
        fixed(optimizer=partial(sgd, lr=0.2)),
        fixed(schedule=partial(constant, warmup=0.1)),
    ]
    prints = [option.fingerprint() for option in options]
    assert len(set(prints)) == len(prints)
    assert not any("0x" in text for text in prints)
    assert fixed(optimizer=partial(sgd, lr=0.2)).fingerprint() == prints[3]


def test_a_batch_of_one_row_is_refused_where_there_is_batch_norm():
    rows = np.arange(24)
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    with pytest.raises(TrainingError, match="batch-norm needs 2 or more rows a batch"):
        fit_member(net, DATA, rows[:15], rows[15:], fixed(batch_size=1), seed=0)
    options = fixed(batch_size=2, epochs=1)
    assert len(fit_member(net, DATA, rows[:16], rows[16:], options, seed=0).history) == 1

"""One member on several devices: the numbers of one, and what goes from process to process."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from polyfuse import FitOptions, fit_member, mlp
from polyfuse.averaging import ema
from polyfuse.errors import TrainingError
from polyfuse.fit.adversarial import fgsm
from polyfuse.fit.devices import Part, spread
from polyfuse.fit.fabric import fabric_of
from polyfuse.fit.sampling import Order
from polyfuse.fit.training import _check_batches
from polyfuse.optimizers import sgd
from polyfuse.schedules import cosine

LEARN, STOP = np.arange(15), np.arange(15, 24)
fixed = partial(FitOptions, accelerator="cpu", batch_size=5, epochs=3)


def net():
    torch.manual_seed(0)
    return mlp(inputs=4, classes=2, hidden=8)


def fit(model, options, **others):
    return fit_member(model, tiny.arrays(), LEARN, STOP, options, seed=3, **others)


def until(step, total, *, flag):
    """Fail in the second epoch, unless there is a file."""
    if step == 2 and not flag.exists():
        raise TrainingError("the rate is out")
    return cosine(step, total)


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_go_on_where_they_failed(tmp_path):
    flag, file, told = tmp_path / "flag", tmp_path / "resume", []
    options = {
        "accumulate": 2,  # three batches an epoch, so the second step takes in one alone
        "clip": 0.5,
        "optimizer": partial(sgd, lr=0.1),
        "schedule": partial(until, flag=flag),
        "class_weights": "balanced",
        "adversary": partial(fgsm, eps=0.1, low=-3.0, high=3.0),
        "averaging": {"ema": partial(ema, 0.9)},
    }

    def notify(*seen):
        told.append(seen)

    # Batches of five rows: one process has three of them and the other two.
    both = fixed(devices=2, **options)
    with pytest.raises(TrainingError, match="the rate is out"):
        fit(net(), both, resume=file, notify=notify)
    flag.touch()
    trained, plain = net(), net()
    fitted = fit(trained, both, resume=file, notify=notify)
    alone = fit(plain, fixed(**options))
    assert [done for done, _, _ in told] == [1, 2, 3]
    assert fitted.best_epoch == alone.best_epoch
    for ours, theirs in zip(fitted.history, alone.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    pairs = [(fitted.state, alone.state), (trained.state_dict(), plain.state_dict())]
    pairs += [(fitted.averages["ema"].state, alone.averages["ema"].state)]
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert not tiny.same(trained.state_dict(), net().state_dict())
    assert fitted.fingerprint != alone.fingerprint


# Without a process ------------------------------------------------------------------------------


class Fabrics:
    """What `Part` asks of one of several devices."""

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [7, 8, 20])
def test_parts_are_a_partition_and_their_losses_add_up(world, rows):
    losses = np.random.default_rng(0).random(rows)
    parts = [Part(Fabrics(rank, world)) for rank in range(world)]
    mine = [part.rows(np.arange(rows)) for part in parts]
    assert np.array_equal(np.concatenate(mine), np.arange(rows))
    # DDP averages over devices what each has divided by its share.
    shares = [part.share(np.arange(rows)) for part in parts]
    averaged = np.mean([losses[m].mean() / share for m, share in zip(mine, shares, strict=True)])
    assert averaged == pytest.approx(losses.mean())


def test_one_device_does_all_and_nothing_else():
    part = Part(fabric_of(fixed()))
    assert part.first
    assert part.share(np.arange(5)) == 1
    assert part.total(0.1) == 0.1
    assert part.agreed(True)
    assert not part.agreed(False)
    assert part.seed(3, 4) == (3, 4)


def test_devices_draw_numbers_of_their_own():
    assert len({Part(Fabrics(rank, 3)).seed(3, 4) for rank in range(3)}) == 3


def test_what_cannot_be_sent_to_a_process_is_refused_before_one_starts():
    with pytest.raises(TrainingError, match="several devices need functions that can be imported"):
        spread(lambda: None, lambda fabric, notify: None)


class Launches:
    """A Fabric whose first launches find their port taken, and whose later ones have a fault."""

    left = 0

    def launch(self, function):
        Launches.left -= 1
        os.environ["MASTER_PORT"] = "12345"
        text = "-- Process 0 terminated:\n\nDistNetworkError: EADDRINUSE\n"
        raise RuntimeError(text if Launches.left >= 0 else "Process 1 terminated\nwith SIGKILL\n")


@pytest.mark.parametrize(("taken", "message"), [(2, "with SIGKILL"), (9, "EADDRINUSE")])
def test_another_port_is_tried_where_one_is_taken(taken, message, monkeypatch):
    monkeypatch.setattr(Launches, "left", taken)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(TrainingError, match=rf"one of the devices failed: .*{message}$"):
        spread(Launches, print)
    assert taken - Launches.left == 3
    assert os.environ["MASTER_PORT"] == "29500"


class Tells:
    """A Fabric of one device, without a process."""

    global_rank, world_size = 0, 1

    def launch(self, function):
        function(self)


def test_what_is_told_and_returned_comes_back():
    told = []
    assert spread(Tells, telling, lambda *seen: told.append(seen)) == 7
    assert told == [(1, 2, "half"), (2, 2, "")]


def telling(fabric, notify):
    notify(1, 2, "half")
    notify(2, 2)
    return 7


def failing(fabric, notify):
    raise TrainingError("it is what it is")


def test_what_is_raised_in_a_process_is_raised_here():
    with pytest.raises(TrainingError, match=r"^it is what it is$"):
        spread(Tells, failing)


def test_a_listener_that_fails_is_told_in_the_end():
    def notify(*seen):
        raise KeyError("the bar")

    with pytest.raises(KeyError, match="the bar"):
        spread(Tells, telling, notify)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Linear(4, 2),
            "a device needs a row, but 15 learning rows in batches of 5 on 6 devices",
        ),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "batch-norm needs 2 or more rows"),
    ],
)
def test_batches_that_do_not_reach_all_devices_are_refused(model, message):
    many = fixed(devices=6 if isinstance(model, nn.Linear) else 3)
    with pytest.raises(TrainingError, match=message):
        _check_batches(model, Order(LEARN, np.zeros(15, int), many, 0))


def test_fewer_than_one_device_is_refused():
    with pytest.raises(TrainingError, match="devices=0; it must be 1 or more"):
        FitOptions(devices=0)

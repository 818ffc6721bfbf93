"""A member whose loss becomes NaN: an error, or it ends with its last good state and is marked."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from polyfuse import FitOptions, Task, compare_fusions, fit_member, kfold, train
from polyfuse.averaging import swa
from polyfuse.errors import TrainingError
from polyfuse.fit import Diverged

LEARN, STOP, NOBODY = np.arange(16), np.arange(16, 24), np.arange(0)
fixed = partial(FitOptions, accelerator="cpu", batch_size=8, epochs=6)


class Breaks(nn.Module):
    """Predicts NaN in training from the n-th batch on; counts in a buffer, so it is resumed."""

    def __init__(self, after):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 2)
        self.register_buffer("left", torch.tensor(after))

    def forward(self, x):
        if not self.training:
            return self.body(x)
        self.left -= 1
        return self.body(x) * (math.nan if self.left < 0 else 1.0)


def fit(model, options, stop=STOP, **others):
    return fit_member(model, tiny.arrays(), LEARN, stop, options, seed=3, **others)


@pytest.mark.parametrize("stop", [STOP, NOBODY])
def test_it_ends_with_the_state_of_its_best_epoch(stop):
    # Two batches an epoch: the fourth epoch breaks with its second.
    whole = fit(Breaks(99), fixed(epochs=6), stop)
    broken = fit(Breaks(7), fixed(on_nan="keep"), stop)
    assert broken.diverged == 4
    assert whole.diverged is None
    assert broken.history == whole.history[:3]
    assert broken.best_epoch <= 3
    assert all(bool(value.isfinite().all()) for value in broken.state.values())
    three = fit(Breaks(99), fixed(epochs=6), stop, collect=range(1, 7)).collected
    assert torch.equal(broken.state["body.weight"], three[broken.best_epoch]["body.weight"])


def test_it_is_an_error_unless_it_is_asked_for():
    with pytest.raises(Diverged, match=r"nan in epoch 4; lower the learning rate.*on_nan: keep"):
        fit(Breaks(7), fixed())


@pytest.mark.parametrize("after", [0, 1])
def test_with_no_good_state_yet_it_fails_all_the_same(after):
    with pytest.raises(TrainingError, match=r"nan in epoch 1.*none were there yet"):
        fit(Breaks(after), fixed(on_nan="keep"))


class LastStep(torch.optim.SGD):
    """Ruins the weights with its n-th step."""

    left = 4

    def step(self, closure=None):
        self.left -= 1
        if not self.left:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.inf)


def test_weights_that_nobody_evaluates_are_looked_at():
    # The last step of an epoch ruins them, no loss is seen before the next, and there is none.
    options = fixed(epochs=2, optimizer=LastStep)
    with pytest.raises(Diverged, match="a weight became NaN or infinite in epoch 2"):
        fit(nn.Linear(4, 2), options, NOBODY)
    kept = fit(nn.Linear(4, 2), fixed(epochs=2, optimizer=LastStep, on_nan="keep"), NOBODY)
    assert (kept.diverged, kept.best_epoch, len(kept.history)) == (2, 1, 1)
    assert bool(kept.state["weight"].isfinite().all())


def test_a_kill_before_it_changes_nothing(tmp_path):
    def stop(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    options = fixed(on_nan="keep", averaging={"swa": swa})
    whole = fit(Breaks(7), options)
    with pytest.raises(KeyboardInterrupt):
        fit(Breaks(7), options, resume=tmp_path / "resume", notify=stop)
    # Twice: the second time as if it was killed between the last epoch and its commit.
    for _ in range(2):
        again = fit(Breaks(7), options, resume=tmp_path / "resume")
        assert tiny.same(again.state, whole.state)
        assert tiny.same(again.averages["swa"].state, whole.averages["swa"].state)
        assert again.history == whole.history
        assert (again.diverged, again.best_epoch) == (4, whole.best_epoch)


def test_what_was_stopped_may_go_on_with_keep(tmp_path):
    file = tmp_path / "resume"
    with pytest.raises(Diverged):
        fit(Breaks(7), fixed(), resume=file)
    kept = fit(Breaks(7), fixed(on_nan="keep"), resume=file)
    assert (kept.diverged, len(kept.history)) == (4, 3)


def one_breaks():
    """Make a model that breaks for one member of three: its seed decides."""
    return Breaks(5 if BREAKING[torch.initial_seed()] else 10_000)


BREAKING = {}


@pytest.fixture
def run(tmp_path):
    """Three folds, of which the second diverges in its third epoch."""
    splits = tiny.splits(36)
    plan = kfold(splits.train, folds=3)
    seeds = [int(np.random.SeedSequence([job.seed]).generate_state(1)[0]) for job in plan.all_jobs]
    BREAKING.update({0: False, **{seed: n == 1 for n, seed in enumerate(seeds)}})
    BREAKING[int(np.random.SeedSequence([0]).generate_state(1)[0])] = False
    return plan, lambda **options: Task(one_breaks, splits, fixed(epochs=4, **options)), tmp_path


def test_the_ensemble_goes_on_and_the_scoreboard_says_so(run):
    plan, task, folder = run
    population = train(plan, task(on_nan="keep", batch_size=12), folder / "RUN")
    assert len(population.members) == 3
    marks = [member.record.get("diverged") for member in population.members]
    assert marks == [None, 3, None]
    assert json.loads((folder / "RUN/members/001/member.json").read_text())["diverged"] == 3
    board = compare_fusions(population)
    (note,) = [note for note in board.document["notes"] if "NaN" in note]
    assert note.startswith("Diverged: member 1 (epoch 3)")
    # Nothing is trained again.
    before = tiny.hashes(folder / "RUN/members")
    train(plan, task(on_nan="keep", batch_size=12), folder / "RUN")
    assert tiny.hashes(folder / "RUN/members") == before


def test_with_stop_the_others_are_kept_and_it_may_go_on_with_keep(run):
    plan, task, folder = run
    with pytest.raises(TrainingError, match=r"member 1 .*the loss became nan in epoch 3") as error:
        train(plan, task(batch_size=12), folder / "RUN")
    assert "2 of 3 members are kept" in str(error.value)
    population = train(plan, task(on_nan="keep", batch_size=12), folder / "RUN")
    clean = train(plan, task(on_nan="keep", batch_size=12), folder / "CLEAN")
    assert len(population.members) == len(clean.members) == 3
    assert tiny.hashes(folder / "RUN/members") == tiny.hashes(folder / "CLEAN/members")


def test_only_stop_and_keep_are_known():
    with pytest.raises(TrainingError, match="on_nan='ignore'; type 'stop' or 'keep'"):
        FitOptions(on_nan="ignore")

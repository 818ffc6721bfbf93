"""Gradient boosting of nets: F in one pass a round, a loss that falls, and faults of peers."""

import shutil
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import polyfuse
import tiny
from polyfuse.combine import boosted_sum
from polyfuse.compare import compare_fusions
from polyfuse.determinism import seeded
from polyfuse.errors import DataError, RunError, TrainingError
from polyfuse.losses import cross_entropy
from polyfuse.optimizers import adam, sgd
from polyfuse.training.base import Job
from polyfuse.training.gradient_boosting import _end, gradient_boosting


def rows(count=48, seed=0, classes=3):
    """Classes by angle, but for one row in eight."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((count, 4)).astype("f4")
    labels = ((np.arctan2(values[:, 1], values[:, 0]) + np.pi) / (2 * np.pi) * classes).astype(int)
    noisy = draw.random(count) < 1 / 8
    return polyfuse.Arrays(values, np.where(noisy, draw.integers(0, classes, count), labels))


DATA = polyfuse.Splits(rows(), rows(12, 1), rows(12, 2))
SHRINKAGE = 0.5


def net(classes=3, dropout=0.3):
    """A net with all that has a mode: batch-norm and dropout."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, classes)
    )


def task(data=DATA, factory=net, **options):
    fit = {"epochs": 3, "batch_size": 8, "optimizer": partial(adam, lr=0.02), "accelerator": "cpu"}
    return polyfuse.Task(factory, data, polyfuse.FitOptions(**fit | options))


def boosted(folder, *, data=DATA, factory=net, fit=None, watch=lambda *seen: None, **options):
    options = {"rounds": 3, "shrinkage": SHRINKAGE, **options}
    plan = gradient_boosting(data.train, **options)
    return polyfuse.train(plan, task(data, factory, **fit or {}), folder, watch=watch)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Three rounds, never disturbed."""
    return boosted(tmp_path_factory.mktemp("boosted"))


def said_of(member, split, factory=net):
    """What a member says in eval mode."""
    with torch.no_grad():
        return member.model(factory)(split.values).numpy()


def loss_of(outputs, labels):
    return float(functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(labels)))


# What a round does ------------------------------------------------------------------------------


def test_f_is_the_weighted_sum_of_the_members(clean):
    total = np.zeros((48, 3), np.float32)
    for member in clean.members:
        total += np.float32(member.record["weight"]) * said_of(member, DATA.train)
        np.testing.assert_allclose(member.carried("F"), total, rtol=1e-5, atol=1e-6)
    steps = [member.record["boosted"]["step"] for member in clean.members]
    assert [m.record["weight"] for m in clean.members] == [SHRINKAGE * step for step in steps]


def test_the_fusion_is_the_softmax_of_f(clean):
    board = compare_fusions(clean, fusions=["boosted_sum"], replicates=10)
    assert board.row("boosted_sum")["members"] == [0, 1, 2]
    weights = [member.record["weight"] for member in clean.members]
    total = np.tensordot(weights, clean.stack("test"), 1)
    np.testing.assert_allclose(clean.said("boosted_sum", "test"), special.softmax(total, -1), 1e-4)


def test_losses_that_are_told_are_those_of_f(clean):
    learn, stop = (clean.members[0].rows(part) for part in ("learned", "stopped"))
    for member in clean.members:
        told, f = member.record["boosted"], member.carried("F")
        assert told["loss"] == pytest.approx(loss_of(f[learn], DATA.train.labels[learn]), rel=1e-5)
        stopping = loss_of(f[stop], DATA.train.labels[stop])
        assert told["stopping_loss"] == pytest.approx(stopping, rel=1e-5)


def smoothed(outputs, labels, *, weights=None):
    return cross_entropy(outputs, labels, weights=weights, label_smoothing=0.2)


def hinge(outputs, labels):
    """Crammer and Singer's: convex, and not smooth."""
    own = outputs.gather(1, labels[:, None])
    return (outputs - own + 1 - functional.one_hot(labels, 3)).amax(1).mean()


@pytest.mark.parametrize("loss", [smoothed, hinge])
def test_with_a_line_search_the_loss_never_rises(loss, tmp_path):
    found = boosted(tmp_path, fit={"loss": loss}, shrinkage=1.0)
    losses = [float(loss(torch.zeros(48, 3), torch.from_numpy(DATA.train.labels)))]
    losses += [member.record["boosted"]["loss"] for member in found.members]
    assert (np.diff(losses[1:]) <= 0).all()
    assert losses[-1] < losses[1] < losses[0]


def test_without_a_search_every_step_is_one(tmp_path):
    found = boosted(tmp_path, line_search=False, rounds=2)
    assert [member.record["weight"] for member in found.members] == [SHRINKAGE, SHRINKAGE]


def numbers(count, seed):
    values = np.random.default_rng(seed).standard_normal((count, 4)).astype("f4")
    return polyfuse.Arrays(values, values[:, :2] @ [[1.0, 0.5], [0.5, -1.0]], task="regression")


def test_numbers_are_boosted_by_squared_error(tmp_path):
    data = polyfuse.Splits(*(numbers(count, seed) for seed, count in enumerate((48, 12, 12))))
    factory = partial(net, classes=2, dropout=0.0)
    found = boosted(tmp_path, data=data, factory=factory, fit={"loss": functional.mse_loss})
    losses = [member.record["boosted"]["loss"] for member in found.members]
    assert (np.diff(losses) < 0).all()
    compare_fusions(found, fusions=["boosted_sum", "mean_value"], replicates=10)
    weights = [member.record["weight"] for member in found.members]
    expected = np.tensordot(weights, found.stack("test"), 1)
    np.testing.assert_allclose(found.said("boosted_sum", "test"), expected, rtol=1e-4, atol=1e-6)


def test_heads_are_boosted_together(tmp_path):
    two = polyfuse.Arrays(DATA.train.values, np.stack([DATA.train.labels, DATA.train.labels], 1))
    data = polyfuse.Splits(two, two, two)
    found = boosted(tmp_path, data=data, factory=heads, rounds=2)
    assert found.members[1].carried("F").shape == (48, 2, 3)
    assert found.members[1].record["boosted"]["loss"] < found.members[0].record["boosted"]["loss"]


def heads():
    return nn.Sequential(net(classes=6), nn.Unflatten(1, (2, 3)))


def test_class_weights_are_in_the_residuals(tmp_path):
    found = boosted(tmp_path, fit={"class_weights": [5.0, 1.0, 0.0]}, rounds=1)
    (member,) = found.members
    learn = member.rows("learned")
    labels = DATA.train.labels[learn]
    weights = np.array([5.0, 1.0, 0.0])[labels]
    f = torch.from_numpy(member.carried("F")[learn])
    each = functional.cross_entropy(f, torch.from_numpy(labels), reduction="none").numpy()
    expected = np.average(each, weights=weights)
    assert member.record["boosted"]["loss"] == pytest.approx(expected, rel=1e-5)


FIT_DIGITS = {"epochs": 5, "batch_size": 16, "optimizer": partial(adam, lr=0.01)}


def test_digits_the_boosted_sum_beats_its_first_member(tmp_path):
    inputs, labels = load_digits(return_X_y=True)
    part = [slice(0, 400), slice(400, 700), slice(700, 1000)]
    data = polyfuse.Splits(*(polyfuse.Arrays(inputs[p] / 16, labels[p]) for p in part))
    factory = partial(polyfuse.mlp, inputs=64, classes=10, hidden=16)
    found = boosted(tmp_path, data=data, factory=factory, fit=FIT_DIGITS)
    losses = [member.record["boosted"]["loss"] for member in found.members]
    assert (np.diff(losses) < 0).all()
    weights = [member.record["weight"] for member in found.members]
    stack, truth = found.stack("test"), data.test.labels
    nll = [
        -np.log(boosted_sum(stack[:count], weights=weights[:count])[range(300), truth]).mean()
        for count in (1, 3)
    ]
    assert nll[1] < 0.9 * nll[0]


# Faults of torchensemble (1.4 of its kind: a to d) ----------------------------------------------


class Counted(nn.Module):
    """A net that counts the rows that go through it, by the member that it is."""

    made: ClassVar[list["Counted"]] = []

    def __init__(self):
        super().__init__()
        self.net, self.seen = net(), 0
        self.made.append(self)

    def forward(self, inputs):
        self.seen += len(inputs)
        return self.net(inputs)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Four rounds, and the nets that were made for them, in order."""
    Counted.made.clear()
    found = boosted(tmp_path_factory.mktemp("counted"), factory=Counted, rounds=4)
    return found, [model for model in Counted.made if model.seen > 48]


def test_te_a_earlier_members_receive_no_gradient(counted):
    _, models = counted
    assert len(models) == 4
    assert all(p.grad is None for model in models[:-1] for p in model.parameters())


def test_te_b_earlier_members_stay_as_they_are_and_say_the_same(counted):
    found, models = counted
    for member, model in zip(found.members, models, strict=True):
        state = model.state_dict()
        assert tiny.same(member.state(), state)
        assert int(state["net.1.num_batches_tracked"]) <= 3 * 6  # its own epochs, no more
    # Without dropout's noise, and by running statistics: F is what eval mode gives.
    expected = np.float32(found.members[0].record["weight"]) * said_of(
        found.members[0], DATA.train, Counted
    )
    np.testing.assert_allclose(found.members[0].carried("F"), expected, rtol=1e-5, atol=1e-6)


def test_te_c_a_round_costs_the_same_however_many_came_before(counted):
    _, models = counted
    costs = [model.seen for model in models]
    # The first round asks for the shape of an output by one row more.
    assert {costs[0] - 1, *costs[1:]} == {costs[-1]}
    fit = 3 * (43 + 5)  # epochs of the learning rows and of the stopping rows
    assert costs[-1] == fit + 48 + 12 + 12  # and all rows once, for F, validation and test


def test_te_d_labels_with_gaps_are_no_fault(tmp_path):
    gaps = [polyfuse.Arrays(split.values, np.array([0, 2, 5])[split.labels]) for split in DATA]
    found = boosted(tmp_path, data=polyfuse.Splits(*gaps), factory=partial(net, 7), rounds=2)
    assert found.members[1].carried("F").shape == (48, 7)
    assert found.members[1].record["boosted"]["loss"] < found.members[0].record["boosted"]["loss"]


def test_te_d_the_step_is_searched_for(clean):
    learn = clean.members[0].rows("learned")
    labels, before = DATA.train.labels[learn], np.zeros((len(learn), 3), np.float32)
    for member in clean.members:
        change, step = said_of(member, DATA.train)[learn], member.record["boosted"]["step"]
        along = [loss_of(before + np.float32(s * step) * change, labels) for s in (0.9, 1, 1.1)]
        assert along[1] <= along[0] + 1e-7
        assert step == 10 or along[1] <= along[2] + 1e-7
        before = member.carried("F")[learn]


# Ends -------------------------------------------------------------------------------------------


def test_it_stops_where_the_stopping_loss_does_not_fall_and_keeps_the_best(tmp_path):
    chance = np.random.default_rng(0).integers(0, 3, 48)
    data = polyfuse.Splits(*[polyfuse.Arrays(DATA.train.values, chance)] * 3)
    factory = partial(polyfuse.mlp, inputs=4, classes=3, hidden=16)
    options = {"rounds": 8, "stop_rounds": 2, "stop_fraction": 0.5, "shrinkage": 1.0}
    found = boosted(tmp_path, data=data, factory=factory, fit={"epochs": 10}, **options)
    losses = [member.record["boosted"]["stopping_loss"] for member in found.members]
    last = found.members[-1].record
    plan = gradient_boosting(data.train, **options)
    assert plan.jobs(found.members) == []
    assert plan.size(found.members) == len(losses)
    assert len(losses) < 8
    assert last["kept"] == np.argmin(losses) + 1 == len(losses) - 2
    assert "no lower loss on the stopping rows in the 2 rounds before" in last["ended"]
    kept = list(range(last["kept"]))
    assert [member.index for member in found.for_fusions.members] == kept
    board = compare_fusions(found, fusions=["boosted_sum"], replicates=10)
    assert board.row("boosted_sum")["members"] == kept


@pytest.mark.parametrize(
    ("losses", "kept"),
    [([3, 2, 1], None), ([3, 1, 2], 2), ([1, 2, 3], 1), ([2, 1], None), ([1, 2], None)],
)
def test_the_last_round_keeps_the_best_one_too(losses, kept):
    plan = gradient_boosting(DATA.train, rounds=3, stop_rounds=5)
    job = Job(len(losses) - 1, 0, *[np.empty(0, int)] * 3, {**plan.facts, "round": len(losses) - 1})
    job = replace(job, given={"losses": losses[:-1]})
    facts = {"weight": 1.0, "boosted": {"stopping_loss": losses[-1]}}
    assert _end(job, facts).get("kept") == kept
    # A member that lowers nothing is left out, and so are those after the best one.
    nothing = _end(job, {**facts, "weight": 0.0})
    assert nothing["kept"] == np.argmin(losses[:-1]) + 1


class Silent(nn.Module):
    """Says zeros, and learns nothing."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        return 0 * self.scale * inputs[:, :3]


class SilentFor:
    """Makes a silent net for one member, told by the seed that it is made under."""

    def __init__(self, seed):
        with seeded(seed):
            self.seed = torch.initial_seed()

    def __call__(self):
        return Silent() if torch.initial_seed() == self.seed else net()


def test_a_member_that_lowers_nothing_is_dropped_and_ends_it(tmp_path):
    plan = gradient_boosting(DATA.train, rounds=4)
    found = polyfuse.train(plan, task(factory=SilentFor(plan.seeds[2])), tmp_path)
    last = found.members[-1].record
    assert (last["index"], last["weight"], last["kept"]) == (2, 0.0, 2)
    assert last["ended"] == "no step along it lowers the loss of the learning rows"


def test_a_first_member_that_lowers_nothing_is_an_error(tmp_path):
    plan = gradient_boosting(DATA.train, rounds=4)
    with pytest.raises(TrainingError, match="first member cannot be boosted: no step along it"):
        polyfuse.train(plan, task(factory=SilentFor(plan.seeds[0])), tmp_path)


# Resuming ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Like a signal, nothing inside may catch it."""


@pytest.mark.parametrize("moment", [(0, 2, "loss"), (1, 3, "done"), (2, 1, "loss")])
def test_a_killed_run_gives_the_same_bytes(moment, clean, tmp_path):
    def watch(index, done, total, note):
        if (index, done) == moment[:2] and note.startswith(moment[2]):
            raise Killed

    with pytest.raises(Killed):
        boosted(tmp_path, watch=watch)
    boosted(tmp_path)
    ours = {k: v for k, v in tiny.hashes(clean.path).items() if k.startswith("members")}
    assert {k: v for k, v in tiny.hashes(tmp_path).items() if k.startswith("members")} == ours


def test_a_lost_member_comes_back_as_it_was(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "members" / "001")
    boosted(tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


@pytest.mark.parametrize("other", [{"rounds": 4}, {"shrinkage": 0.2}, {"line_search": False}])
def test_members_of_another_plan_are_refused(other, clean):
    plan = gradient_boosting(DATA.train, **{"rounds": 3, "shrinkage": SHRINKAGE, **other})
    with pytest.raises(RunError, match="trained by another plan"):
        plan.jobs(clean.members)


# What is refused --------------------------------------------------------------------------------


def test_all_faults_are_told_at_once():
    with pytest.raises(DataError) as raised:
        gradient_boosting(
            polyfuse.Arrays(np.zeros((4, 2))),
            rounds=0,
            shrinkage=1.5,
            largest_step=0.0,
            stop_rounds=2,
            stop_fraction=0.0,
            fit=polyfuse.FitOptions(sampler=lambda rows, labels, generator: rows),
        )
    text = str(raised.value)
    assert text.count("\n") == 5
    for said in (
        "rounds=0",
        "shrinkage=1.5",
        "largest_step=0.0",
        "stop_rounds=2 looks at the loss",
    ):
        assert said in text
    assert "leave sampler out" in text
    assert "no labels" in text


def not_a_mean(outputs, labels):
    return functional.cross_entropy(outputs, labels, reduction="none")


def counts(outputs, labels):
    return (outputs.argmax(-1) != labels).float().mean()


@pytest.mark.parametrize(
    ("loss", "said"),
    [(not_a_mean, "the loss has shape"), (counts, "no derivative by the outputs")],
)
def test_losses_that_cannot_be_followed_are_refused(loss, said, tmp_path):
    with pytest.raises(TrainingError, match=said):
        boosted(tmp_path, fit={"loss": loss, "optimizer": sgd})

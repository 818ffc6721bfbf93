"""SAMME as a strategy: rows weighted round by round, ends told apart, resumed to the same bits."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import polyfuse
import tiny
from polyfuse.boosting import samme_r_round, samme_round
from polyfuse.combine import boosted_vote, mean_probability
from polyfuse.compare import compare_fusions
from polyfuse.determinism import seeded
from polyfuse.errors import DataError, RunError, TrainingError
from polyfuse.optimizers import adam
from polyfuse.population import Population
from polyfuse.training.samme import samme


def rows(count=48, seed=0):
    """Two classes that a line tells apart, but for one row in eight."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((count, 4)).astype("f4")
    labels = (values[:, 0] + values[:, 1] > 0) ^ (draw.random(count) < 1 / 8)
    return polyfuse.Arrays(values, labels.astype(int))


DATA = polyfuse.Splits(rows(), rows(8, 1), rows(10, 2))


def task(data=DATA, **options):
    factory = partial(polyfuse.mlp, inputs=4, classes=2, hidden=8, dropout=0.1)
    fit = {"epochs": 3, "batch_size": 8, "optimizer": partial(adam, lr=0.05), "accelerator": "cpu"}
    return polyfuse.Task(factory, data, polyfuse.FitOptions(**fit | options))


def boosted(folder, *, fit=None, watch=lambda *seen: None, **options):
    plan = samme(DATA.train, **{"rounds": 3, **options})
    return polyfuse.train(plan, task(**fit or {}), folder, watch=watch)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Three rounds, never disturbed."""
    return boosted(tmp_path_factory.mktemp("samme"))


def said_of(member):
    """What a member says of the training rows, in eval mode."""
    with torch.no_grad():
        return member.model(task().factory)(DATA.train.values).numpy()


def wrong_of(member):
    return said_of(member).argmax(-1) != DATA.train.labels


def test_weights_and_errors_are_those_of_the_pure_rounds(clean):
    weights = np.full(48, 1 / 48)
    for number, member in enumerate(clean.members):
        expected = samme_round(wrong_of(member), weights, classes=2, last=number == 2)
        assert member.record["error"] == pytest.approx(expected.error)
        assert member.record["weight"] == pytest.approx(expected.weight)
        weights = member.carried("weights")
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-12)
    assert len({m.record["weight"] for m in clean.members}) == 3


def test_a_member_learns_what_those_before_it_have_wrong(clean):
    job = samme(DATA.train, rounds=3).jobs(clean.members[:1])[0]
    wrong = wrong_of(clean.members[0])
    assert job.weights[wrong].min() > job.weights[~wrong].max()
    assert job.weights[wrong].sum() == pytest.approx(0.5)


def test_weighted_rows_train_another_member_than_plain_ones(clean, tmp_path):
    class Plain:
        def jobs(self, done):
            jobs = samme(DATA.train, rounds=3).jobs(clean.members[:1])
            return [replace(job, index=0, weights=np.ones(48)) for job in jobs if not done]

        def size(self, done):
            return 1

    plain = polyfuse.train(Plain(), task(), tmp_path)
    assert not tiny.same(plain.members[0].state(), clean.members[1].state())


def test_resampling_draws_rows_by_their_weights_and_judges_all(tmp_path):
    found = boosted(tmp_path, weighting="resample", rounds=2)
    first, second = found.members
    weights = first.carried("weights")
    counts = np.bincount(second.rows("learned"), minlength=48)
    assert counts.sum() == 48
    heavy = weights > 1 / 48
    assert counts[heavy].mean() > counts[~heavy].mean()
    wrong = wrong_of(second)
    assert second.record["error"] == pytest.approx((weights * wrong).sum() / weights.sum())


def test_samme_r_weighs_by_probabilities(tmp_path):
    found = boosted(tmp_path, variant="samme_r", rounds=2)
    p = torch.softmax(torch.from_numpy(said_of(found.members[0])).double(), -1).numpy()
    expected = samme_r_round(p, DATA.train.labels, np.full(48, 1 / 48))
    np.testing.assert_allclose(found.members[0].carried("weights"), expected.weights, rtol=1e-5)
    assert [m.record["weight"] for m in found.members] == [1.0, 1.0]


def test_stopping_rows_choose_epochs_and_are_not_boosted_on(tmp_path):
    found = boosted(tmp_path, stop_fraction=0.25, rounds=2)
    for member in found.members:
        assert len(member.rows("stopped")) == 12
        assert not set(member.rows("stopped")) & set(member.rows("learned"))
        assert member.carried("weights").shape == (36,)


# Ends -------------------------------------------------------------------------------------------


class Says(nn.Module):
    """A net whose answer is in its inputs: the label, turned round in rows that it has wrong."""

    def __init__(self, wrong=0):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("wrong", torch.tensor(float(wrong)))

    def forward(self, inputs):
        number, label = inputs[:, 0], inputs[:, 1]
        shown = torch.where(number < self.wrong, 1 - label, label)
        return self.scale * torch.stack([1 - shown, shown], -1)


def told(rows=12):
    labels = np.arange(rows) % 2
    return polyfuse.Arrays(np.stack([np.arange(rows), labels], 1).astype("f4"), labels)


class Script:
    """Makes nets with so many wrong rows, told apart by the seed that they are made under."""

    def __init__(self, plan, *wrong):
        self.wrong = {}
        for number, seed in zip(wrong, plan.seeds, strict=False):
            with seeded(seed):
                self.wrong[torch.initial_seed()] = number

    def __call__(self):
        return Says(self.wrong.get(torch.initial_seed(), 0))


def scripted(folder, *wrong):
    data = told()
    plan = samme(data, rounds=5)
    options = polyfuse.FitOptions(epochs=1, accelerator="cpu")
    splits = polyfuse.Splits(data, data, data)
    return plan, polyfuse.train(plan, polyfuse.Task(Script(plan, *wrong), splits, options), folder)


def test_it_ends_with_a_perfect_member_and_keeps_it(tmp_path):
    plan, found = scripted(tmp_path, 3, 0)
    assert [m.record["weight"] for m in found.members][-1] == 1.0
    assert found.members[-1].record["kept"] == 2
    assert "every learning row right" in found.members[-1].record["ended"]
    assert plan.size(found.members) == 2
    assert plan.size(()) == 5
    assert plan.jobs(found.members) == []
    assert len(found.for_fusions.members) == 2


def test_it_ends_with_a_member_no_better_than_guessing_and_drops_it(tmp_path):
    plan, found = scripted(tmp_path, 3, 1, 9)
    last = found.members[-1].record
    assert (last["index"], last["weight"], last["kept"]) == (2, 0.0, 2)
    assert "guessing among 2 classes" in last["ended"]
    assert plan.size(found.members) == 3
    assert plan.jobs(found.members) == []
    board = compare_fusions(found, fusions=["boosted_vote", "mean_probability"], replicates=10)
    for name, fuse in {"boosted_vote": boosted_vote, "mean_probability": mean_probability}.items():
        assert board.row(name)["members"] == [0, 1]
        weights = [m.record["weight"] for m in found.members[:2]] if "boost" in name else None
        expected = fuse(found.stack("val")[:2], weights=weights)
        np.testing.assert_allclose(found.said(name, "val"), expected, rtol=1e-5)


def test_a_first_member_no_better_than_guessing_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="first member cannot be boosted: its weighted error"):
        scripted(tmp_path, 9)
    assert Population.open(tmp_path).members == ()


# Resuming ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Like a signal, nothing inside may catch it."""


@pytest.mark.parametrize("moment", [(1, 1, "loss"), (1, 3, "done"), (2, 1, "loss")])
def test_a_killed_run_gives_the_same_bytes(moment, clean, tmp_path):
    def watch(index, done, total, note):
        if (index, done) == moment[:2] and note.startswith(moment[2]):
            raise Killed

    with pytest.raises(Killed):
        boosted(tmp_path, watch=watch)
    boosted(tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_lost_member_comes_back_as_it_was(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "members" / "001")
    boosted(tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_round_at_a_time(clean):
    plan = samme(DATA.train, rounds=3)
    for done in range(3):
        assert [job.index for job in plan.jobs(clean.members[:done])] == [done]
    assert plan.jobs(clean.members) == []


@pytest.mark.parametrize(
    "other",
    [{"rounds": 4}, {"learning_rate": 0.5}, {"variant": "samme_r"}, {"weighting": "resample"}],
)
def test_members_of_another_plan_are_refused(other, clean):
    plan = samme(DATA.train, **{"rounds": 3, **other})
    with pytest.raises(RunError, match="trained by another plan"):
        plan.jobs(clean.members)


# What is refused --------------------------------------------------------------------------------


def test_all_faults_are_told_at_once():
    with pytest.raises(DataError) as raised:
        samme(
            polyfuse.Arrays(np.zeros((4, 2)), np.zeros((4, 2), int)),
            rounds=0,
            learning_rate=0.0,
            weighting="lose",
            variant="samme.r",
            stop_fraction=1.0,
        )
    text = str(raised.value)
    assert text.count("\n") == 5
    assert "not classification labels of shape (4, 2); gradient_boosting takes any" in text
    assert "weighting='lose'; did you mean 'loss'" in text
    assert "variant='samme.r'; did you mean 'samme_r'" in text


def test_rows_without_classes_are_refused():
    numbers = polyfuse.Arrays(np.zeros((4, 2)), np.zeros(4, "f4"), task="regression")
    with pytest.raises(DataError, match="not regression labels"):
        samme(numbers)
    with pytest.raises(DataError, match="not none"):
        samme(polyfuse.Arrays(np.zeros((4, 2))))


def unweighted(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels)


def test_a_loss_that_takes_no_weights_needs_resampling(tmp_path):
    with pytest.raises(TrainingError, match="the loss takes no weights"):
        boosted(tmp_path / "loss", fit={"loss": unweighted})
    found = boosted(tmp_path / "drawn", fit={"loss": unweighted}, weighting="resample", rounds=2)
    assert len(found.members) == 2


def test_boosted_fusions_of_members_without_weights_are_refused(tmp_path):
    found = tiny.train(tmp_path)
    with pytest.raises(DataError, match=r"boosted_sum takes the weights.*member 0, member 1 have"):
        compare_fusions(found, fusions=["boosted_sum"])

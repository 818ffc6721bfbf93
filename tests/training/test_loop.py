import shutil
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

import polyfuse
import tiny
from polyfuse import Arrays, LocalRunner, Population, Splits, kfold
from polyfuse.determinism import seeded
from polyfuse.errors import DataError, RunError, TrainingError
from polyfuse.optimizers import adamw
from polyfuse.training import STRATEGIES
from polyfuse.training.loop import Task


def plan(data, folds=3):
    return kfold(data.train, folds=folds)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A finished run of three folds, never disturbed."""
    run = tmp_path_factory.mktemp("clean")
    return polyfuse.train(plan(tiny.splits()), tiny.task(), run)


def net(member):
    return member.model(tiny.task().factory)


def logits(model, split):
    with torch.no_grad():
        return model(split.values).numpy()


# What a run holds -------------------------------------------------------------------------------


def test_each_training_row_is_predicted_by_the_one_member_that_did_not_see_it(clean):
    said = np.stack([np.isfinite(m.predictions("train")).all(1) for m in clean.members])
    assert (said.sum(0) == 1).all()
    for member, spoke in zip(clean.members, said, strict=True):
        assert np.flatnonzero(spoke).tolist() == member.rows("held_out").tolist()
        seen = {*member.rows("learned").tolist(), *member.rows("stopped").tolist()}
        assert seen == {*np.flatnonzero(~spoke).tolist()}
        assert np.isnan(member.predictions("train")[~spoke]).all()


def test_kept_predictions_are_those_of_the_kept_weights(clean):
    data = tiny.splits()
    for member in clean.members:
        for name, split in data._asdict().items():
            kept = member.predictions(name)
            there = np.isfinite(kept)
            np.testing.assert_allclose(
                kept[there], logits(net(member), split)[there], rtol=1e-5, atol=1e-6
            )
            assert there.all() or name == "train"


def test_a_record_says_how_the_member_was_made(clean):
    job = plan(tiny.splits()).jobs([])[1]
    record = clean.members[1].record
    assert {"strategy": "kfold", "fold": 1, "folds": 3, "seed": job.seed}.items() <= record.items()
    losses = [epoch["stopping_loss"] for epoch in record["history"]]
    assert record["best_epoch"] == 1 + int(np.argmin(losses))
    assert record["parameters"] == sum(p.numel() for p in net(clean.members[1]).parameters())


def test_no_progress_is_kept_of_what_is_done(clean):
    assert list((clean.path / "resume").iterdir()) == []


def test_noise_is_not_learned_out_of_fold(tmp_path):
    draw = np.random.default_rng(0)
    train = Arrays(draw.standard_normal((300, 100)), draw.integers(0, 2, 300))
    factory = partial(polyfuse.mlp, inputs=100, classes=2, hidden=64)
    options = polyfuse.FitOptions(
        epochs=5, batch_size=8, optimizer=partial(adamw, lr=0.01), accelerator="cpu"
    )
    task = Task(factory, Splits(train, train, train), options)
    found = polyfuse.train(plan(task.splits), task, tmp_path)
    right = found.out_of_fold().argmax(1) == train.labels
    # Four standard deviations of 300 coin flips are 0.115.
    assert abs(right.mean() - 0.5) < 0.115
    # Had a member predicted rows that it learned from, the test above would show it.
    for member in found.members:
        learned = member.rows("learned")
        again = logits(member.model(factory), train)[learned].argmax(1) == train.labels[learned]
        assert again.mean() > 0.5 + 0.115


# Resuming ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: like a signal, nothing inside may catch it."""


def kill_at(member, epoch):
    def watch(number, done, total, note):
        if (number, done) == (member, epoch):
            raise Killed

    return watch


def finished(run, told=None):
    watch = (lambda *seen: told.append(seen)) if told is not None else kill_at(-1, -1)
    return polyfuse.train(plan(tiny.splits()), tiny.task(), run, watch=watch)


@pytest.mark.parametrize(("member", "epoch"), [(0, 1), (1, 1), (2, 2)])
def test_a_killed_run_goes_on_where_it_was(member, epoch, clean, tmp_path):
    with pytest.raises(Killed):
        polyfuse.train(plan(tiny.splits()), tiny.task(), tmp_path, watch=kill_at(member, epoch))
    told = []
    finished(tmp_path, told)
    epochs = [(m, e) for m in range(3) for e in (1, 2)]
    trained = [seen[:2] for seen in told if seen[3] != "done"]
    assert trained == [e for e in epochs if e > (member, epoch)]
    assert [seen for seen in told if seen[3] == "done"] == [
        (m, 2, 2, "done") for m in range(member, 3)
    ]
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_deadline_leaves_members_out_and_the_next_run_brings_them(clean, tmp_path):
    early = polyfuse.train(plan(tiny.splits()), tiny.task(), tmp_path, deadline=0)
    assert early.members == ()
    assert len(finished(tmp_path).members) == 3
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_finished_run_is_not_trained_again(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    polyfuse.train(plan(tiny.splits()), tiny.task(), tmp_path, watch=kill_at(0, 1))
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_progress_of_a_committed_member_is_removed(clean, tmp_path):
    # As a kill between the commit and the removal leaves it.
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "resume" / "001.safetensors").write_bytes(b"anything")
    finished(tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_lost_member_comes_back_as_it_was(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "members" / "001")
    finished(tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_give_the_same_bits_as_one(clean, tmp_path):
    told = []
    polyfuse.train(
        plan(tiny.splits()),
        tiny.task(),
        tmp_path,
        runner=LocalRunner(2),
        watch=lambda *seen: told.append(seen),
    )
    trained = sorted(seen[:2] for seen in told if seen[3] != "done")
    assert trained == [(m, e) for m in range(3) for e in (1, 2)]
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


# What goes wrong --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailsOn:
    """A factory that fails for one member, told by the seed it is called under."""

    seed: int

    def __call__(self):
        if torch.initial_seed() == self.seed:
            raise TrainingError("no luck; try another day")
        return tiny.task().factory()


def test_a_failing_member_is_named_and_the_others_are_kept(clean, tmp_path):
    jobs = plan(tiny.splits())
    with seeded(jobs.jobs([])[1].seed):
        broken = Task(FailsOn(torch.initial_seed()), tiny.splits(), tiny.task().options)
    with pytest.raises(TrainingError) as raised:
        polyfuse.train(jobs, broken, tmp_path)
    assert str(raised.value).splitlines() == [
        "2 of 3 members are kept; what failed:",
        "  member 1  1 attempt  no luck; try another day",
        "run the same command again: it trains only what is missing",
    ]
    assert [m.index for m in Population.open(tmp_path).members] == [0, 2]
    finished(tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


def test_a_run_folder_of_other_data_is_refused(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    other = tiny.splits(seed=7)
    with pytest.raises(RunError, match="made with other data; name a new folder"):
        polyfuse.train(plan(other), tiny.task(other), tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_labels_that_do_not_fit_are_refused_before_training(name, tmp_path):
    wrong = tiny.splits()._replace(**{name: tiny.arrays(40, classes=5)})
    with pytest.raises(DataError, match="labels go up to 4"):
        polyfuse.train(plan(wrong, 2), tiny.task(wrong), tmp_path)
    assert list((tmp_path / "members").iterdir()) == []


def test_unknown_test_labels_are_no_fault(tmp_path):
    data = tiny.splits()
    data = data._replace(test=Arrays(data.test.values))
    found = tiny.train(tmp_path, data)
    assert found.labels("test") is None
    assert len(found.members) == 2


def test_a_half_written_member_stands_in_the_way_and_stays(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "members" / "001" / "member.json").unlink()
    before = tiny.hashes(tmp_path)
    with pytest.raises(RunError, match=r"001' is half-written.*delete or move"):
        finished(tmp_path)
    assert tiny.hashes(tmp_path) == before


def test_progress_of_other_options_is_refused_and_the_member_named(clean, tmp_path):
    with pytest.raises(Killed):
        polyfuse.train(plan(tiny.splits()), tiny.task(), tmp_path, watch=kill_at(0, 1))
    with pytest.raises(TrainingError, match=r"member 0 .*000.safetensors' keeps the progress of"):
        polyfuse.train(plan(tiny.splits()), tiny.task(clip=0.5), tmp_path)


def test_members_of_other_options_are_refused_and_stay(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunError, match=r"000' was trained with other options.*clip=None"):
        polyfuse.train(plan(tiny.splits()), tiny.task(clip=0.5), tmp_path)
    with pytest.raises(RunError, match="000' was trained by another plan than the 2 members"):
        polyfuse.train(plan(tiny.splits(), folds=2), tiny.task(), tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(clean.path)


# Factories --------------------------------------------------------------------------------------

NET = torch.nn.Linear(4, 2)
TRUNK = torch.nn.BatchNorm1d(4, affine=False)
ACTIVATION = torch.nn.ReLU()


def the_same():
    return NET


def a_shared_head():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), NET)


def a_shared_trunk():
    return torch.nn.Sequential(TRUNK, torch.nn.Linear(4, 2))


def a_shared_weight():
    own = torch.nn.Linear(4, 2)
    own.weight = NET.weight
    return own


def a_shared_activation():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), ACTIVATION, torch.nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        (the_same, "the model itself, weight, bias; build"),
        (a_shared_head, "1, 1.weight, 1.bias; build"),
        (a_shared_trunk, "0; build"),
        (a_shared_weight, "weight; build"),
    ],
)
def test_a_factory_that_hands_out_the_same_parts_again_is_refused(factory, named, tmp_path):
    broken = Task(factory, tiny.splits(), tiny.task().options)
    with pytest.raises(TrainingError) as caught:
        polyfuse.train(plan(tiny.splits()), broken, tmp_path)
    assert str(caught.value).startswith("a model factory returns the same object again, so that ")
    assert named in str(caught.value)
    assert list((tmp_path / "members").iterdir()) == []


def test_two_factories_that_share_parts_are_refused(tmp_path):
    data = tiny.splits()
    trunk = torch.nn.Linear(4, 4)
    nets = [tiny.task().factory, lambda: torch.nn.Sequential(trunk, torch.nn.Linear(4, 2))]
    both = Task(nets, data, tiny.task().options)
    with pytest.raises(TrainingError, match="returns the same object again"):
        polyfuse.train(STRATEGIES["heterogeneous"](data.train, factories=2), both, tmp_path)


def test_modules_that_hold_nothing_may_be_shared(tmp_path):
    task = Task(a_shared_activation, tiny.splits(), tiny.task().options)
    assert len(polyfuse.train(plan(tiny.splits(), 2), task, tmp_path).members) == 2


def test_a_model_is_no_factory(tmp_path):
    broken = Task(torch.nn.Linear(4, 2), tiny.splits(), tiny.task().options)
    with pytest.raises(TrainingError, match="factory is a Linear, a model; bring a function"):
        polyfuse.train(plan(tiny.splits()), broken, tmp_path)


def test_several_models_need_a_strategy_that_trains_them(tmp_path):
    two = Task([tiny.task().factory] * 2, tiny.splits(), tiny.task().options)
    with pytest.raises(TrainingError, match=r"the task has 2 model factories.*heterogeneous\("):
        polyfuse.train(plan(tiny.splits()), two, tmp_path)

"""MC dropout and MC batch-norm as strategies: one net, several members, new data read the same."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import polyfuse
import tiny
from polyfuse import Population, Task
from polyfuse.averaging import ema
from polyfuse.errors import DataError, RunError, TrainingError
from polyfuse.inference import predict
from polyfuse.stochastic import mc_dropout as dropped
from polyfuse.training.mc import mc_batchnorm, mc_dropout

SAMPLES = 4


def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


@pytest.fixture(scope="module")
def drops(tmp_path_factory):
    task = tiny.task(averaging={"ema": partial(ema, 0.5)})
    plan = mc_dropout(task.splits.train, samples=SAMPLES)
    return polyfuse.train(plan, task, tmp_path_factory.mktemp("dropout"))


def test_the_net_is_kept_once_and_every_member_has_it(drops):
    assert [p.parent.name for p in drops.path.glob("members/*/model.safetensors")] == ["000"]
    averaged = drops.path.glob("members/*/averages/ema/model.safetensors")
    assert [p.parents[2].name for p in averaged] == ["000"]
    for member in drops.members:
        assert member.has_weights
        assert tiny.same(member.state(), drops.members[0].state())
        assert member.checkpoint() == drops.members[0].checkpoint()
        average = member.averaged("ema")
        assert tiny.same(average.state(), drops.members[0].averaged("ema").state())
        assert not tiny.same(average.state(), member.state())


def test_members_differ_by_their_masks_and_answer_again_as_before(drops):
    task, seeds = tiny.task(), [member.record["dropout_seed"] for member in drops.members]
    assert len(set(seeds)) == SAMPLES
    for population in (drops, drops.averaged("ema")):
        stack = population.stack("test")
        for member, said in zip(population.members, stack, strict=True):
            net = member.model(task.factory)
            np.testing.assert_allclose(predict(net, task.splits.test), said, rtol=1e-5, atol=1e-6)
            part = predict(net, task.splits.test, np.arange(3, 7))
            np.testing.assert_allclose(part, said[3:7], rtol=1e-5, atol=1e-6)
        assert np.abs(stack[0] - stack[1]).max() > 1e-3


def test_a_member_is_the_net_with_its_seed(drops):
    task = tiny.task()
    net = task.factory()
    net.load_state_dict(drops.members[0].state())
    for member in drops.members:
        with torch.no_grad():
            said = dropped(net.eval(), seed=member.record["dropout_seed"])(task.splits.val.values)
        np.testing.assert_allclose(said, member.predictions("val"), rtol=1e-5, atol=1e-6)


def test_a_killed_run_goes_on(drops, tmp_path):
    task = tiny.task(averaging={"ema": partial(ema, 0.5)})
    plan = mc_dropout(task.splits.train, samples=SAMPLES)

    class Killed(BaseException):
        pass

    def watch(number, done, total, note):
        if done == 1:
            raise Killed

    with pytest.raises(Killed):
        polyfuse.train(plan, task, tmp_path, watch=watch)
    polyfuse.train(plan, task, tmp_path)
    assert tiny.hashes(tmp_path) == tiny.hashes(drops.path)


@pytest.mark.parametrize(
    "change", [{"weights_of": 2}, {"weights_of": -1}, {"weights_of": "0"}, {"dropout_seed": "x"}]
)
def test_a_record_that_points_elsewhere_is_refused(drops, tmp_path, change):
    import json
    import shutil

    run = shutil.copytree(drops.path, tmp_path / "run")
    file = run / "members/002/member.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(RunError, match="no record"):
        Population.open(run)


def test_batchnorm_members_have_the_statistics_of_a_training_batch(tmp_path):
    data = tiny.splits(40)
    task = Task(normed, data, tiny.task(averaging={"ema": partial(ema, 0.5)}).options)
    plan = mc_batchnorm(data.train, samples=SAMPLES, batch_size=5)
    found = polyfuse.train(plan, task, tmp_path)
    (job,) = plan.jobs([])
    for population in (found, found.averaged("ema")):
        states = [member.state() for member in population.members]
        weights = [{n: v for n, v in s.items() if "running" not in n} for s in states]
        assert all(tiny.same(each, weights[0]) for each in weights)
        hidden = nn.Linear(4, 6)
        hidden.load_state_dict({n: states[0][f"0.{n}"] for n in ("weight", "bias")})
        seen = hidden(data.train.values[job.learn]).detach()
        for state in states:
            # The mean of 5 rows, out of all that it learned from.
            z = (state["1.running_mean"] - seen.mean(0)) / seen.std(0)
            assert z.abs().max() < 4 / 5**0.5
        assert not torch.equal(states[0]["1.running_mean"], states[1]["1.running_mean"])
    again = predict(found.members[1].model(normed), data.test)
    np.testing.assert_allclose(again, found.members[1].predictions("test"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "factory", "lacks"),
    [
        (mc_dropout, normed, "no dropout layer"),
        (mc_batchnorm, tiny.task().factory, "no batch-norm layer"),
    ],
)
def test_a_net_that_would_always_say_the_same_is_refused_untrained(
    strategy, factory, lacks, tmp_path
):
    epochs = []
    task = Task(factory, tiny.splits(), tiny.task().options)
    watch = lambda number, done, total, note: epochs.append(done)  # noqa: E731
    with pytest.raises(TrainingError, match=lacks):
        polyfuse.train(strategy(task.splits.train), task, tmp_path, watch=watch)
    assert not any(epochs)


def test_all_faults_are_told_at_once():
    with pytest.raises(DataError, match=r"(?s)stop_fraction=2.*samples=0.*batch_size=1"):
        mc_batchnorm(tiny.arrays(), samples=0, batch_size=1, stop_fraction=2)

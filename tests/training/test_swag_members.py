"""SWAG as a strategy: the iterates it collects, its samples as members, statistics of their own."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import polyfuse
import tiny
from polyfuse import FitOptions, Task
from polyfuse.batchnorm import reestimate
from polyfuse.determinism import seeded
from polyfuse.errors import DataError
from polyfuse.optimizers import sgd
from polyfuse.schedules import cosine
from polyfuse.swag import moments, sample
from polyfuse.training.base import member_seeds
from polyfuse.training.swag import swag


class Tied(nn.Module):
    """A net with batch-norm and one parameter under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.second(torch.relu(self.norm(self.first(x)))))


OPTIONS = FitOptions(epochs=6, batch_size=8, accelerator="cpu")


def trained(folder, options=OPTIONS, **asked):
    data = tiny.splits()
    task = Task(Tied, data, options)
    plan = swag(data.train, fit=options, **{"samples": 3, **asked})
    return polyfuse.train(plan, task, folder), plan.jobs([])[0], task


def test_members_are_samples_of_the_last_weights_of_one_run(tmp_path):
    found, job, task = trained(tmp_path, rank=3)
    with seeded(job.seed):
        model = Tied()
    fitted = polyfuse.fit.fit_member(
        model,
        task.splits.train,
        job.learn,
        job.stop,
        job.options,
        seed=job.seed,
        collect=job.given["epochs"],
    )
    assert sorted(fitted.collected) == [4, 5, 6]
    names = [name for name, _ in model.named_parameters()]
    given = ({n: fitted.collected[e][n] for n in names} for e in (4, 5, 6))
    gaussian = moments(given, rank=3)
    for member, seed in zip(found.members, member_seeds(job.seed, 3), strict=True):
        drawn = sample(gaussian, torch.Generator().manual_seed(seed))
        state = member.state()
        for name in names:
            torch.testing.assert_close(state[name], drawn[name].float(), rtol=0, atol=0)
        assert torch.equal(state["second.weight"], state["first.weight"])
        assert member.record["strategy"] == "swag"
    assert len({float(m.state()["head.bias"][0]) for m in found.members}) == 3


def test_batchnorm_is_measured_for_each_sample(tmp_path):
    found, job, task = trained(tmp_path)
    means = []
    for member in found.members:
        state = member.state()
        model = Tied()
        model.load_state_dict(state)
        reestimate(model, [task.splits.train.inputs(job.learn)])
        torch.testing.assert_close(model.norm.running_mean, state["norm.running_mean"])
        torch.testing.assert_close(model.norm.running_var, state["norm.running_var"])
        means.append(state["norm.running_mean"])
    assert not torch.equal(means[0], means[1])


def test_identical_iterates_give_the_mean(tmp_path):
    still = FitOptions(epochs=4, batch_size=8, accelerator="cpu", optimizer=partial(sgd, lr=0.0))
    found, job, _ = trained(tmp_path, still, scale=5.0)
    with seeded(job.seed):
        begun = dict(Tied().named_parameters())
    for member in found.members:
        assert all(torch.equal(member.state()[name], value) for name, value in begun.items())


def test_the_rate_is_constant_where_weights_are_collected():
    (job,) = swag(tiny.arrays(), fit=FitOptions(epochs=10), start=0.6, rate=0.3).jobs([])
    factors = np.array([job.options.schedule(step, 50) for step in range(50)])
    assert factors[:30].tolist() == [cosine(step, 50) for step in range(30)]
    assert (factors[30:] == 0.3).all()
    assert job.given["epochs"] == (7, 8, 9, 10)


def test_all_faults_are_told_at_once():
    with pytest.raises(DataError) as caught:
        swag(tiny.arrays(), fit=OPTIONS, samples=0, start=0.9, rank=1, scale=-1, rate=0.0)
    for fault in ("samples=0", "start=0.9 of 6 epochs", "rank=1", "scale=-1", "rate=0.0"):
        assert fault in str(caught.value)

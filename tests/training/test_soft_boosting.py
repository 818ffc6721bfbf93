"""Soft gradient boosting: one training of all members, whose loss is the one by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional

import polyfuse
import tiny
from polyfuse.boosting import soft_boosting_loss
from polyfuse.combine import boosted_sum
from polyfuse.compare import compare_fusions
from polyfuse.errors import DataError
from polyfuse.losses import cross_entropy
from polyfuse.optimizers import adam, sgd
from polyfuse.training.base import member_seeds
from polyfuse.training.soft_boosting import soft_boosting

DATA = tiny.splits(40)
RATE = 0.1


def task(**options):
    fit = {"epochs": 3, "batch_size": 40, "optimizer": partial(sgd, lr=RATE), "accelerator": "cpu"}
    fit |= {"schedule": lambda step, total: 1.0, **options}
    factory = partial(polyfuse.mlp, inputs=4, classes=2, hidden=5, dropout=0.0)
    return polyfuse.Task(factory, DATA, polyfuse.FitOptions(**fit))


def boosted(folder, *, fit=None, **options):
    plan = soft_boosting(DATA.train, **{"members": 3, "shrinkage": 0.5, **options})
    return polyfuse.train(plan, task(**fit or {}), folder)


def by_hand(job, epochs, **options):
    """Train the same members in plain PyTorch, all rows in one batch; return them."""
    models = []
    for seed in member_seeds(job.seed, job.count):
        with polyfuse.determinism.seeded(seed):
            models.append(task().factory())
    inputs = DATA.train.values[job.learn]
    labels = torch.from_numpy(DATA.train.labels[job.learn])
    optimizer = sgd([p for model in models for p in model.parameters()], lr=RATE)
    for _ in range(epochs):
        outputs = torch.stack([model(inputs) for model in models])
        optimizer.zero_grad()
        soft_boosting_loss(outputs, labels, **options).backward()
        optimizer.step()
    return models


@pytest.mark.parametrize("detach", [True, False])
def test_members_are_those_of_the_loss_by_hand(detach, tmp_path):
    found = boosted(tmp_path, detach=detach, stop_fraction=0.0)
    (job,) = soft_boosting(DATA.train, members=3, shrinkage=0.5, stop_fraction=0.0).jobs([])
    expected = by_hand(job, 3, shrinkage=0.5, detach=detach)
    for member, model in zip(found.members, expected, strict=True):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(member.state()[name], value, rtol=1e-4, atol=1e-6)


def test_detach_makes_other_members_but_for_the_last_ones_target(tmp_path):
    found = [boosted(tmp_path / str(d), detach=d, fit={"epochs": 1}) for d in (True, False)]
    same = [tiny.same(*(run.members[i].state() for run in found)) for i in range(3)]
    assert same == [False, False, True]  # after one step; no member comes after the last


def test_the_epoch_is_chosen_by_the_runs_loss_of_the_sum(tmp_path):
    found = boosted(tmp_path, stop_fraction=0.3, fit={"optimizer": partial(adam, lr=0.1)})
    stop, record = found.members[0].rows("stopped"), found.members[0].record
    with torch.no_grad():
        said = [m.model(task().factory)(DATA.train.values[stop]) for m in found.members]
    loss = functional.cross_entropy(0.5 * sum(said), torch.from_numpy(DATA.train.labels[stop]))
    losses = [epoch["stopping_loss"] for epoch in record["history"]]
    assert record["best_epoch"] == np.argmin(losses) + 1
    assert min(losses) == pytest.approx(float(loss), rel=1e-5)


def test_the_sum_of_all_is_fused_and_learns(tmp_path):
    fit = {"optimizer": partial(adam, lr=0.05), "epochs": 12}
    found = boosted(tmp_path, fit=fit)
    assert [member.record["weight"] for member in found.members] == [0.5, 0.5, 0.5]
    compare_fusions(found, fusions=["boosted_sum"], replicates=10)
    expected = special.softmax(0.5 * found.stack("val").sum(0), -1)
    np.testing.assert_allclose(found.said("boosted_sum", "val"), expected, rtol=1e-5)
    with torch.no_grad():
        said = [m.model(task().factory)(DATA.train.values) for m in found.members]
    labels = torch.from_numpy(DATA.train.labels)
    nll = [
        float(cross_entropy(boosted_sum(torch.stack(said[:n]), weights=[0.5] * n).log(), labels))
        for n in (1, 3)
    ]
    assert nll[1] < nll[0] < np.log(2)


def test_all_faults_are_told_at_once():
    numbers = polyfuse.Arrays(np.zeros((4, 2)), np.zeros(4, "f4"), task="regression")
    with pytest.raises(DataError) as raised:
        soft_boosting(numbers, members=1, shrinkage=0.0, stop_fraction=1.0)
    assert str(raised.value).count("\n") == 3
    assert "of the task regression; gradient_boosting takes" in str(raised.value)

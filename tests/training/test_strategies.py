"""What holds of every strategy: honest rows, the same bits after a kill, no foreign folder."""

import inspect
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

import polyfuse
import tiny
from polyfuse.data.digits import digits as embedded
from polyfuse.errors import RunError
from polyfuse.optimizers import adamw
from polyfuse.recipes.run import run
from polyfuse.recipes.schema import check
from polyfuse.recipes.source import parse, write
from polyfuse.training import STRATEGIES


@dataclass(frozen=True)
class Case:
    """How a strategy is tried.

    Attributes:
        options: of the strategy.
        fit: changes to how members are trained.
        models: factories of the task.
        logits: whether its members say logits, so that the mean of their probabilities is one.
        members: of the finished population.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    models: int = 1
    logits: bool = True
    members: int = 2


CASES = {
    "bagging": Case({"members": 2}),
    "fge": Case({"start": 0.5, "cycle": 2}, {"epochs": 8}),
    "gradient_boosting": Case({"rounds": 2}, logits=False),
    "heterogeneous": Case({"folds": 2}, models=2, members=4),
    "holdout": Case({"members": 2}),
    "independent": Case({"members": 2}),
    "joint": Case({"members": 2}),
    "kfold": Case({"folds": 2}),
    "mc_batchnorm": Case({"samples": 2, "batch_size": 8}),
    "mc_dropout": Case({"samples": 2}),
    "negative_correlation": Case({"members": 2}),
    "refit": Case({"folds": 2}, members=3),
    "samme": Case({"rounds": 2}, {"epochs": 6}, logits=False),
    "snapshot": Case({"cycles": 2, "prune": False}, {"epochs": 4}),
    "soft_boosting": Case({"members": 2}, logits=False),
    "swag": Case({"samples": 2}, {"epochs": 4}),
}
NAMES = sorted(CASES)
JENSEN = [name for name in NAMES if CASES[name].logits]


FAST = partial(adamw, lr=0.03)


def net(inputs=4, classes=2, hidden=6):
    """Return a net that has all that a strategy may need: batch-norm and dropout."""
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(inputs, hidden),
        torch.nn.BatchNorm1d(hidden),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(hidden, classes),
    )


def task(name, data, inputs=4, classes=2, **fit):
    factories = [partial(net, inputs, classes), partial(net, inputs, classes, hidden=5)]
    options = {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "optimizer": FAST}
    options |= {**CASES[name].fit, **fit}
    return polyfuse.Task(factories[: CASES[name].models], data, polyfuse.FitOptions(**options))


def strategy(name, shared, seed=0, **changes):
    """Return the strategy with what a run tells it, where it asks."""
    make = STRATEGIES[name]
    told = {"fit": shared.options, "factories": len(shared.factories)}
    told = {key: told[key] for key in told.keys() & inspect.signature(make).parameters.keys()}
    return make(shared.splits.train, **told, **{**CASES[name].options, **changes}, seed=seed)


@cache
def data():
    """Return 30 rows in groups of three."""
    return tiny.splits(30, groups=np.arange(30) // 3)


def begun(folder, name, seed=0):
    shared = task(name, data())
    return polyfuse.train(strategy(name, shared, seed), shared, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return what gives a finished run of a strategy; each is trained once."""
    return cache(lambda name: begun(tmp_path_factory.mktemp(name), name))


def shown(job):
    parts = [getattr(job, part).tolist() for part in ("learn", "stop", "held_out")]
    return (job.index, job.seed, job.count, job.factory, dict(job.facts), *parts)


def test_every_strategy_has_a_case():
    assert CASES.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_jobs_follow_the_seed(name):
    shared = task(name, data())
    first, again, other = ([*map(shown, strategy(name, shared, s).jobs([]))] for s in (3, 3, 4))
    assert first == again
    assert {job[1] for job in first}.isdisjoint({job[1] for job in other})


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_the_members_that_the_strategy_promised(name, runs):
    run, shared = runs(name), task(name, data())
    plan = strategy(name, shared)
    assert len(run.members) == CASES[name].members == plan.size(run.members)
    assert [member.index for member in run.members] == list(range(CASES[name].members))
    assert list(plan.jobs(run.members)) == []
    assert not list((run.path / "resume").iterdir())
    assert {member.factory for member in run.members} == set(range(CASES[name].models))


@pytest.mark.parametrize("name", NAMES)
def test_no_member_predicts_what_it_or_its_group_has_seen(name, runs):
    groups = data().train.groups
    for member in runs(name).members:
        learned, stopped, held_out = (
            member.rows(part) for part in ("learned", "stopped", "held_out")
        )
        assert len(learned)
        seen = {*learned.tolist(), *stopped.tolist()}
        assert seen.isdisjoint(held_out.tolist())
        assert {*groups[learned].tolist()}.isdisjoint(groups[stopped].tolist())
        assert {*groups[list(seen)].tolist()}.isdisjoint(groups[held_out].tolist())
        said = np.isfinite(member.predictions("train")).all(1)
        assert np.flatnonzero(said).tolist() == held_out.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_kill_left_is_finished_with_the_same_bits(name, runs, tmp_path):
    shutil.copytree(runs(name).path, tmp_path, dirs_exist_ok=True)
    for later in runs(name).members[1:]:
        shutil.rmtree(tmp_path / "members" / later.path.name)
    begun(tmp_path, name)
    assert tiny.hashes(tmp_path) == tiny.hashes(runs(name).path)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_another_seed_began_is_refused(name, runs, tmp_path):
    shutil.copytree(runs(name).path, tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunError, match="another plan"):
        begun(tmp_path, name, seed=1)
    assert tiny.hashes(tmp_path) == tiny.hashes(runs(name).path)


def recipe(name):
    """Return a recipe on the embedded digits, with a net of batch-norm where that is asked for."""
    case = CASES[name]
    model = {"name": "mlp", "inputs": 64, "classes": 10, "hidden": 12, "dropout": 0.2}
    if name == "mc_batchnorm":
        model = {"name": "resnet18_small", "classes": 10, "width": 2, "channels": 1}
    return {
        "name": "mine",
        "seed": 5,
        "data": {"name": "digits", "train": 80, "val": 20, "test": 20},
        "model": [model] * case.models if case.models > 1 else model,
        "training": {"name": name, **case.options},
        "fit": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": {"name": "adamw", "lr": 0.03},
            "accelerator": "cpu",
            **case.fit,
        },
        "scoreboard": {"replicates": 20},
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_may_name_it(name):
    made = check(parse(write(recipe(name)), "mine.yaml")).strategy(data().train)
    assert made.size([]) == CASES[name].members
    assert made.jobs([])[0].seed == strategy(name, task(name, data()), seed=5).jobs([])[0].seed


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_on_embedded_data(name, tmp_path):
    (tmp_path / "mine.yaml").write_text(write(recipe(name)))
    done = run(tmp_path / "mine.yaml", out=tmp_path / "RUN", workers=1)
    rows = done.scoreboard.rows
    assert [row["kind"] for row in rows].count("member") == CASES[name].members
    (fusion,) = (row["name"] for row in rows if row["kind"] == "fusion")
    kept = done.population.said(fusion, "test")
    test = embedded(train=80, val=20, test=20, seed=5).test
    answers = [int(answer) for _, answer in done.predict(test, fusion=fusion)]
    assert answers == (kept if kept.ndim == 1 else kept.argmax(-1)).tolist()


def losses(stack, labels):
    """Return the NLL of the mean of probabilities, and the mean NLL of the members; in fp64."""
    logs = torch.log_softmax(torch.from_numpy(stack).double(), -1)
    own = logs[:, torch.arange(len(labels)), torch.from_numpy(labels)]
    return float(-torch.logsumexp(own, 0).sub(np.log(len(stack))).mean()), float(-own.mean())


@pytest.mark.parametrize("name", JENSEN)
def test_the_mean_is_never_worse_than_its_members_are_on_average(name, runs):
    for split in ("val", "test"):
        together, apart = losses(runs(name).stack(split), runs(name).labels(split))
        assert together <= apart + 1e-12


@cache
def digits():
    """Return 150, 100 and 400 of the real digits of scikit-learn."""
    return embedded(train=150, val=100, test=400)


LONGER = {
    "fge": {"start": 0.5, "cycle": 2},
    "mc_batchnorm": {"samples": 10},
    "mc_dropout": {"samples": 10},
    "snapshot": {"cycles": 4, "prune": False},
}


@pytest.mark.long
@pytest.mark.parametrize("name", JENSEN)
def test_an_ensemble_is_better_than_its_members_over_seeds(name, tmp_path):
    gains = []
    for seed in range(5):
        shared = task(name, digits(), 64, 10, epochs=8, batch_size=16)
        plan = strategy(name, shared, seed, **LONGER.get(name, {}))
        run = polyfuse.train(plan, shared, tmp_path / str(seed))
        together, apart = losses(run.stack("test"), run.labels("test"))
        gains.append(apart - together)
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    assert np.mean(gains) > 2.78 * error  # 95 % of Student's t with four degrees of freedom

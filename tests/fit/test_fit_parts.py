"""Losses, samplers, adversaries and class weights as a recipe names them, and in training."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tiny_run
from polyfuse import Arrays, FitOptions, fit_member, run
from polyfuse.errors import RecipeError, TrainingError
from polyfuse.losses import gaussian_nll
from polyfuse.optimizers import adamw

LEARN, STOP = np.arange(160), np.arange(160, 200)
OWN = """\
import numpy as np
from torch.nn import functional

def loss(outputs, labels, *, weights=None, power=1.0):
    each = functional.cross_entropy(outputs, labels, reduction="none") ** power
    return each.mean() if weights is None else (each * weights).mean()

def two_thirds(rows, labels, generator, *, least=1):
    return generator.permutation(len(rows))[: max(least, 2 * len(rows) // 3)]

def brighter(inputs, gradient, *, by=0.1):
    return inputs + by
"""
KNOWN = [
    "fit.loss={name: focal, gamma: 1.5}",
    "fit.class_weights=balanced",
    "fit.sampler=balanced",
    "fit.adversary={name: fgsm, eps: 0.02, high: 1}",
    "fit.optimizer={name: rmsprop, lr: 1e-3}",
    "fit.on_nan=keep",
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "parts_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return [
        "fit.loss={name: 'parts_of_mine:loss', power: 1.5}",
        "fit.class_weights=[1, 2, 0.5]",
        "fit.sampler={name: 'parts_of_mine:two_thirds', least: 3}",
        "fit.adversary={name: 'parts_of_mine:brighter', by: 0.05}",
    ]


def test_a_recipe_names_the_parts_that_are_known(tmp_path):
    found = run(tiny_run.make_recipe(tmp_path), out=tmp_path / "RUN", workers=1, settings=KNOWN)
    record = json.loads((tmp_path / "RUN/members/000/member.json").read_text())
    for part in ("focal", "class_weights='balanced'", "sampling.balanced", "fgsm", "rmsprop"):
        assert part in record["options"]
    assert "on_nan" not in record["options"]
    assert len(found.population.members) == 2


def test_a_recipe_names_parts_of_ones_own(own, tmp_path):
    run(tiny_run.make_recipe(tmp_path), out=tmp_path / "RUN", workers=1, settings=own)
    record = json.loads((tmp_path / "RUN/members/000/member.json").read_text())
    for part in ("parts_of_mine.loss", "(1.0, 2.0, 0.5)", "parts_of_mine.two_thirds", "brighter"):
        assert part in record["options"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fit.class_weights=balance", "class_weights.*balanced.*got 'balance'"),
        ("fit.class_weights=[1, -2]", "a number of 0 and more for each class"),
        ("fit.sampler=balance", "unknown 'balance'; did you mean 'balanced'"),
        ("fit.adversary=fgsm", "fit.adversary.eps: is required by fgsm"),
        ("fit.adversary={name: fgsm, eps: 0.1, hihg: 1}", "unknown 'hihg'; did you mean 'high'"),
        ("fit.loss=huge", "unknown 'huge'; did you mean 'huber'"),
        ("fit.on_nan=skip", "'stop' or 'keep'; got 'skip'"),
        ("fit.devices=0", "devices=0; it must be 1 or more"),
    ],
)
def test_what_a_recipe_gets_wrong_is_named(setting, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        run(tiny_run.make_recipe(tmp_path), out=tmp_path / "RUN", settings=[setting])


def test_a_loss_a_row_is_refused():
    data = Arrays(torch.zeros(24, 4), np.zeros(24, int))
    options = FitOptions(accelerator="cpu", loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(TrainingError, match=r"the loss has shape \(24,\); return one number"):
        fit_member(nn.Linear(4, 2), data, np.arange(24), np.arange(0), options, seed=0)


def test_gaussian_nll_learns_where_the_noise_is():
    draw = np.random.default_rng(0)
    x = draw.uniform(-1, 1, (200, 1)).astype("f4")
    deviation = np.where(x[:, 0] > 0, 1.0, 0.1)
    data = Arrays(x, 2 * x[:, 0] + deviation * draw.standard_normal(200), task="regression")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))
    options = FitOptions(
        accelerator="cpu", epochs=40, loss=gaussian_nll, optimizer=partial(adamw, lr=0.03)
    )
    fitted = fit_member(model, data, LEARN, STOP, options, seed=0, checked=True)
    model.load_state_dict(fitted.state)
    mean, log_variance = model(torch.tensor([[-0.5], [0.5]])).detach().unbind(-1)
    assert mean.tolist() == pytest.approx([-1, 1], abs=0.4)
    told = torch.exp(log_variance / 2)
    assert told[0] < 0.25
    assert 0.6 < told[1] < 1.6

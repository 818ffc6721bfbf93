"""Readers in recipes: backbones by name of code, only where trusted; lengths as labels; a run."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

from polyfuse.data import street_digits
from polyfuse.errors import DataError, RecipeError
from polyfuse.models import Reader
from polyfuse.recipes import run as module
from polyfuse.recipes.schema import check
from polyfuse.recipes.source import parse

run = partial(module.run, workers=1)
RECIPE = """\
name: mine
data: {name: street_digits, train: 96, val: 24, test: 16DATA}
model: MODEL
training: {name: independent, members: 2}
fit: {epochs: 1, batch_size: 32, accelerator: cpu, FIT}
scoreboard: {replicates: 20}
"""
OWN = """\
import torch
from polyfuse.data import street_digits
def maps(*, width=4):
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, stride=4), torch.nn.ReLU())
def aimed(*, target: str):
    assert target == "length"
    return street_digits(train=2, val=1, test=1)
"""


def recipe(model, data="", fit="loss: cross_entropy"):
    return RECIPE.replace("MODEL", model).replace("DATA", data).replace("FIT", fit)


def plan(text, **options):
    return check(parse(text, "mine.yaml"), **options)


def faults(text, **options):
    with pytest.raises(RecipeError) as caught:
        plan(text, **options)
    return str(caught.value).splitlines()[1:]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return the name of a module of the user's own that lies in the working folder."""
    name = f"own_reader_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


# Backbones --------------------------------------------------------------------------------------


def test_a_recipe_names_the_factory_of_a_backbone_and_its_options(own):
    text = f"{{name: reader, backbone: '{own}:maps', options: {{width: 6}}, length_head: true}}"
    made = plan(recipe(text)).factory()
    assert isinstance(made, Reader)
    assert made.heads.attention.norm.num_features == 6
    assert made(torch.zeros(2, 3, 24, 64)).shape == (2, 7, 11)


@pytest.mark.parametrize("trusted", [False, set(), {"reader", "other:maps"}])
def test_a_backbone_is_code_and_not_imported_where_not_trusted(own, trusted):
    text = recipe(f"{{name: reader, backbone: '{own}:maps'}}")
    (line,) = faults(text, trusted=trusted)
    assert f"line 3: model.backbone: '{own}:maps' names code, which runs only from" in line
    assert own not in sys.modules
    assert isinstance(plan(text, trusted={f"{own}:maps"}).factory(), Reader)


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ("reader", "model.backbone: is required by reader"),
        ("{name: reader, backbone: resnet18}", "model.backbone: is a function of your own, "),
        ("{name: reader, backbone: 3}", "package.module:function; got 3"),
        ("{name: reader, backbone: null}", "package.module:function; got None"),
        ("{name: reader, backbone: 'OWN:nothing'}", "has no attribute 'nothing'"),
        ("{name: reader, backbone: 'OWN:maps', option: {}}", "did you mean 'options'?"),
        ("{name: reader, backbone: 'OWN:maps', options: {widht: 3}}", "cannot be built: TypeError"),
        ("{name: reader, backbone: 'OWN:maps', options: 3}", "model.options: "),
        ("{name: reader, backbone: 'OWN:maps', shape: [3, 24]}", "give channels, height and width"),
        ("{name: reader, backbone: 'OWN:maps', normalise: batch}", "model.normalise: "),
        ("{name: character_cnn, backbone: 'OWN:maps'}", "unknown 'backbone'"),
    ],
)
def test_a_backbone_that_does_not_fit_is_a_fault_with_its_line(own, model, fault):
    (line,) = faults(recipe(model.replace("OWN", own)))
    assert line.startswith("line 3: model")
    assert fault in line


# Lengths as labels ------------------------------------------------------------------------------


def test_lengths_are_the_labels_where_they_are_the_target():
    text = recipe("{name: length_cnn, width: 2}", ", target: length")
    aimed, plain = (module.data_of(plan(each)) for each in (text, recipe("length_cnn")))
    for split, strings in zip(aimed, plain, strict=True):
        assert split.labels.tolist() == [sum(c != 10 for c in row) for row in strings.labels]
        assert split.names == strings.names
    same = module.data_of(plan(recipe("length_cnn", ", target: characters")))
    assert same.train.fingerprint() == plain.train.fingerprint() != aimed.train.fingerprint()


def test_progress_and_seed_reach_data_whose_target_is_the_length():
    text = "seed: 5\n" + recipe("length_cnn", ", target: length")
    seen = []
    splits = module.data_of(plan(text), lambda *told: seen.append(told))
    assert len(seen) > 1
    wanted = street_digits(train=96, val=24, test=16, seed=5)
    assert np.array_equal(splits.val.labels, (wanted.val.labels != 10).sum(1))


def test_an_unknown_target_is_a_fault_and_a_data_sets_own_target_is_its_own(own):
    (line,) = faults(recipe("length_cnn", ", target: lenght"))
    assert line.startswith("line 2: data.target: should be 'characters' or 'length'")
    text = recipe("length_cnn").replace(
        "{name: street_digits, train: 96, val: 24, test: 16}",
        f"{{name: '{own}:aimed', target: length}}",
    )
    assert module.data_of(plan(text)).train.labels.shape == (2, 6)


def test_only_strings_have_lengths():
    text = recipe("length_cnn").replace(
        "{name: street_digits, train: 96, val: 24, test: 16}", "{name: digits, target: length}"
    )
    with pytest.raises(DataError, match="target: length is for strings of characters"):
        module.data_of(plan(text))


# Runs -------------------------------------------------------------------------------------------


def test_a_run_of_a_length_model_goes_to_its_end(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(recipe("{name: length_cnn, width: 2, hidden: 8}", ", target: length"))
    run(file, out=tmp_path / "run")
    assert np.load(tmp_path / "run/members/000/predictions/test.npy").shape == (16, 7)
    lines = (tmp_path / "run/submission.csv").read_text().splitlines()
    assert len(lines) == 17
    assert all(0 <= int(line.split(",")[1]) <= 6 for line in lines[1:])


@pytest.mark.parametrize("together", ["never", "always"])
def test_a_run_of_a_net_with_a_length_head_goes_to_its_end(tmp_path, together):
    net = "{name: attention_resnet, width: 2, hidden: 4, length_head: true}"
    fit = (
        "loss: {name: character_cross_entropy, blank_weight: 0.5}, "
        f"augmentation: {{name: reading, holes: 1}}, together: {together}"
    )
    averages = "averaging: {ema: {decay: 0.9}}\n" if together == "never" else ""
    file = tmp_path / "mine.yaml"
    file.write_text(recipe(net, fit=fit) + averages)
    run(file, out=tmp_path / "run")
    assert np.load(tmp_path / "run/members/000/predictions/test.npy").shape == (16, 6, 11)
    board = json.loads((tmp_path / "run/leaderboard.json").read_text())
    assert {"mean_probability"} < {row["name"] for row in board["rows"]}


def test_a_length_head_with_a_loss_that_knows_none_is_told_its_loss(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(recipe("{name: attention_resnet, width: 2, hidden: 4, length_head: true}"))
    with pytest.raises(DataError, match=r"name fit: \{loss: character_cross_entropy\}"):
        run(file, out=tmp_path / "run")

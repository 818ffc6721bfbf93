"""`polyfuse average --rule`: averages that were not kept while training, from its checkpoints."""

import json
from pathlib import Path

import pytest
import torch

from polyfuse.averaging import RULES, ema, half_life, lawa, power_ema, swa, tanh_ema
from polyfuse.checkpoints import load_checkpoint
from polyfuse.cli import synthesis
from polyfuse.synthesis import synthesise
from tiny_run import polyfuse, refused


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with checkpoints of steps 800 to 1200: a name order that is none in time."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for step in range(800, 1201, 100):
        torch.save({"w": torch.tensor([step / 100])}, f"run/step{step}.pt")


def paths():
    return sorted(Path("run").iterdir())


def averaged(*words):
    result = polyfuse("average", *paths(), "-o", "a.safetensors", *words)
    assert result.exit_code == 0, result.output
    return result, float(load_checkpoint("a.safetensors")["w"])


def test_names_are_those_of_the_source():
    assert tuple(RULES) == synthesis.RULES


@pytest.mark.parametrize(
    ("words", "rule", "wishes"),
    [
        (["ema", "--decay", "0.5"], ema(0.5), {}),
        (["ema", "--set", "decay=0.5", "--every", "2"], ema(0.5), {"every": 2}),
        (["ema", "--decay", "0.999", "--every", "numbers"], ema(0.999), {"every": "numbers"}),
        (["ema", "--decay=0.9", "--set", "warmup=tf"], ema(0.9, warmup="tf"), {}),
        (["swa"], swa(), {}),
        (["t_adema", "--set", "alpha=0.5", "--set", "scale=2"], tanh_ema(0.5, scale=2), {}),
        (["half_life", "--set", "steps=300"], half_life(steps=300), {}),
        (["power_ema", "--set", "sigma_rel=0.2", "--at", "1150"], power_ema(0.2), {"at": 1150}),
        (["power_ema", "--stored", "0.05"], power_ema(0.1), {"stored": 0.05}),
        (["power_ema", "--stored", ",".join(["0.05"] * 5)], power_ema(0.1), {"stored": 0.05}),
        (["lawa", "--set", "k=2"], lawa(2), {}),
    ],
)
def test_every_wish_reaches_the_synthesis(words, rule, wishes):
    _, made = averaged("--rule", *words)
    found = synthesise(paths(), rule, **wishes)
    expected = sum(
        share * int(path.stem[4:]) / 100 for path, share in zip(*found[0:3:2], strict=True)
    )
    assert made == pytest.approx(expected, rel=1e-6)


def test_the_plan_shows_shares_in_the_order_of_time_and_what_is_left_out():
    result, made = averaged("--rule", "lawa", "--set", "k=2", "--quiet")
    assert made == 11.5
    lines = result.stdout.splitlines()
    assert lines[0] == "Rule: lawa over 2 checkpoints, first to last"
    assert (
        "3 checkpoints have no share and are not read: run/step800.pt, run/step900.pt" in lines[1]
    )
    shown = result.stdout
    assert shown.index("step1100.pt") < shown.index("step1200.pt")
    assert polyfuse("verify", "a.safetensors").exit_code == 0


def test_the_json_says_the_shares_and_the_residual():
    result, _ = averaged("--rule", "power_ema", "--set", "sigma_rel=0.2", "--json")
    document = json.loads(result.stdout)
    found = synthesise(paths(), power_ema(0.2))
    assert [entry["weight"] for entry in document["inputs"]] == pytest.approx(list(found.shares))
    assert [entry["number"] for entry in document["inputs"]] == [800, 900, 1000, 1100, 1200]
    assert document["rule"] == {
        "name": "power_ema",
        "residual": pytest.approx(found.residual),
        "left_out": [],
    }
    assert (
        "is 0.26 off (residual)"
        in averaged("--rule", "power_ema", "--set", "sigma_rel=0.2")[0].stdout
    )


def test_rules_go_with_choosing():
    assert averaged("--rule", "swa", "--last", "2")[1] == 11.5
    assert averaged("--rule", "swa", "--range", "900:1000")[1] == 9.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rule", "emma"], "'emma' is none of ema, swa, tanh_ema, t_adema, power_ema, half_life"),
        (["--decay", "0.9"], "it goes with --rule: one of ema, swa"),
        (["--rule", "swa", "--weights", "1,1,1,1,1"], "a rule is what gives the weights"),
        (["--rule", "ema", "--every", "0"], "'0' is neither a number of steps nor 'numbers'"),
        (["--rule", "power_ema", "--stored", "x"], "'x' is not like 0.05, or 0.05,0.10"),
        (["--rule", "ema", "--set", "decay"], "'decay' is not of the form NAME=VALUE"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_read(words, message):
    result = polyfuse("average", "run", "-o", "a.pt", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--rule", "swa", "--decay", "0.9"],
            "the rule swa has no option 'decay'; it takes no opt",
        ),
        (["--rule", "ema", "--set", "warmpu=tf"], "no option 'warmpu'; did you mean 'warmup'?"),
        (["--rule", "ema", "--decay", "1.5"], "decay=1.5; type 0 <= decay < 1"),
        (["--rule", "ema", "--at", "5"], "at=5 is before the first checkpoint, of time 800"),
        (["--rule", "ema", "--stored", "0.1"], "stored power-EMAs make another power-EMA"),
    ],
)
def test_options_that_do_not_fit_are_told(words, message):
    assert message in refused("average", "run", "-o", "a.pt", *words)
    assert not Path("a.pt").exists()

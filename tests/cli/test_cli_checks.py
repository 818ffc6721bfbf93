"""`polyfuse inspect` and `verify`: what they say, and how they fail."""

import json
from pathlib import Path

import pytest
import torch

from polyfuse.cli import checks
from tiny_run import polyfuse, refused


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with two checkpoints of one run and one of another."""
    monkeypatch.chdir(tmp_path)
    start, other = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0))
    for name, weight in (("a1", start), ("a2", start + 0.01), ("b", other)):
        torch.save({"epoch": 3, "model": {"w": weight, "b": torch.zeros(4)}}, f"{name}.pt")


def test_one_checkpoint_is_described():
    text = polyfuse("inspect", "a1.pt").stdout
    assert text.startswith("a1.pt: torch, 1 file, 6.42 kB of tensors\n")
    for line in ("tensors     float32 2", "parameters  1,604", "state dict  'model'", "epoch"):
        assert f"  {line}" in text


def test_checkpoints_of_one_run_can_be_averaged_and_what_it_costs():
    text = polyfuse("inspect", "a?.pt", "--quiet").stdout
    assert "Can they be averaged: yes\n" in text
    assert "Averaging them reads 12.8 kB, writes 6.42 kB, needs " in text
    assert "Warning" not in text


def test_independent_runs_are_warned_of():
    result = polyfuse("inspect", ".")
    assert "Can they be averaged: yes; but mind the warning" in result.stdout
    assert "these look like independent runs: a1.pt, a2.pt; b.pt." in result.stdout
    assert "Against their mean" in result.stdout


def test_json_is_the_same_in_numbers():
    document = json.loads(polyfuse("inspect", "a1.pt", "a2.pt", "b.pt", "--json").stdout)
    found = document["comparison"]
    assert (found["averageable"], len(found["warnings"])) == ("yes", 1)
    assert found["cosine"][0][1] > 0.99 > 0.1 > abs(found["cosine"][0][2])
    assert document["cost"]["bytes_written"] == 1604 * 4
    assert document["checkpoints"][0]["facts"]["epoch"] == 3


def test_what_cannot_be_averaged_costs_nothing():
    torch.save({"w": torch.ones(2, 2)}, "c.pt")
    document = json.loads(polyfuse("inspect", "a1.pt", "c.pt", "--json").stdout)
    assert document["comparison"]["averageable"] != "yes"
    assert document["cost"] is None


def test_values_are_counted_when_asked():
    torch.save({"w": torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])}, "n.pt")
    assert "NaN" not in polyfuse("inspect", "n.pt").stdout
    assert "NaN or Inf in 'w' 2" in polyfuse("inspect", "n.pt", "--check-values").stdout
    assert json.loads(polyfuse("inspect", "n.pt", "a1.pt", "--json").stdout)["comparison"]


def test_all_missing_ones_are_named():
    message = refused("inspect", "no1.pt", "no2.pt")
    assert "no1.pt" in message
    assert "no2.pt" in message


def test_verify_recomputes():
    polyfuse("average", "a1.pt", "a2.pt", "-o", "out.safetensors")
    text = polyfuse("verify", "out.safetensors", "--sample", 1).stdout
    assert text == (
        "out.safetensors: 1 of 2 tensors recomputed from 2 inputs, all equal bit for bit\n"
    )
    Path("moved").mkdir()
    for name in ("a1.pt", "a2.pt"):
        Path(name).rename(f"moved/{name}")
    assert "a1.pt" in refused("verify", "out.safetensors", "--quiet")
    words = ["--input", "moved/a1.pt", "--input", "moved/a2.pt", "--everything", "--json"]
    document = json.loads(polyfuse("verify", "out.safetensors", *words).stdout)
    assert sorted(document["recomputed"]) == ["b", "w"]
    assert document["provenance"]["method"] == "mean"


def test_verify_finds_a_changed_output():
    polyfuse("average", "a1.pt", "a2.pt", "-o", "out.safetensors")
    data = bytearray(Path("out.safetensors").read_bytes())
    data[-4] ^= 0x40
    Path("out.safetensors").write_bytes(data)
    assert "out.safetensors" in refused("verify", "out.safetensors", "--everything", "--quiet")


def test_an_interrupt_ends_it(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "_cost", interrupted)
    assert polyfuse("inspect", "a1.pt", "a2.pt").exit_code == 130

"""Parity with peers, in environments of their own that `make peers` makes; else skipped."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from polyfuse.checkpoints import load_checkpoint
from polyfuse.weights import average_state_dicts, save_checkpoint

ROOT = Path(__file__).parents[1]
CASES = {
    "mean": ("linear", {"weight": 1.0}, {}),
    "weighted": ("linear", {"weight": [1.0, 3.0]}, {"weights": [1.0, 3.0]}),
    "slerp": ("slerp", {"t": 0.3}, {"method": "slerp", "options": {"t": 0.3}}),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory):
    """Return the inputs, and what mergekit made of them, by case and dtype."""
    python = Path(os.environ.get("POLYFUSE_MERGEKIT", ROOT / ".venv-mergekit")) / "bin" / "python"
    if not python.exists():
        pytest.skip("mergekit is not installed beside this; `make peers` does that")
    folder = tmp_path_factory.mktemp("mergekit")
    draw = torch.Generator().manual_seed(0)
    inputs, requests = {}, []
    for dtype in DTYPES:
        states = [{"w": torch.randn(200, 300, generator=draw).to(dtype)} for _ in "ab"]
        inputs[dtype] = states
        paths = [
            str(save_checkpoint(state, folder / f"{i}-{dtype}.safetensors"))
            for i, state in enumerate(states)
        ]
        for name, (method, parameters, _) in CASES.items():
            out = str(folder / f"{name}-{dtype}.out.safetensors")
            facts = {"inputs": paths, "method": method, "parameters": parameters, "out": out}
            requests.append({**facts, "base": 0 if method == "slerp" else None})
    (folder / "requests.json").write_text(json.dumps(requests))
    command = [python, ROOT / "tests" / "peer_mergekit.py", folder / "requests.json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    return inputs, lambda name, dtype: load_checkpoint(folder / f"{name}-{dtype}.out.safetensors")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_mergekit_agrees(mergekit, name, dtype):
    inputs, merged = mergekit
    ours = average_state_dicts(inputs[dtype], **CASES[name][2])["w"]
    theirs = merged(name, dtype)["w"]
    torch.testing.assert_close(ours, theirs)
    if name == "mean":  # a power of two: both are the exact mean, rounded once
        exact = (inputs[dtype][0]["w"].double() + inputs[dtype][1]["w"].double()) / 2
        assert torch.equal(ours, exact.to(dtype))

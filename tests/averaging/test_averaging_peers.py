"""Parity with timm and ema-pytorch, in an environment that `make peers` makes; else skipped."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from odd import generator, move, tensors

from peer_averaging import net, ramp
from polyfuse.averaging import Averages, ema, power_ema

ROOT = Path(__file__).parents[2]
CASES = {
    "timm": ema(0.9),
    "timm power": ema(0.9, warmup="power"),
    "timm power, others": ema(0.9, warmup="power", gamma=2.0, power=0.5, min_decay=0.3),
    "ema-pytorch": ema(0.9),
    "ema-pytorch power": ema(0.9, warmup="power"),
}


def states():
    torch.manual_seed(0)
    model, draw, seen = net(), generator(), []
    for _ in range(8):
        move(model, draw)
        seen.append(tensors(model))
    return seen


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    python = Path(os.environ.get("POLYFUSE_PEERS", ROOT / ".venv-peers")) / "bin" / "python"
    if not python.exists():
        pytest.skip("the peers are not installed beside this; `make peers` does that")
    folder = tmp_path_factory.mktemp("peers")
    torch.save(states(), folder / "in.pt")
    command = [python, ROOT / "tests" / "peer_averaging.py", folder / "in.pt", folder / "out.pt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt")


@pytest.mark.parametrize("case", CASES)
def test_peers_agree_where_they_are_right(theirs, case):
    model, seen = net(), states()
    averages = Averages(model, {"a": CASES[case]}, use_buffers=case.startswith("ema"))
    for state in seen:
        model.load_state_dict(state)
        averages.update()
    found = averages.average("a")
    for name, value in theirs[case].items():
        if "num_batches" not in name and not (case.startswith("timm") and "running" in name):
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


class Ours:
    """An average with the interface that `ramp` wants."""

    def __init__(self, model, every):
        self.averages = Averages(model, {"a": power_ema(0.1)}, update_every=every)

    def update(self):
        self.averages.update()

    @property
    def ema_model(self):
        return self.averages.model("a")


@pytest.mark.parametrize("every", [1, 10, 100])
def test_ema_pytorch_karras_ignored_update_every(every):
    """Its mean time is .888 of the run with update_every 1, .442 with 10 and .073 with 100."""
    assert ramp(lambda model: Ours(model, every)) == pytest.approx(0.8881, abs=0.003)


def test_karras_of_the_peer(theirs):
    assert theirs["karras"][1] == pytest.approx(0.8881, abs=0.001)
    assert theirs["karras"][10] < 0.5  # the fault that ours does not have

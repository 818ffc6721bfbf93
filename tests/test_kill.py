"""`kill -9` in the middle of member 3, then the same command: the numbers of an undisturbed run.

The model lies in a module beside the recipe. Where there is a FIFO `reached`, it writes to it at
a chosen step of member 3 and then waits for ever, so that the kill needs no clock.
"""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polyfuse.recipes import source
from tiny_run import digests, make_recipe, polyfuse

MODULE = """\
import os

import numpy as np
import torch
from torch import nn

SEEDS = np.random.SeedSequence([0, 3]).generate_state(3).tolist()  # of the three folds
FIRST_WORDS = [int(np.random.SeedSequence((seed,)).generate_state(1)[0]) for seed in SEEDS]


class Net(nn.Sequential):
    '''Stops for ever at the step of member 3 that the file `at` names.'''

    def __init__(self):
        self.third = torch.initial_seed() == FIRST_WORDS[2]
        self.step = 0
        drop = nn.Dropout(0.2), nn.Linear(8, 3)
        super().__init__(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), *drop)

    def forward(self, inputs):
        if self.training and self.third:
            self.step += 1
            if os.path.exists("reached") and self.step == int(open("at").read()):
                with open("reached", "w") as fifo:
                    fifo.write("x")
                os.open("never", os.O_RDONLY)  # a FIFO that nobody writes to
        return super().forward(inputs)
"""
COMMAND = [str(Path(sys.executable).with_name("polyfuse"))]
COMMAND += ["run", "tiny.yaml", "--out", "RUN", "--quiet", "--workers"]
# Three folds learn from 23 or 24 rows each: three batches of eight an epoch, four epochs.
STEPS = {"its second epoch": 5, "its last step": 12}
PATIENCE = 600  # seconds until a command that hangs is given up; never reached


def prepare(folder):
    """Put data, module and recipe into a folder."""
    recipe = make_recipe(folder)
    tree = source.read(recipe).tree
    tree["data"]["path"] = "data.npz"
    tree["model"] = "barrier_net:Net"
    tree["training"]["folds"] = 3
    tree["fit"]["epochs"] = 4
    tree["scoreboard"]["replicates"] = 50
    recipe.write_text(source.write(tree))
    (folder / "barrier_net.py").write_text(MODULE)
    return folder


def run_here(folder, workers):
    """Run the command in this process, which has imported what it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        result = polyfuse(*COMMAND[1:], workers)
    sys.modules.pop("barrier_net", None)
    assert result.exit_code == 0, result.stderr
    return digests(folder / "RUN")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the digests of a run that nobody disturbed."""
    return run_here(prepare(tmp_path_factory.mktemp("undisturbed")), 1)


def kill_at(folder, step, workers):
    """Run the command until member 3 is at a step, and kill all its processes there."""
    (folder / "at").write_text(str(step))
    for name in ("reached", "never"):
        os.mkfifo(folder / name)
    # For reading and writing, so that opening does not wait for the other end.
    reached = os.open(folder / "reached", os.O_RDWR)
    process = subprocess.Popen(
        [*COMMAND, str(workers)], cwd=folder, start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        ready, _, _ = select.select([reached, process.stdout], [], [], PATIENCE)
        assert ready == [reached], "the command ended before member 3 was at the step"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        os.close(reached)
    (folder / "reached").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "step"),
    [(1, "its second epoch"), (2, "its last step")],
)
def test_killed_in_member_3_and_run_again_gives_the_same_numbers(
    tmp_path, undisturbed, workers, step
):
    folder = prepare(tmp_path)
    kill_at(folder, STEPS[step], workers)
    left = digests(folder / "RUN")
    assert not [name for name in left if name.startswith(("members/002/", "leaderboard"))]
    kept = {name: digest for name, digest in left.items() if name.startswith("members/0")}
    if workers == 1:  # one after the other: the first two were done
        assert {name.split("/")[1] for name in kept} == {"000", "001"}
    assert "resume/002.safetensors" in left
    after = run_here(folder, workers)
    assert after == undisturbed
    assert kept.items() <= after.items()

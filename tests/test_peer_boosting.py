"""torchensemble has the faults that `training/test_gradient_boosting.py` tests us for."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_peer_has_the_faults_that_we_are_tested_for():
    home = Path(os.environ.get("POLYFUSE_PEERS", ROOT / ".venv-peers"))
    python = home / "bin" / "python"
    if not python.exists():
        pytest.skip("torchensemble is not installed beside this; `make peers` does that")
    command = [python, ROOT / "tests" / "peer_boosting_faults.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    own, rounds = said["own"], said["rounds"]
    assert said["gradients"] > 0  # a: of the first member, after later ones were trained
    assert said["seen"] == rounds * own  # b: batches that its batch-norm has moved with
    assert said["passes"] == [own * (rounds - i) for i in range(rounds)]  # c: quadratic
    assert said["gaps"] == "RuntimeError"  # d: labels 0, 2 and 5 of six classes

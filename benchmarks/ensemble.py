"""What does `Ensemble` cost over a module that loops by hand, and when is it vmapped?

MLPs of three layers, 128 or 16 wide, and small CNNs, on one thread, without gradients. Floor: the
members alone, nothing combined. The goal is 1.05 times the loop at most. The peer needs `make
peers`; it is measured in its own process, beside the same loop there; POLYFUSE_PEERS names another
environment.
"""

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import HERE, in_turn, report
from plain import FORWARD, ByHand, to_forward
from torch import Tensor, nn

from polyfuse import Ensemble

REPEATS = 300
HAND, OURS = "a loop by hand", "Ensemble"


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    peer = Path(os.environ.get("POLYFUSE_PEERS", HERE.parent / ".venv-peers")) / "bin" / "python"
    theirs: dict[str, Any] = measured_by(peer) if peer.exists() else {}
    if not theirs:
        print("torchensemble is left out; `make peers` makes its environment")
    seconds: dict[str, float] = {}
    facts: dict[str, Any] = {}
    with torch.no_grad():
        for case in FORWARD:
            name, members, inputs = to_forward(*case)
            ours = Ensemble(members)
            subjects = subjects_of(members, ours, inputs)
            found = in_turn(subjects, repeats(inputs))
            seconds |= {f"{name}: {subject}": value for subject, value in found.items()}
            chosen = ours.chosen(inputs)
            facts[f"{name}: Ensemble ({chosen}), to the loop"] = ratio(found, OURS)
            facts[f"{name}: Ensemble, loop, to the loop"] = ratio(found, f"{OURS}, loop")
            facts[f"{name}: Ensemble, vmap, to the loop"] = ratio(found, f"{OURS}, vmap")
            if theirs:
                facts[f"{name}: torchensemble, to the loop"] = theirs[name]
    report("ensemble", seconds, floor=next(iter(seconds)), repeats=REPEATS, facts=facts)


def repeats(inputs: Tensor) -> int:
    """Return how often to measure: images take longer."""
    return REPEATS if inputs.ndim == 2 else REPEATS // 10


def subjects_of(
    members: list[nn.Module], ours: Ensemble, inputs: Tensor
) -> dict[str, Callable[[], object]]:
    """Return what is measured, each on the same members and inputs."""
    made = {
        HAND: ByHand(members),
        OURS: ours,
        f"{OURS}, loop": Ensemble(members, executor="loop"),
        f"{OURS}, vmap": Ensemble(members, executor="vmap"),
    }
    return {
        "members alone": lambda: [member(inputs) for member in members],
        **{name: partial(ensemble, inputs) for name, ensemble in made.items()},
    }


def ratio(seconds: dict[str, float], subject: str) -> float:
    """Return a subject's time over that of the loop by hand."""
    return round(seconds[subject] / seconds[HAND], 3)


def measured_by(python: Path) -> dict[str, Any]:
    """Return torchensemble's ratios to the loop, in its own environment."""
    command = [python, HERE / "peer_forward.py", str(REPEATS)]
    done = subprocess.run(command, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()

"""What does greedy selection cost, beside AutoGluon's EnsembleSelection on the same predictions?

40 members x 20,000 rows x 10 classes, 25 rounds, by NLL and by accuracy. Floor: the sums alone that
NLL needs, one addition of each member's probability of the true class a round. The peer needs
`make peers`; POLYFUSE_PEERS names another environment. Both must choose the same members.
"""

import json
import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import HERE, in_turn, report
from numpy.typing import NDArray

from polyfuse.greedy_selection import GreedySelection
from polyfuse.simplex import SimplexWeights

MEMBERS, ROWS, CLASSES, ROUNDS, REPEATS, PEER_REPEATS = 40, 20_000, 10, 25, 5, 3
METRICS = ("nll", "accuracy")


def main() -> None:
    """Measure and report."""
    p, labels = drawn()
    own = np.ascontiguousarray(p[:, np.arange(ROWS), labels])
    greedy = {f"greedy, {metric}": partial(ours, p, labels, metric) for metric in METRICS}
    seconds = in_turn(
        {
            f"{MEMBERS} x {ROUNDS} sums of {ROWS} numbers": partial(sums, own),
            **greedy,
            "greedy, brier": partial(ours, p, labels, "brier"),
            "weights on the simplex, nll": lambda: SimplexWeights().fit(p, labels),
        },
        REPEATS,
    )
    facts: dict[str, Any] = {}
    peer = Path(os.environ.get("POLYFUSE_PEERS", HERE.parent / ".venv-peers")) / "bin" / "python"
    if peer.exists():
        for metric, name in zip(METRICS, greedy, strict=True):
            said = theirs(peer, p, labels, metric)
            seconds[f"AutoGluon EnsembleSelection, {metric}"] = said["seconds"]
            ratio = said["seconds"] / seconds[name]
            facts[f"AutoGluon, to ours, {metric}"] = round(ratio, 1)
            same = list(ours(p, labels, metric).order_) == said["order"]
            facts[f"same members in the same order, {metric}"] = same
    else:
        print("AutoGluon is left out; `make peers` makes its environment")
    report("selection", seconds, floor=next(iter(seconds)), repeats=REPEATS, facts=facts)


def drawn() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return predictions of members of mixed quality that share mistakes, and labels."""
    draw = np.random.default_rng(0)
    quality = draw.uniform(0.5, 1.5, MEMBERS)
    labels = draw.integers(0, CLASSES, ROWS)
    shared = draw.normal(size=(ROWS, CLASSES))
    logits = draw.normal(size=(MEMBERS, ROWS, CLASSES)) * 0.5 + shared
    logits[:, np.arange(ROWS), labels] += quality[:, None]
    raised = np.exp(logits)
    return raised / raised.sum(-1, keepdims=True), labels


def sums(own: NDArray[np.float64]) -> None:
    """Add each member to a running sum, once a round."""
    total, trial = np.zeros(ROWS), np.empty(ROWS)
    for _ in range(ROUNDS):
        for member in own:
            np.add(total, member, out=trial)


def ours(p: NDArray[np.float64], labels: NDArray[np.int64], metric: str) -> GreedySelection:
    """Select; ties are drawn as the peer draws them."""
    return GreedySelection(metric=metric, rounds=ROUNDS, ties="random").fit(p, labels)


def theirs(
    python: Path, p: NDArray[np.float64], labels: NDArray[np.int64], metric: str
) -> dict[str, Any]:
    """Select with AutoGluon, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "predictions.npy"), Path(folder, "labels.npy")]
        for file, array in zip(files, (p, labels), strict=True):
            np.save(file, array)
        numbers = map(str, (ROUNDS, PEER_REPEATS))
        command = [python, HERE / "peer_selection.py", *files, metric, *numbers]
        done = subprocess.run(command, capture_output=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


if __name__ == "__main__":
    main()

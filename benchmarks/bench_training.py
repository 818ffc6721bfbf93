"""How long does the training of five members take, beside torchensemble with as many processes?

Same net, rows, epochs, batch size and processes. Floor: one member by hand, times the members,
divided by the processes. The peer needs `make peers`; POLYFUSE_PEERS names another environment.
"""

import json
import os
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import HERE, report
from plain import DECAY, RATE, Net, Part, digits, fit

import polyfuse
from polyfuse import Arrays, FitOptions, LocalRunner, Splits, Task
from polyfuse.data.base import Split
from polyfuse.training.base import Job, Planned

MEMBERS, EPOCHS, BATCH, WORKERS, REPEATS = 5, 8, 64, 2, 3


def seeds(split: Split, *, size: int, learn: int) -> Planned:
    """Plan members that differ by seed alone, as in a voting ensemble."""
    part, stop = np.split(np.arange(len(split)), [learn])
    return Planned(tuple(Job(seed, seed, part, stop, stop) for seed in range(size)))


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    parts = digits()
    subjects = {"one member by hand x 5 / 2": by_hand, "polyfuse.train": ours}
    peer = Path(os.environ.get("POLYFUSE_PEERS", HERE.parent / ".venv-peers")) / "bin" / "python"
    if peer.exists():
        subjects["torchensemble VotingClassifier"] = partial(theirs, peer)
    else:
        print("torchensemble is left out; `make peers` makes its environment")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for _ in range(REPEATS):
        for name, subject in subjects.items():
            seen[name].append(subject(parts))
    medians = {name: median(seconds for seconds, _ in runs) for name, runs in seen.items()}
    facts = {
        f"test accuracy, {name.removesuffix(' x 5 / 2')}": round(median(a for _, a in runs), 4)
        for name, runs in seen.items()
    }
    report("training", medians, floor=next(iter(subjects)), repeats=REPEATS, facts=facts)


def by_hand(parts: dict[str, Part]) -> tuple[float, float]:
    """Train one member; return its share of the floor, and its test accuracy."""
    start = time.perf_counter()
    learn, stop, (inputs, labels) = parts.values()
    model = fit(Net(), learn, stop, epochs=EPOCHS, batch_size=BATCH, seed=0)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        right = model.eval()(inputs).argmax(-1) == labels
    return seconds * MEMBERS / WORKERS, float(right.float().mean())


def ours(parts: dict[str, Part]) -> tuple[float, float]:
    """Train with polyfuse, predictions and commits included; return seconds and accuracy."""
    train = Arrays(*(torch.cat(both) for both in zip(parts["learn"], parts["stop"], strict=True)))
    test = Arrays(*parts["test"])
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY)
    options = FitOptions(epochs=EPOCHS, batch_size=BATCH, optimizer=optimizer, accelerator="cpu")
    task = Task(Net, Splits(train, test, test), options)
    strategy = seeds(train, size=MEMBERS, learn=len(parts["learn"][0]))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        population = polyfuse.train(strategy, task, folder, runner=LocalRunner(workers=WORKERS))
        seconds = time.perf_counter() - start
        read = polyfuse.mean_probability(population.stack("test")).argmax(-1)
    return seconds, float((read == test.labels).mean())


def theirs(python: Path, parts: dict[str, Part]) -> tuple[float, float]:
    """Train with torchensemble, in its own environment; return seconds and accuracy."""
    numbers = map(str, (MEMBERS, EPOCHS, BATCH, WORKERS))
    command = [python, HERE / "peer_voting.py", *numbers]
    done = subprocess.run(command, capture_output=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    return said["seconds"], said["accuracy"]


if __name__ == "__main__":
    main()

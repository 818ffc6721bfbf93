"""What do combiners cost over a store of 10 members x 50,000 samples x 1,000 classes in fp16?

    python benchmarks/combine.py                # needs 1 GB of disk
    python benchmarks/combine.py --folder DIR   # where to put it

Members are memory-mapped files, read some rows at a time by `in_chunks`. The floor is one pass that
adds every number into a float32 accumulator, in chunks of as many rows, with two threads. Trimmed
mean and rank mean are timed over the first tenth of the rows, against the floor over these rows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import in_turn, report
from torch import Tensor

from polyfuse.combine import (
    in_chunks,
    mean_logit,
    mean_probability,
    rank_mean,
    soft_vote,
    trimmed_mean,
)

MEMBERS, SAMPLES, CLASSES, ROWS = 10, 50_000, 1000, 512
WEIGHTS = list(range(1, MEMBERS + 1))
FLOOR, PART = "every number added in float32", "the same, first tenth of the rows"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to put the store")
    parser.add_argument("--memory", choices=JOBS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    if chosen.memory:
        print(peak(partial(JOBS[chosen.memory], opened(chosen.folder))))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        store(Path(name))
        measured(Path(name), chosen.repeats)


def measured(folder: Path, repeats: int) -> None:
    """Time everything in turn."""
    members = opened(folder)
    tenth = [member[: SAMPLES // 10] for member in members]
    subjects: dict[str, Callable[[], object]] = {FLOOR: partial(floor, members)}
    subjects |= {name: partial(job, members) for name, job in JOBS.items()}
    subjects |= {PART: partial(floor, tenth)}
    subjects |= {f"{name}, tenth": partial(job, tenth) for name, job in SLOW.items()}
    seconds = in_turn(subjects, repeats)
    facts: dict[str, Any] = {
        f"{name}, to its floor": round(seconds[f"{name}, tenth"] / seconds[PART], 1)
        for name in SLOW
    }
    for name in JOBS:
        command = [sys.executable, __file__, "--memory", name, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        facts[f"RssAnon above import, {name}, MB"] = float(done.stdout)
    report("combine", seconds, floor=FLOOR, repeats=repeats, facts=facts)


def floor(members: Sequence[Tensor]) -> Tensor:
    """Add every number into an accumulator."""
    total = torch.zeros(ROWS, CLASSES)
    for start in range(0, len(members[0]), ROWS):
        for member in members:
            part = member[start : start + ROWS]
            total[: len(part)].add_(part)
    return total


JOBS: dict[str, Callable[[Sequence[Tensor]], Any]] = {
    "weighted mean of logits, argmax": lambda members: in_chunks(
        soft_vote, members, rows=ROWS, pool="logit", weights=WEIGHTS
    ),
    "mean of probabilities, argmax": lambda members: in_chunks(soft_vote, members, rows=ROWS),
    "mean of logits, as probabilities": lambda members: in_chunks(mean_logit, members, rows=ROWS),
    "mean of probabilities": lambda members: in_chunks(mean_probability, members, rows=ROWS),
}
SLOW: dict[str, Callable[[Sequence[Tensor]], Any]] = {
    "trimmed mean": lambda members: in_chunks(trimmed_mean, members, cut=0.1),
    "rank mean": lambda members: in_chunks(rank_mean, members),
}


def store(folder: Path) -> None:
    """Write members that agree in part."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((SAMPLES // 10, CLASSES), dtype=np.float32)
    for number in range(MEMBERS):
        shape = (SAMPLES, CLASSES)
        array = np.lib.format.open_memmap(folder / f"{number}.npy", "w+", np.float16, shape)
        for start in range(0, SAMPLES, len(shared)):
            own = rng.standard_normal(shared.shape, dtype=np.float32)
            array[start : start + len(shared)] = 2 * (shared + own)


def opened(folder: Path) -> list[Tensor]:
    """Map the files; "c" is never written here, and torch takes it without a copy."""
    paths = [folder / f"{number}.npy" for number in range(MEMBERS)]
    return [torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths]


def peak(job: Callable[[], object]) -> float:
    """Return the most anonymous memory that a job has above what imports take, in MB."""
    before, most, done = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    job()
    done.set()
    watcher.join()
    return round(max(most[0], anonymous()) - before, 1)


def anonymous() -> float:
    """Return this process's anonymous memory in MB."""
    with open(f"/proc/{os.getpid()}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()

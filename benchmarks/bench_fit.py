"""What does `fit_member` cost over a loop by hand? Floor: forward and backward passes alone."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import in_turn, report
from plain import DECAY, RATE, Net, digits, fit
from torch.nn import functional

from polyfuse import Arrays, FitOptions, fit_member

EPOCHS, BATCH, REPEATS = 4, 64, 7


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    parts = digits()
    inputs, labels = parts["learn"]
    data = Arrays(*(torch.cat(both) for both in zip(parts["learn"], parts["stop"], strict=True)))
    learn, stop = np.split(np.arange(len(data)), [len(inputs)])
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY)
    options = FitOptions(epochs=EPOCHS, batch_size=BATCH, optimizer=optimizer, accelerator="cpu")

    def passes() -> None:
        model = Net()
        for _ in range(EPOCHS):
            for part, classes in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
                functional.cross_entropy(model(part), classes).backward()

    def by_hand() -> None:
        fit(Net(), parts["learn"], parts["stop"], epochs=EPOCHS, batch_size=BATCH, seed=0)

    def ours(resume: Path | None = None) -> None:
        fit_member(Net(), data, learn, stop, options, seed=0, resume=resume)

    def ours_resumable() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ours(Path(folder) / "progress.safetensors")

    subjects = {
        "forward and backward alone": passes,
        "loop by hand": by_hand,
        "fit_member": ours,
        "fit_member, with a resume file": ours_resumable,
    }
    seconds = in_turn(subjects, REPEATS)
    facts = {
        f"{name}, to the loop by hand": round(seconds[name] / seconds["loop by hand"], 2)
        for name in list(subjects)[2:]
    }
    floor = "forward and backward alone"
    report("fit", seconds, floor=floor, repeats=REPEATS, facts=facts)


if __name__ == "__main__":
    main()

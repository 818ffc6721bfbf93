"""What is a strategy over rows and models worth? The same nets and digits, over seeds, paired.

For every seed: 300 real digits to train on, 100 to choose on, 800 to test on, drawn anew; five
members (of kfold and refit five folds). Prints the mean member's and the ensemble's NLL and error
on test, and the gain over the mean member with a 95 % interval of Student's t over the seeds.

    python benchmarks/strategies.py 10
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t

import polyfuse
from polyfuse import Arrays, FitOptions, Splits, Task
from polyfuse.classical import bundled_digits
from polyfuse.optimizers import adamw
from polyfuse.training import STRATEGIES

wide = partial(polyfuse.mlp, inputs=64, classes=10, hidden=128)
deep = partial(polyfuse.mlp, inputs=64, classes=10, hidden=48, layers=3)
PLANS: dict[str, tuple[int, Callable[..., object]]] = {
    "independent": (1, STRATEGIES["independent"]),
    "independent, each its own stopping rows": (
        1,
        partial(STRATEGIES["independent"], own_stop=True),
    ),
    "kfold": (1, STRATEGIES["kfold"]),
    "refit (5 folds and 1)": (1, STRATEGIES["refit"]),
    "bagging": (1, partial(STRATEGIES["bagging"], members=5)),
    "bagging, subsample of 0.8": (
        1,
        partial(STRATEGIES["bagging"], members=5, kind="subsample", fraction=0.8),
    ),
    "bagging, half of the features": (1, partial(STRATEGIES["bagging"], members=5, features=0.5)),
    "heterogeneous, 2 models x 5 folds": (
        2,
        partial(STRATEGIES["heterogeneous"], folds=5, factories=2),
    ),
}


def main(seeds: int) -> None:
    """Train, score, print."""
    torch.set_num_threads(1)
    print("| strategy | member NLL | ensemble NLL | gain | member error, % | ensemble error, % |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, (models, make) in PLANS.items():
        scores = np.array([scored(make, models, seed) for seed in range(seeds)])
        one, all_, error, error_all = scores.mean(0)
        gain = scores[:, 0] - scores[:, 1]
        half = t.ppf(0.975, seeds - 1) * gain.std(ddof=1) / np.sqrt(seeds)
        shown = f"{gain.mean():.3f} [{gain.mean() - half:.3f}, {gain.mean() + half:.3f}]"
        errors = f"{100 * error:.2f} | {100 * error_all:.2f}"
        print(f"| {name} | {one:.3f} | {all_:.3f} | {shown} | {errors} |", flush=True)


def scored(make: Callable[..., object], models: int, seed: int) -> tuple[float, ...]:
    """Return the mean member's and the ensemble's NLL and error on test."""
    data = digits(seed)
    options = FitOptions(epochs=12, batch_size=32, optimizer=partial(adamw, lr=4e-3))
    task = Task([wide, deep][:models], data, options)
    run = polyfuse.train(make(data.train, seed=seed), task, tempfile.mkdtemp())  # type: ignore[arg-type]
    labels = run.labels("test")
    logs = torch.log_softmax(torch.from_numpy(run.stack("test")).double(), -1).numpy()
    mean = np.log(np.exp(logs).mean(0))
    each = [(_nll(one, labels), _error(one, labels)) for one in logs]
    (nll, error), rows = np.mean(each, 0), (mean, labels)
    return nll, _nll(*rows), error, _error(*rows)


def digits(seed: int) -> Splits:
    """Draw 300, 100 and 800 of the 1,797 digits."""
    images, labels = bundled_digits()
    values = images.reshape(-1, 64) / np.float32(16)
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = order[:300], order[300:400], order[400:1200]
    return Splits(*(Arrays(values[rows], labels[rows]) for rows in parts))


def _nll(logs: NDArray[np.float64], labels: NDArray[np.int64] | None) -> float:
    assert labels is not None
    return float(-logs[np.arange(len(labels)), labels].mean())


def _error(logs: NDArray[np.float64], labels: NDArray[np.int64] | None) -> float:
    return float((logs.argmax(-1) != labels).mean())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)

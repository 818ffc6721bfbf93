"""Bagging or k-fold: how should ten members divide the rows? Real digits, with and without noise.

python examples/bagging.py [--quick]     prints a table

Ten members of the same net, trained the same way; only the rows differ. Independent members learn
from all rows, those of a k-fold from nine tenths, those of bagging from a bootstrap sample that has
63 % of them. Their mean is scored on test rows with true labels; beside it stands what the training
rows themselves promise: the error of out-of-fold or out-of-bag predictions.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from polyfuse import Arrays, FitOptions, Splits, Task, mlp, train
from polyfuse.classical import bundled_digits
from polyfuse.combine import mean_probability
from polyfuse.optimizers import adamw
from polyfuse.training import STRATEGIES

ALONE, TEN = "one independent member", "10 independent members"
WAYS = {TEN: "independent", "10 folds": "kfold", "10 bags": "bagging"}


class Scale(NamedTuple):
    """How much is computed."""

    seeds: int = 10
    epochs: int = 15
    train: int = 600
    images: int = 1797
    hidden: int = 64
    noise: float = 0.0
    members: int = 10


def digits(scale, seed):
    """Return the splits; a share of the training labels is another class."""
    images, classes = bundled_digits()
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(classes))[: scale.images]
    x, y = images[order].astype("f4") / 16, classes[order]
    wrong = (np.arange(len(y)) < scale.train) & (draw.random(len(y)) < scale.noise)
    noisy = np.where(wrong, (y + draw.integers(1, 10, len(y))) % 10, y)
    learn, test = Arrays(x[: scale.train], noisy[: scale.train]), slice(scale.train, None)
    return Splits(learn, Arrays(x[test], y[test]), Arrays(x[test], y[test]))


def error(probabilities, labels):
    """Return (error in percent, NLL)."""
    right = probabilities[np.arange(len(labels)), labels]
    wrong = 100 * (probabilities.argmax(-1) != labels).mean()
    return wrong, -np.log(np.maximum(right, 1e-30)).mean()


def scores(scale, seed):
    """Return, by row of the table, error and NLL on test, and the error on unseen training rows."""
    torch.set_num_threads(1)
    splits, found = digits(scale, seed), {}
    options = FitOptions(epochs=scale.epochs, batch_size=32, optimizer=partial(adamw, lr=1e-2))
    factory = partial(mlp, inputs=64, classes=10, hidden=scale.hidden)
    for name, strategy in WAYS.items():
        count = {"folds" if strategy == "kfold" else "members": scale.members}
        plan = STRATEGIES[strategy](splits.train, seed=seed, **count)
        with tempfile.TemporaryDirectory() as folder:
            population = train(plan, Task(factory, splits, options), folder)
            said, unseen = population.stack("test"), population.out_of_fold()
        if name == TEN:
            found[ALONE] = (*error(mean_probability(said[:1]), splits.test.labels), np.nan)
        known = ~np.isnan(unseen).any(-1)
        promised = np.nan
        if known.any():
            promised = error(mean_probability(unseen[known][None]), splits.train.labels[known])[0]
        found[name] = (*error(mean_probability(said), splits.test.labels), promised)
    return found


def interval(values):
    """Return the mean and half of its 95 % t-interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), half


def table(runs, title):
    """Return all rows as text."""
    lines = [
        f"{title:<30}{'test error, %':^28}{'NLL':^27}{'error on rows':^16}",
        f"{'':<30}{'mean':>6}  {'minus independent':^20}{'mean':>6}  {'minus independent':^19}"
        f"{'not trained on':^16}",
    ]
    for name in runs[0]:
        mean = np.mean([run[name] for run in runs], 0)
        gaps = np.array([np.subtract(run[name], run[TEN])[:2] for run in runs]).T
        shown = ["", ""] if name == TEN else ["{:+.2f} ± {:.2f}".format(*interval(g)) for g in gaps]
        promised = "" if np.isnan(mean[2]) else f"{mean[2]:.2f}"
        lines.append(
            f"{name:<30}{mean[0]:6.2f}  {shown[0]:^20}{mean[1]:6.3f}  "
            f"{shown[1]:^19}{promised:^16}".rstrip()
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see it run")
    scale, shares = Scale(), (0.0, 0.2)
    if parser.parse_args().quick:
        shares = (0.2,)
        scale = Scale(seeds=2, epochs=2, train=120, images=240, hidden=16, members=2)
    os.environ["OMP_NUM_THREADS"] = "1"  # one seed a core
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        each = map if len(shares) == 1 else pool.map  # a process that imports torch takes seconds
        for noise in shares:
            noisy = partial(scores, scale._replace(noise=noise))
            runs = list(each(noisy, range(scale.seeds)))
            print(table(runs, f"{100 * noise:.0f} % of the labels wrong") + "\n")
    print(f"±: 95 % t-interval of the mean over {scale.seeds} seeds, paired by seed.")


if __name__ == "__main__":
    main()

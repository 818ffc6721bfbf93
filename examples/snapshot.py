"""Five snapshots of one run, or one long run? Real digits, a fifth of their labels wrong.

python examples/snapshot.py [--quick]     prints a table, and draws snapshot.svg

Every row has the same budget: one training run of 60 epochs of the same net on the same rows. One
run falls along one long cosine; the others fall in cycles (snapshots, FGE) or stay at a constant
rate (SWAG), and hand out several members whose mean is scored on digits with their true labels.
The settings are common ones, fixed beforehand. Validation, whose labels are as noisy as those of
training, chooses which snapshots are left out, and nothing else. All is repeated with other seeds:
other rows, other wrong labels, other weights to begin with.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from polyfuse import Arrays, FitOptions, Splits, Task, mlp, train
from polyfuse.classical import bundled_digits
from polyfuse.combine import mean_probability
from polyfuse.optimizers import sgd
from polyfuse.training import STRATEGIES

LONG = "one long cosine run"
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # from one grid line to the next
COLOURS = ("#222222", "#0072b2")  # of the long run, of the others


class Scale(NamedTuple):
    """How much is computed."""

    seeds: int = 20
    epochs: int = 60
    train: int = 700
    val: int = 300
    images: int = 1797
    hidden: int = 128
    noise: float = 0.2


def digits(scale, seed):
    """Return the splits; labels of training and validation are partly another class."""
    images, classes = bundled_digits()
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(classes))[: scale.images]
    x, y = images[order].astype("f4") / 16, classes[order]
    held_out = scale.train + scale.val
    wrong = (np.arange(len(y)) < held_out) & (draw.random(len(y)) < scale.noise)
    y = np.where(wrong, (y + draw.integers(1, 10, len(y))) % 10, y)
    cuts = [scale.train, held_out]
    return Splits(*(Arrays(*part) for part in zip(np.split(x, cuts), np.split(y, cuts))))  # noqa: B905


def members_of(scale, seed, splits, name, **asked):
    """Train once and return the members, and what each says of the test images."""
    fit = FitOptions(epochs=scale.epochs, optimizer=partial(sgd, lr=0.1, momentum=0.9))
    if name in ("snapshot", "fge", "swag"):
        asked["fit"] = fit
    factory = partial(mlp, inputs=64, classes=10, hidden=scale.hidden)
    strategy = STRATEGIES[name](splits.train, seed=seed, **asked)
    with tempfile.TemporaryDirectory() as folder:
        population = train(strategy, Task(factory, splits, fit), folder)
        return population.members, population.stack("test")


def scores(scale, seed):
    """Return (error in percent, NLL) on the test images, by row of the table."""
    torch.set_num_threads(1)
    splits = digits(scale, seed)
    run = partial(members_of, scale, seed, splits)
    said = {LONG: run("independent", members=1, stop_fraction=0)[1]}
    said["its best epoch, by a tenth of the rows"] = run("independent", members=1)[1]
    members, shots = run("snapshot", stop_fraction=0)
    said["the last snapshot alone"] = shots[-1:]
    said["5 snapshots"] = shots
    said["snapshots that help on validation"] = shots[[member.fused for member in members]]
    members, points = run("fge", stop_fraction=0)
    said[f"FGE, {len(members)} members"] = points
    said["SWAG, 10 samples"] = run("swag", stop_fraction=0)[1]
    truth = splits.test.labels
    found = {}
    for name, logits in said.items():
        p = mean_probability(logits)
        right = p[np.arange(len(truth)), truth]
        found[name] = 100 * (p.argmax(-1) != truth).mean(), -np.log(np.maximum(right, 1e-30)).mean()
    return found


def interval(values):
    """Return the mean and half of its 95 % t-interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), half


def differences(runs, column):
    """Return mean and half interval of each row less the long run of the same seed."""
    values = {name: np.array([run[name][column] for run in runs]) for name in runs[0]}
    return {n: interval(v - values[LONG]) for n, v in values.items() if n != LONG}


def table(runs):
    """Return all rows as text."""
    lines = [
        f"{'':<40}{'test error, %':^24}{'NLL':^26}",
        f"{'':<40}{'mean':>6}  {'minus long run':^16}{'mean':>7}  {'minus long run':^17}",
    ]
    error, nll = differences(runs, 0), differences(runs, 1)
    for name in runs[0]:
        means = np.mean([run[name] for run in runs], 0)
        line = f"{name:<40}{means[0]:6.2f}  "
        line += "{:+7.2f} ± {:<6.2f}".format(*error[name]) if name in error else " " * 16
        line += f"{means[1]:7.3f}  "
        line += "{:+7.3f} ± {:<6.3f}".format(*nll[name]) if name in nll else ""
        lines.append(line.rstrip())
    better = [n for n in error if max(sum(error[n]), sum(nll[n])) < 0]
    return "\n".join(
        [
            *lines,
            f"±: 95 % t-interval of the mean over {len(runs)} seeds, paired by seed.",
            f"Better by both (intervals below zero): {', '.join(better) or 'none'}.",
        ]
    )


def panel(found, left, title):
    """Return one panel as SVG: a dot and its interval for each row, zero as a line."""
    edges = [mean + sign * half for mean, half in found.values() for sign in (-1, 1)]
    low, high = min(0.0, *edges), max(0.0, *edges)
    step = next(s for s in STEPS if (high - low) / s < 7)
    low, high = np.floor(low / step) * step, np.ceil(high / step) * step
    at = lambda value: left + 270 * (value - low) / (high - low)  # noqa: E731
    bottom = 62 + 34 * len(found)
    parts = [f'<text x="{left}" y="34" font-weight="600">{title}</text>']
    for tick in np.arange(low, high + step / 2, step):
        x = f"{at(tick):.1f}"
        colour = COLOURS[0] if abs(tick) < step / 2 else "#ddd"
        parts.append(f'<path d="M{x} 48V{bottom}" stroke="{colour}"/>')
        shown = f"{round(tick, 6):+.4g}" if abs(tick) > step / 2 else "0"
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{shown}</text>')
    for place, (mean, half) in enumerate(found.values()):
        y, style = 72 + 34 * place, f'stroke="{COLOURS[1]}" stroke-width="3"'
        parts.append(f'<path d="M{at(mean - half):.1f} {y}H{at(mean + half):.1f}" {style}/>')
        parts.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="6" fill="{COLOURS[1]}"/>')
    return parts


def figure(runs, scale):
    """Return the figure as SVG."""
    error, nll = differences(runs, 0), differences(runs, 1)
    height = 130 + 34 * len(error)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 {height}" font-size="14" '
        'font-family="Helvetica, Arial, sans-serif" fill="#222" role="img">',
        "<title>Members of one run against one long run, at equal budget</title>",
        f'<rect width="920" height="{height}" fill="white"/>',
        *panel(error, 300, "Test error, points"),
        *panel(nll, 615, "Test NLL, nats"),
    ]
    for place, name in enumerate(error):
        parts.append(f'<text x="12" y="{77 + 34 * place}">{name}</text>')
    note = (
        f"less {LONG} of the same seed: mean and 95 % t-interval over {len(runs)} seeds; "
        f"{100 * scale.noise:.0f} % of {scale.train} training labels wrong; left is better"
    )
    parts.append(f'<text x="12" y="{height - 10}" fill="#666" font-size="12">{note}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see it run")
    parser.add_argument("--noise", type=float, default=0.2, help="share of wrong labels")
    parser.add_argument("--train", type=int, default=700, help="training rows")
    parser.add_argument("--epochs", type=int, default=60, help="of every run")
    parser.add_argument("--out", type=Path, default=Path("snapshot.svg"))
    words = parser.parse_args()
    scale = Scale(noise=words.noise, train=words.train, epochs=words.epochs)
    if words.quick:
        scale = Scale(seeds=2, epochs=40, train=150, val=50, images=300, hidden=32)
    context = get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"  # one seed a core
    if words.quick:
        runs = [scores(scale, seed) for seed in range(scale.seeds)]
    else:
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
            runs = list(pool.map(partial(scores, scale), range(scale.seeds)))
    print(table(runs))
    words.out.write_text(figure(runs, scale), encoding="utf-8")
    print(f"the figure is in {words.out}")


if __name__ == "__main__":
    main()

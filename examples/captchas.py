"""A hundred captchas to learn from: one small net, or five of them and several views of an image?

python examples/captchas.py --data FOLDER [--seeds 3] [--quick]     prints a table

FOLDER holds `labels.csv` (file_name,file_code) and `images.tar`: 4,000 real login captchas of four
digits, github.com/GT-ZhangAcer/CaptchaDataset. Each seed deals 100 to learn from, 500 to choose on,
and 2,000 others, which choose nothing, to read. The net to beat is that of five which reads most of
the 500. Beside it stand the mean of all five, and both with test-time augmentation: the image moved
or scaled, in those ways that the guard keeps because they help on the 500. Whole captchas count.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from polyfuse import Arrays, FitOptions, Task, train
from polyfuse.combine import mean_probability
from polyfuse.data import labelled_images
from polyfuse.data.augment import reading
from polyfuse.inference import predict
from polyfuse.metrics import string_accuracy
from polyfuse.models import CharacterCNN
from polyfuse.optimizers import adamw
from polyfuse.significance import compare_pairs
from polyfuse.training import STRATEGIES
from polyfuse.tta import Identity, Scale, Shift
from polyfuse.tta.choosing import ViewChoice
from polyfuse.tta.guard import guard_views

MOVED = [Shift(across=-2), Shift(across=2), Shift(down=-1), Shift(down=1)]
VIEWS = [Identity(), *MOVED, Scale(0.9), Scale(1.1)]
BLANK = 10  # no captcha has one
exact = partial(string_accuracy, blank=BLANK)
ONE, VIEWED, MEAN, BOTH = "best net", "best net, its views", "all nets", "all nets, their views"


class Size(NamedTuple):
    """How much is computed."""

    train: int = 100
    val: int = 500
    test: int = 2000
    members: int = 5
    epochs: int = 120
    width: int = 8


def population_of(size, splits, factory, seed):
    """Train the members; return their models."""
    fit = FitOptions(
        epochs=size.epochs,
        batch_size=25,
        optimizer=partial(adamw, lr=8e-3),
        augmentation=partial(reading, across=2, down=1),
    )
    plan = STRATEGIES["independent"](splits.train, members=size.members, stop_fraction=0, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        population = train(plan, Task(factory, splits, fit), folder)
        return [member.model(factory) for member in population.members]


def said_of(models, split):
    """Return the logits of all views and nets, `(view, sample, net, position, class)`."""
    images = split.inputs(np.arange(len(split)))
    seen = (Arrays(view.apply(images), split.labels) for view in VIEWS)
    return np.stack([np.stack([predict(model, x) for model in models], 1) for x in seen])


def answers(size, data, seed):
    """Return the scores on test by row of the table, and how many views the guard kept."""
    counts = {"train": size.train, "val": size.val, "test": size.test}
    splits = labelled_images(root=str(data), longest=4, size=(30, 70), seed=seed, **counts)
    factory = partial(CharacterCNN, width=size.width, hidden=64, positions=4)
    models = population_of(size, splits, factory, seed)
    val, test = said_of(models, splits.val), said_of(models, splits.test)
    labels = splits.val.labels
    best = max(range(size.members), key=lambda net: exact(val[0, :, net], labels).value)
    choice = ViewChoice(members=True, metric=exact)  # each net's views first, then the nets
    found, kept = {}, []
    for alone, viewed, nets in ((ONE, VIEWED, [best]), (MEAN, BOTH, [*range(size.members)])):
        guarded = guard_views(val[:, :, nets], labels, choice, seed=seed)
        found[alone] = mean_probability(test[0][:, nets].swapaxes(0, 1))
        found[viewed] = guarded.merge(test[:, :, nets]).mean(1)
        kept.append(len(guarded.kept))
    return {name: exact(said, splits.test.labels) for name, said in found.items()}, kept


def table(runs):
    """Return each seed's scores and gains with their intervals, then the mean over seeds."""
    head = "".join(f"{name:>28}" for name in (VIEWED, MEAN, BOTH))
    lines = [f"{'captchas read, %':<18}{ONE:>14}{head}"]
    gains = []
    for seed, (scores, kept) in enumerate(runs):
        pairs = compare_pairs(scores, reference=ONE, seed=seed)
        line = f"{f'seed {seed}':<18}{100 * scores[ONE].value:14.1f}"
        for pair in pairs:
            gain, low, high = (100 * number for number in pair.difference)
            told = f"{100 * scores[pair.a].value:.1f}  {gain:+.1f} [{low:+.1f}, {high:+.1f}]"
            line += f"{told:>28}"
        gains.append([100 * pair.difference.value for pair in pairs])
        lines.append(f"{line}   views kept: {kept[0]}, {kept[1]}")
    if len(runs) > 1:
        mean, half = np.mean(gains, 0), stats.t.ppf(0.975, len(runs) - 1) * stats.sem(gains, 0)
        told = [f"{m:+.1f} ± {h:.1f}" for m, h in zip(mean, half, strict=True)]
        lines.append(f"{'mean gain':<32}" + "".join(f"{one:>28}" for one in told))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the captchas")
    parser.add_argument("--seeds", type=int, default=3, help="other captchas and other nets")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see it run")
    words = parser.parse_args()
    size, seeds = Size(), words.seeds
    if words.quick:
        size, seeds = Size(40, 40, 80, members=2, epochs=2, width=2), 1
    torch.set_num_threads(1)
    print(table([answers(size, words.data, seed) for seed in range(seeds)]))
    print(
        f"[95 % bootstrap of the gain over the best net on the same {size.test} captchas], ", end=""
    )
    print(f"± 95 % t-interval over seeds; {size.members} nets a seed.")


if __name__ == "__main__":
    main()

"""Which combination of eight models is best, and which of them only looks so? Noisy real digits.

python examples/selection.py [--quick]     prints a table

Eight scikit-learn models of mixed quality learn from 900 digits with noise in their pixels. Each
combination is fitted twice: on out-of-fold predictions, where every row is predicted by models that
did not learn from it, and, as one must not, on the models' predictions of their own training rows.
Then all are scored on rows that nobody saw. Everything is repeated with new noise and rows.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from polyfuse.classical import bundled_digits
from polyfuse.errors import DataError
from polyfuse.greedy_selection import GreedySelection
from polyfuse.simplex import SimplexWeights
from polyfuse.stacking import Stacker

SINGLE, UNIFORM = "best single member", "mean of all members"
FITTED = {
    "greedy selection": partial(GreedySelection, metric="accuracy"),
    "weights on the simplex": SimplexWeights,
    "stacking, probabilities": partial(Stacker, features="prob"),
    "stacking, log-probabilities": Stacker,
}


class Scale(NamedTuple):
    """How much is computed."""

    repeats: int = 20
    train: int = 900
    images: int = 1797
    trees: int = 100
    noise: float = 3.0  # standard deviation; pixels go from 0 to 16


def members(trees):
    """Return eight models of mixed quality by name."""
    return {
        "logistic regression": make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, max_iter=300)
        ),
        "nearest neighbour": KNeighborsClassifier(1),
        "5 nearest neighbours": KNeighborsClassifier(5),
        "naive Bayes": GaussianNB(var_smoothing=1e-3),
        "tree": DecisionTreeClassifier(random_state=0),
        "tree of depth 6": DecisionTreeClassifier(max_depth=6, random_state=0),
        "tree of depth 3": DecisionTreeClassifier(max_depth=3, random_state=0),
        "forest": RandomForestClassifier(trees, random_state=0),
    }


def errors(scale, seed):
    """Return the test error of every member and combination in percent, and who was refused."""
    images, labels = bundled_digits()
    draw = np.random.default_rng(seed)
    rows = draw.permutation(len(labels))[: scale.images]
    x = images[rows].reshape(len(rows), -1) + scale.noise * draw.standard_normal((len(rows), 64))
    y, n = labels[rows], scale.train
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    models = members(scale.trees)
    unseen = [
        cross_val_predict(model, x[:n], y[:n], cv=folds, method="predict_proba")
        for model in models.values()
    ]
    learned = [clone(model).fit(x[:n], y[:n]) for model in models.values()]
    own, test = ([m.predict_proba(part) for m in learned] for part in (x[:n], x[n:]))
    wrong = lambda p: 100 * float((p.argmax(-1) != y[n:]).mean())  # noqa: E731
    found = {name: wrong(p) for name, p in zip(models, test, strict=True)}
    best = max(range(len(test)), key=lambda i: (unseen[i].argmax(-1) == y[:n]).mean())
    found |= {SINGLE: wrong(test[best]), UNIFORM: wrong(np.mean(test, 0))}
    for name, make in FITTED.items():
        for end, predictions in (("", unseen), (", leaky", own)):
            fitted = make().fit(predictions, y[:n])
            found[f"{name}{end}"] = wrong(fitted.predict_proba(test))
    return found


def told_of_the_leak(rows):
    """Return what polyfuse says where it knows which rows the members learned from."""
    p, trained = np.full((8, rows, 10), 0.1), np.ones((8, rows), dtype=bool)
    try:
        GreedySelection().fit(p, np.arange(rows) % 10, trained=trained)
    except DataError as error:
        return str(error)
    raise AssertionError("a leak was let through")


def interval(values):
    """Return the mean and half of its 95 % t-interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), half


def table(runs):
    """Return all rows as text, each beside the best single member of the same repeat."""
    lines = [f"{'':<38}{'test error, %':^15}{'minus best single':^20}"]
    best = np.array([run[SINGLE] for run in runs])
    for name in runs[0]:
        values = np.array([run[name] for run in runs])
        line = f"{name:<38}{values.mean():^15.2f}"
        if name != SINGLE:
            mean, half = interval(values - best)
            line += f"{mean:+8.2f} ± {half:.2f}"
        lines.append(line.rstrip())
    return "\n".join(
        [
            *lines,
            f"±: 95 % t-interval of the mean over {len(runs)} repeats, paired.",
            "Leaky: fitted on predictions of rows that the members learned from.",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see it run")
    parser.add_argument("--repeats", type=int, default=20)
    words = parser.parse_args()
    scale = Scale(repeats=words.repeats)
    if words.quick:
        scale = Scale(repeats=2, train=150, images=300, trees=10)
    context = get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"  # one repeat a core
    workers = min(len(os.sched_getaffinity(0)), scale.repeats)
    with ProcessPoolExecutor(workers, context) as pool:
        print(table(list(pool.map(partial(errors, scale), range(scale.repeats)))))
    print(f"\nWith trained=..., polyfuse refuses the leaky fits:\n{told_of_the_leak(scale.train)}")


if __name__ == "__main__":
    main()

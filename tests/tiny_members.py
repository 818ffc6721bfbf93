"""Small made-up members of every kind of task, good and poor ones, the same in every process."""

import numpy as np

KINDS = (
    *("multiclass", "binary", "multilabel", "multi_head"),
    *("regression", "mean_variance", "quantiles"),
)


def softmax(z):
    raised = np.exp(z - z.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def classes(rows=120, members=4, count=3, seed=0, skill=1.5, heads=()):
    """Return probabilities `(member, row, ..., class)`, the last members better, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, (rows, *heads))
    truth = np.eye(count)[labels]
    each = [
        softmax(rng.standard_normal(truth.shape) + (skill * (1 + m / 4)) * truth)
        for m in range(members)
    ]
    return np.stack(each), labels


def noise(rows=150, members=5, count=3, seed=0):
    """Return probabilities that know nothing of the labels."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(count), (members, rows)), rng.integers(0, count, rows)


def numbers(rows=120, members=4, seed=0):
    """Return predictions `(member, row)` and targets; errors differ."""
    rng = np.random.default_rng(seed)
    targets = rng.standard_normal(rows)
    errors = rng.standard_normal((members, rows)) * np.linspace(1.0, 0.4, members)[:, None]
    return targets + errors, targets


def given(kind, rows=120, seed=0):
    """Return predictions, labels, and options that say what they are."""
    if kind == "multiclass":
        return *classes(rows, seed=seed), {}
    if kind == "binary":
        said, labels = classes(rows, count=2, seed=seed)
        return said[..., 1], labels, {}
    if kind == "multilabel":
        said, labels = classes(rows, count=2, seed=seed, heads=(3,))
        return said[..., 1], labels, {}
    if kind == "multi_head":  # strings of up to two characters; 3 is no character
        said, labels = classes(rows, count=4, seed=seed, heads=(2,))
        return (
            said,
            np.where(np.logical_or.accumulate(labels == 3, axis=1), 3, labels),
            {"blank": 3},
        )
    said, targets = numbers(rows, seed=seed)
    if kind == "regression":
        return said, targets, {}
    if kind == "mean_variance":
        return np.stack([said, np.full_like(said, 0.3)], -1), targets, {}
    levels = (0.1, 0.5, 0.9)
    return said[..., None] + np.array([-1.0, 0.0, 1.0]), targets, {"levels": levels}

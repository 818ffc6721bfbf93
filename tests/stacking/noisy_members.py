"""Members of mixed quality, drawn: their predictions of classes or numbers, and the truth."""

import numpy as np


def members(seed=0, count=4, n=240, classes=3, heads=()):
    """Return probabilities (member, n, ..., class), the first members the best, and labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, (n, *heads))
    z = draw.normal(size=(count, n, *heads, classes))
    z += np.eye(classes)[labels] * np.linspace(2.5, 0, count).reshape(-1, *[1] * (z.ndim - 1))
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True), labels


def numbers(seed=0, count=4, n=240, outputs=()):
    """Return predictions (member, n, ...) of numbers, the first members the best, and targets."""
    draw = np.random.default_rng(seed)
    targets = draw.normal(5, 2, (n, *outputs))
    spread = np.linspace(0.3, 3, count).reshape(-1, *[1] * targets.ndim)
    return targets + draw.normal(size=(count, *targets.shape)) * spread + 1, targets


def nll(p, labels):
    own = np.take_along_axis(p, labels[..., None], -1)
    return float(-np.log(own).mean())

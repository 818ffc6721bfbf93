"""Scores as per-sample terms, so that a bootstrap is a weighting by counts.

A metric maps `(prediction, labels)` to `Terms`: a numerator and a denominator a sample. Its value
is `sum numerator / sum denominator`, and a bootstrap replicate only weights both by how often each
sample was drawn. `METRICS` lists them; `metrics_for` picks those that fit a task.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.sequences import decode

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


class Terms(NamedTuple):
    """A score, sample by sample: its value is `numerator.sum() / denominator.sum()`."""

    numerator: Floats
    denominator: Floats

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.numerator.sum() / self.denominator.sum())


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def accuracy(prediction: NDArray[Any], labels: Labels) -> Terms:
    """Share of right classes: over samples, or over all positions of multi-head labels.

    Args:
        prediction: `(n, ..., classes)` scores, or `(n, ...)` integer classes.
        labels: `(n, ...)` int64.

    Raises:
        DataError: the shapes do not fit each other.

    Example:
        >>> accuracy(np.array([1, 0]), np.array([1, 1])).value
        0.5
    """
    right = _classes(prediction, labels) == labels
    share = right.reshape(len(labels), -1).mean(1)
    return Terms(share, np.ones(len(labels)))


def string_accuracy(prediction: NDArray[Any], labels: Labels, *, blank: int = 10) -> Terms:
    """Share of whole strings read right: every character and the length (the contest's score).

    Args:
        prediction: `(n, positions, classes)` scores, or `(n, positions)` integer classes.
        labels: `(n, positions)` int64, padded right with `blank`.
        blank: the class that means "no character".

    Raises:
        DataError: the shapes do not fit each other.

    Example:
        >>> string_accuracy(np.array([[4, 2, 10]]), np.array([[4, 2, 10]])).value
        1.0
    """
    read = decode(_classes(prediction, labels), blank=blank)
    return Terms((read == labels).all(1).astype(float), np.ones(len(labels)))


def character_accuracy(prediction: NDArray[Any], labels: Labels, *, blank: int = 10) -> Terms:
    """Share of true characters read right at their own position.

    Args:
        prediction: `(n, positions, classes)` scores, or `(n, positions)` integer classes.
        labels: `(n, positions)` int64, padded right with `blank`.
        blank: the class that means "no character".

    Raises:
        DataError: the shapes do not fit each other.

    Example:
        >>> character_accuracy(np.array([[4, 7, 10]]), np.array([[4, 2, 10]])).value
        0.5
    """
    read = decode(_classes(prediction, labels), blank=blank)
    there = labels != blank
    return Terms(((read == labels) & there).sum(1).astype(float), there.sum(1).astype(float))


def nll(prediction: NDArray[Any], labels: Labels) -> Terms:
    """Mean negative log-likelihood of a sample in nats; over heads the logs are summed.

    Args:
        prediction: `(n, ..., classes)` probabilities; clipped below at the smallest float32.
        labels: `(n, ...)` int64.

    Raises:
        DataError: decided classes instead of probabilities, or shapes or labels that do not fit.

    Example:
        >>> round(nll(np.array([[0.5, 0.5]]), np.array([0])).value, 4)
        0.6931
    """
    if prediction.dtype.kind != "f":
        raise DataError("NLL needs probabilities, but these are decided classes (a vote)")
    _classes(prediction, labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < prediction.shape[-1]:
        raise DataError(
            f"labels from {labels.min()} to {labels.max()} do not fit predictions of "
            f"{prediction.shape[-1]} classes"
        )
    chosen = np.take_along_axis(prediction, labels[..., None], -1)[..., 0].astype(np.float64)
    logs = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
    return Terms(logs.reshape(len(labels), -1).sum(1), np.ones(len(labels)))


METRICS: dict[str, Callable[..., Terms]] = {
    "accuracy": accuracy,
    "string_accuracy": string_accuracy,
    "character_accuracy": character_accuracy,
    "nll": nll,
}
LOWER_IS_BETTER = frozenset({"nll"})
NEEDS_PROBABILITIES = frozenset({"nll"})


def metrics_for(blank: int | None) -> dict[str, Callable[..., Terms]]:
    """Return the metrics that fit a task by name, the one that decides first.

    Args:
        blank: the class that means "no character"; None outside character strings.

    Example:
        >>> list(metrics_for(None)), list(metrics_for(10))[0]
        (['accuracy', 'nll'], 'string_accuracy')
    """
    if blank is None:
        return {"accuracy": accuracy, "nll": nll}
    return {
        "string_accuracy": partial(string_accuracy, blank=blank),
        "character_accuracy": partial(character_accuracy, blank=blank),
        "nll": nll,
    }


def bootstrap_counts(
    n: int, replicates: int, *, seed: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Draw how often each sample appears in each bootstrap replicate.

    Samples of one group share a source, so where there are groups whole groups are drawn (the
    cluster bootstrap): the interval then covers new sources, not only new samples of the same.

    Args:
        n: number of samples.
        replicates: number of replicates.
        seed: draws them.
        groups: `(n,)` group of each sample, or None.

    Returns:
        `(replicates, n)` float32 counts.

    Example:
        >>> bootstrap_counts(4, 2, seed=0).sum(1).tolist()
        [4.0, 4.0]
    """
    rng = np.random.default_rng([seed, 2])
    if groups is not None and len(np.unique(groups)) > 1:
        names, member = np.unique(groups, return_inverse=True)
        units = len(names)
    else:
        member, units = np.arange(n), n
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=replicates)
    counts: NDArray[np.float32] = drawn[:, member].astype(np.float32)
    return counts


def interval(terms: Terms, counts: NDArray[np.float32]) -> Interval:
    """Return a score with its 95 % percentile bootstrap interval (Efron 1979).

    Args:
        terms: of `n` samples.
        counts: `(replicates, n)` from `bootstrap_counts`.

    Example:
        >>> interval(Terms(np.ones(4), np.ones(4)), bootstrap_counts(4, 9, seed=0))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    low, high = np.quantile(_replicates(terms, counts), [0.025, 0.975])
    return Interval(terms.value, float(low), float(high))


def paired_interval(a: Terms, b: Terms, counts: NDArray[np.float32]) -> Interval:
    """Return the difference a - b on the same samples, with its 95 % bootstrap interval.

    Args:
        a: terms of `n` samples.
        b: terms of the same samples, in the same order.
        counts: `(replicates, n)` from `bootstrap_counts`.

    Example:
        >>> one = Terms(np.ones(4), np.ones(4))
        >>> paired_interval(one, one, bootstrap_counts(4, 9, seed=0))
        Interval(value=0.0, low=0.0, high=0.0)
    """
    low, high = np.quantile(_replicates(a, counts) - _replicates(b, counts), [0.025, 0.975])
    return Interval(a.value - b.value, float(low), float(high))


def _replicates(terms: Terms, counts: NDArray[np.float32]) -> Floats:
    ratio: Floats = (counts @ terms.numerator) / (counts @ terms.denominator)
    return ratio


def _classes(prediction: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Return the predicted classes, once their shape is the labels' shape."""
    classes = prediction if prediction.dtype.kind in "iu" else prediction.argmax(-1)
    if classes.shape != labels.shape:
        raise DataError(
            f"predictions of {classes.shape} do not fit labels of {labels.shape}; "
            "both need the same samples in the same order"
        )
    return classes

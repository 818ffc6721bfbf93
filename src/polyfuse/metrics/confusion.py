"""Scores of a confusion matrix: balanced accuracy and F1, from tallies weighted by counts."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.metrics.base import (
    Counts,
    Floats,
    Labels,
    classes_of,
    mean_of_defined,
    per_sample,
    whole,
)


class Tallies(NamedTuple):
    """How often each class was hit, true and predicted; each `(replicates, classes)` float64."""

    hits: Floats
    true: Floats
    predicted: Floats


class Confusion(NamedTuple):
    """A score that is a function of how often each class was hit, true and predicted.

    Attributes:
        labels: `(n, cases)` true classes; `classes` means none of them.
        predicted: `(n, cases)` predicted classes, likewise.
        classes: number of classes.
        summary: maps tallies to one score a replicate.
    """

    labels: Labels
    predicted: Labels
    classes: int
    summary: Callable[[Tallies], Floats]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.replicates(whole(len(self.labels)))[0])

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate of `(replicates, n)` counts."""
        return self.summary(self.tallies(counts))

    def tallies(self, counts: Counts) -> Tallies:
        """Return hits, true and predicted cases by class of each replicate."""
        cases, bins = self.labels.shape[1], self.classes + 1
        hit = (2 * self.labels + (self.labels == self.predicted)).ravel()
        said = self.predicted.ravel()
        found = np.zeros((len(counts), 2, bins))
        told = np.zeros((len(counts), bins))
        for number, weights in enumerate(counts):
            each = weights if cases == 1 else np.repeat(weights, cases)
            found[number] = np.bincount(hit, each, 2 * bins).reshape(bins, 2).T
            told[number] = np.bincount(said, each, bins)
        found, told = found[:, :, : self.classes], told[:, : self.classes]
        return Tallies(found[:, 1], found.sum(1), told)


def balanced_accuracy(prediction: NDArray[Any], labels: Labels) -> Confusion:
    """Mean over classes of the share of their samples that is found: macro-averaged recall.

    Classes that no label has are left out, also replicate by replicate. Over heads each position
    is a case.

    Args:
        prediction: `(n, ..., classes)` scores, `(n, ...)` integer classes, or `(n, ...)`
            probabilities of class 1.
        labels: `(n, ...)` int64.

    Raises:
        DataError: the shapes do not fit each other, or negative classes.

    Example:
        >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])).value
        0.75
    """
    return _confusion(prediction, labels, _mean_recall)


def f1(
    prediction: NDArray[Any],
    labels: Labels,
    *,
    average: Literal["macro", "micro"] | int = "macro",
    multilabel: bool = False,
) -> Confusion:
    """F1, the harmonic mean of precision and recall: `2 hits / (true + predicted)` by class.

    Classes that are neither true nor predicted are left out of the macro average, also replicate
    by replicate. Micro-averaged over exclusive classes it is the accuracy. Over heads each
    position is a case. `f1_by_class` gives all classes at once.

    Args:
        prediction: `(n, ..., classes)` scores, `(n, ...)` integer classes, or `(n, ...)`
            probabilities of class 1.
        labels: `(n, ...)` int64.
        average: over classes, over cases, or one class alone.
        multilabel: each column of `(n, labels)` zeros and ones is a class of its own.

    Raises:
        DataError: the shapes do not fit each other, negative classes, an unknown average.

    Example:
        >>> read, true = np.array([0, 0, 1]), np.array([0, 1, 1])
        >>> round(f1(read, true).value, 4), round(f1(read, true, average=1).value, 4)
        (0.6667, 0.6667)
    """
    if isinstance(average, int):
        one = average
        result = _confusion(prediction, labels, lambda t: _f1(t)[:, one], multilabel=multilabel)
        if not 0 <= one < result.classes:
            raise DataError(f"average={one} is no class; there are {result.classes}, from 0")
        return result
    known = {"macro": _macro_f1, "micro": _micro_f1}
    if average not in known:
        raise DataError(f"average={average!r} is not known; use 'macro', 'micro' or a class")
    return _confusion(prediction, labels, known[average], multilabel=multilabel)


def f1_by_class(prediction: NDArray[Any], labels: Labels, *, multilabel: bool = False) -> Floats:
    """Return F1 of each class: `(classes,)` float64, NaN where a class is nowhere.

    Args:
        prediction: as for `f1`.
        labels: as for `f1`.
        multilabel: as for `f1`.

    Raises:
        DataError: as for `f1`.

    Example:
        >>> f1_by_class(np.array([0, 0, 1]), np.array([0, 1, 1])).round(4).tolist()
        [0.6667, 0.6667]
    """
    confusion = _confusion(prediction, labels, _macro_f1, multilabel=multilabel)
    by_class: Floats = _f1(confusion.tallies(whole(len(labels))))[0]
    return by_class


def _confusion(
    prediction: NDArray[Any],
    labels: Labels,
    summary: Callable[[Tallies], Floats],
    *,
    multilabel: bool = False,
) -> Confusion:
    read = classes_of(prediction, labels).astype(np.int64, copy=False)
    if labels.dtype.kind not in "iub" or min(labels.min(initial=0), read.min(initial=0)) < 0:
        raise DataError(
            f"expected classes numbered from 0, got labels of {labels.dtype} from {labels.min()}; "
            "number them: np.unique(labels, return_inverse=True)"
        )
    if multilabel:
        return _multilabel(read, labels, summary)
    named = prediction.shape[-1] if prediction.ndim > labels.ndim else 0
    classes = int(max(labels.max(initial=0), read.max(initial=0), named - 1)) + 1
    return Confusion(per_sample(labels).astype(np.int64), per_sample(read), classes, summary)


def _multilabel(read: Labels, labels: Labels, summary: Callable[[Tallies], Floats]) -> Confusion:
    """Say label k as class k where it is there, and as no class where it is not."""
    if labels.ndim != 2 or max(labels.max(initial=0), read.max(initial=0)) > 1:
        raise DataError(
            f"multilabel needs (n, labels) zeros and ones, got labels of {labels.shape} up to "
            f"{labels.max(initial=0)}"
        )
    columns = np.arange(labels.shape[1])
    none = len(columns)
    true, said = (np.where(part == 1, columns, none) for part in (labels, read))
    return Confusion(true, said, none, summary)


def _mean_recall(tallies: Tallies) -> Floats:
    return mean_of_defined(_ratio(tallies.hits, tallies.true))


def _f1(tallies: Tallies) -> Floats:
    return _ratio(2 * tallies.hits, tallies.true + tallies.predicted)


def _macro_f1(tallies: Tallies) -> Floats:
    return mean_of_defined(_f1(tallies))


def _micro_f1(tallies: Tallies) -> Floats:
    hits, true, predicted = (part.sum(1) for part in tallies)
    return _ratio(2 * hits, true + predicted)


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        ratio: Floats = above / below
    return ratio

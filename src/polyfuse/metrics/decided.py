"""Shares of what was read right: samples, whole strings, characters."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics.base import Labels, Terms, classes_of
from polyfuse.sequences import decode


def accuracy(prediction: NDArray[Any], labels: Labels) -> Terms:
    """Share of right classes: over samples, or over all positions of multi-head labels.

    Args:
        prediction: `(n, ..., classes)` scores, `(n, ...)` integer classes, or `(n, ...)`
            probabilities of class 1.
        labels: `(n, ...)` int64.

    Raises:
        DataError: the shapes do not fit each other.

    Example:
        >>> accuracy(np.array([1, 0]), np.array([1, 1])).value
        0.5
    """
    right = classes_of(prediction, labels) == labels
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
    read = decode(classes_of(prediction, labels), blank=blank)
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
    read = decode(classes_of(prediction, labels), blank=blank)
    there = labels != blank
    return Terms(((read == labels) & there).sum(1).astype(float), there.sum(1).astype(float))

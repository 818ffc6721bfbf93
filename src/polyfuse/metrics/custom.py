"""A user's own function as a score: what cannot be weighted by counts is computed anew."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics.base import Counts, Floats

Function = Callable[[NDArray[Any], NDArray[Any]], float]


class Recomputed(NamedTuple):
    """A score that a function computes anew from the samples that each replicate drew.

    Attributes:
        function: maps predictions and labels to a number.
        prediction: `(n, ...)`.
        labels: `(n, ...)`.
    """

    function: Function
    prediction: NDArray[Any]
    labels: NDArray[Any]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.function(self.prediction, self.labels))

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate of `(replicates, n)` counts."""
        every = np.arange(len(self.labels))
        drawn = (np.repeat(every, row.astype(np.int64)) for row in counts)
        return np.array([self.function(self.prediction[i], self.labels[i]) for i in drawn], float)


def scored_by(function: Function) -> Callable[[NDArray[Any], NDArray[Any]], Recomputed]:
    """Return a metric that any function of `(prediction, labels)` computes.

    It takes the function's time once a replicate: the scores of this package take far less.

    Args:
        function: maps predictions and labels of any number of samples to a number.

    Example:
        >>> largest_error = scored_by(lambda f, y: float(np.abs(f - y).max()))
        >>> largest_error(np.array([1.0, 2.0]), np.array([1.0, 5.0])).value
        3.0
    """

    def metric(prediction: NDArray[Any], labels: NDArray[Any]) -> Recomputed:
        return Recomputed(function, prediction, labels)

    return metric

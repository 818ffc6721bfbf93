"""Proper scores of probabilities: negative log-likelihood and Brier score."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics.base import Labels, Terms, chosen, per_sample, probabilities_of


def nll(prediction: NDArray[Any], labels: Labels) -> Terms:
    """Mean negative log-likelihood of a sample in nats; over heads the logs are summed.

    Args:
        prediction: `(n, ..., classes)` probabilities, or `(n, ...)` probabilities of class 1;
            clipped below at the smallest float32.
        labels: `(n, ...)` int64.

    Raises:
        DataError: decided classes or logits instead of probabilities, NaN, or shapes or labels
            that do not fit.

    Example:
        >>> round(nll(np.array([[0.5, 0.5]]), np.array([0])).value, 4)
        0.6931
    """
    likelihood = chosen(probabilities_of(prediction, labels, "NLL"), labels)
    logs = -np.log(np.maximum(likelihood, np.finfo(np.float32).tiny))
    return Terms(logs.reshape(len(labels), -1).sum(1), np.ones(len(labels)))


def brier(prediction: NDArray[Any], labels: Labels) -> Terms:
    """Brier score (1950): squared distance to the true class, summed over classes, 0 to 2.

    Over heads it is averaged. The other convention for two classes, of one probability alone, is
    half of this.

    Args:
        prediction: `(n, ..., classes)` probabilities, or `(n, ...)` probabilities of class 1.
        labels: `(n, ...)` int64.

    Raises:
        DataError: decided classes or logits instead of probabilities, NaN, or shapes or labels
            that do not fit.

    Example:
        >>> brier(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1])).value
        0.25
    """
    probabilities = probabilities_of(prediction, labels, "the Brier score")
    squares = np.einsum("...k,...k->...", probabilities, probabilities, dtype=np.float64)
    distance = np.maximum(squares - 2 * chosen(probabilities, labels) + 1, 0.0)
    return Terms(per_sample(distance).mean(1), np.ones(len(labels)))

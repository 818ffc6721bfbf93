"""Expected calibration error: how far confidence and accuracy are apart, bin by bin."""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.metrics.base import Counts, Floats, Labels, per_sample, probabilities_of, whole


class Gaps(NamedTuple):
    """Confidence minus rightness of each case, and the bin it counts in.

    Attributes:
        bin: of each case.
        gap: of each case, float64.
        bins: their number.
        samples: number of samples.
        cases: of a sample.
    """

    bin: NDArray[np.int64]
    gap: Floats
    bins: int
    samples: int
    cases: int

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.replicates(whole(self.samples))[0])

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate of `(replicates, n)` counts, bins as they are."""
        found = np.empty(len(counts))
        for number, row in enumerate(counts):
            weights = np.repeat(row, self.cases).astype(np.float64)
            by_bin = np.bincount(self.bin, weights * self.gap, self.bins)
            found[number] = np.abs(by_bin).sum() / weights.sum()
        return found


def ece(
    prediction: NDArray[Any],
    labels: Labels,
    *,
    bins: int = 15,
    equal: Literal["width", "mass"] = "width",
) -> Gaps:
    """Expected calibration error (Naeini 2015, Guo 2017): how far sure and right are apart.

    `sum_b n_b / n |confidence_b - accuracy_b|` over bins of the largest probability. They are
    half-open, `(low, high]`, of equal width or of as equal a number of cases as ties allow; they
    are laid once over all samples, and replicates keep them. Over heads each position is a case.

    Args:
        prediction: `(n, ..., classes)` probabilities, or `(n, ...)` probabilities of class 1.
        labels: `(n, ...)` int64.
        bins: their number.
        equal: what bins have in common.

    Raises:
        DataError: decided classes or logits instead of probabilities, NaN, shapes or labels that
            do not fit, no bins.

    Example:
        >>> round(ece(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])).value, 4)
        0.3
    """
    if bins < 1 or equal not in ("width", "mass"):
        raise DataError(
            f"expected bins of 1 or more and equal='width' or 'mass', got bins={bins}, "
            f"equal={equal!r}"
        )
    probabilities = probabilities_of(prediction, labels, "ECE")
    confidence = probabilities.max(-1).ravel().astype(np.float64)
    right = (probabilities.argmax(-1) == labels).ravel()
    levels = np.linspace(0, 1, bins + 1)[1:-1]
    edges = levels if equal == "width" else np.quantile(confidence, levels)
    place = np.searchsorted(edges, confidence, "left")
    return Gaps(place, confidence - right, bins, len(labels), per_sample(labels).shape[1])

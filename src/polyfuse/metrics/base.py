"""What all scores share: per-sample terms, how a replicate weights them, and checked inputs."""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Counts = NDArray[Any]
# Stored log-probabilities in float16 sum to one within this; logits and forgotten softmaxes do not.
_SUM_TOLERANCE = 1e-2


class Score(Protocol):
    """A score of one row of a scoreboard, ready to be weighted anew for a bootstrap."""

    @property
    def samples(self) -> int:
        """Number of samples."""

    @property
    def value(self) -> float:
        """The score over all samples."""

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate: `(replicates, n)` counts give `(replicates,)`.

        NaN where a replicate leaves the score undefined, as AUROC without a positive.
        """


class Terms(NamedTuple):
    """A score, sample by sample: its value is `numerator.sum() / denominator.sum()`."""

    numerator: Floats
    denominator: Floats

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.numerator)

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.numerator.sum() / self.denominator.sum())

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate of `(replicates, n)` counts."""
        ratio: Floats = (counts @ self.numerator) / (counts @ self.denominator)
        return ratio


class Root(NamedTuple):
    """The square root of a score that is a mean of squares."""

    square: Terms

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.square.samples

    @property
    def value(self) -> float:
        """The score over all samples."""
        return math.sqrt(self.square.value)

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate of `(replicates, n)` counts."""
        root: Floats = np.sqrt(self.square.replicates(counts))
        return root


def whole(n: int) -> Floats:
    """Return the counts of the sample as it is, one row of ones."""
    return np.ones((1, n))


def mean_of_defined(scores: Floats) -> Floats:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(defined, scores, 0.0).sum(-1) / defined.sum(-1)
    return mean


def classes_of(prediction: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Return the predicted classes, once their shape is the labels' shape.

    Floats of the labels' own shape are probabilities of class 1 (binary, or one a label).

    Raises:
        DataError: the shapes do not fit each other.
    """
    if prediction.dtype.kind in "iub":
        classes = prediction
    elif prediction.shape == labels.shape and prediction.ndim:
        classes = (binary(prediction, labels) > 0.5).astype(np.int64)
    else:
        classes = prediction.argmax(-1) if prediction.ndim else prediction
    if classes.shape != labels.shape:
        raise DataError(
            f"predictions of {classes.shape} do not fit labels of {labels.shape}; "
            "both need the same samples in the same order"
        )
    return classes


def binary(prediction: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Return probabilities of class 1 once they and their labels are what they should be.

    Raises:
        DataError: probabilities outside 0 to 1, NaN, or labels other than 0 and 1.
    """
    faults = []
    if not ((prediction >= 0) & (prediction <= 1)).all():
        faults.append(
            f"expected probabilities of class 1, got {prediction.min()} to {prediction.max()}; "
            "apply the sigmoid to logits, and leave out rows of NaN"
        )
    faults += _label_faults(labels, 2)
    if faults:
        raise DataError("; ".join(faults))
    return prediction


def probabilities_of(prediction: NDArray[Any], labels: Labels, what: str) -> NDArray[Any]:
    """Return checked probabilities `(n, ..., classes)` in the precision they came in.

    Args:
        prediction: `(n, ..., classes)` probabilities, or of the labels' shape those of class 1.
        labels: `(n, ...)` int64.
        what: the score that needs them, for the message.

    Raises:
        DataError: decided classes, shapes or labels that do not fit, logits, NaN.
    """
    _refuse_votes(prediction, what)
    if prediction.shape == labels.shape and prediction.ndim:
        one = binary(prediction, labels)
        return np.stack([1 - one, one], -1)
    classes_of(prediction, labels)
    faults = _label_faults(labels, prediction.shape[-1]) + _probability_faults(prediction)
    if faults:
        raise DataError("; ".join(faults))
    return prediction


def scores_of(prediction: NDArray[Any], labels: Labels, what: str) -> NDArray[Any]:
    """Return scores by class, of any scale, that can be ranked: `(n, ..., classes)`.

    Scores of the labels' own shape are those of class 1 and come back as they are.

    Raises:
        DataError: decided classes, shapes or labels that do not fit, NaN.
    """
    _refuse_votes(prediction, what)
    alone = prediction.shape == labels.shape and prediction.ndim > 0
    if not alone:
        classes_of(prediction, labels)
    faults = _label_faults(labels, 2 if alone else prediction.shape[-1])
    if np.isnan(prediction).any():
        faults.append("predictions have NaN; leave out the rows that no member has a say on")
    if faults:
        raise DataError("; ".join(faults))
    return prediction


def chosen(probabilities: NDArray[Any], labels: Labels) -> Floats:
    """Return the probability of each true class, `(n, ...)` float64."""
    return np.take_along_axis(probabilities, labels[..., None], -1)[..., 0].astype(np.float64)


def per_sample(values: NDArray[Any]) -> NDArray[Any]:
    """Return `(n, ...)` values as `(n, cases of a sample)`."""
    return values.reshape(len(values), -1)


def _refuse_votes(prediction: NDArray[Any], what: str) -> None:
    if prediction.dtype.kind != "f":
        raise DataError(f"{what} needs probabilities, but these are decided classes (a vote)")


def _label_faults(labels: Labels, classes: int) -> list[str]:
    if labels.dtype.kind not in "iub":
        return [
            f"labels of {labels.dtype} are no classes; number them from 0: "
            "np.unique(labels, return_inverse=True)"
        ]
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        return [
            f"labels from {labels.min()} to {labels.max()} do not fit predictions of "
            f"{classes} classes; number them from 0"
        ]
    return []


def _probability_faults(prediction: NDArray[Any]) -> list[str]:
    sums = prediction.sum(-1, dtype=np.float64)
    if np.isnan(sums).any():
        return ["predictions have NaN; leave out the rows that no member has a say on"]
    if prediction.size and prediction.min() < 0:
        return [
            f"expected probabilities, got numbers down to {prediction.min():.4g}; "
            "these look like logits or log-probabilities: apply softmax or exp first"
        ]
    off = np.abs(sums - 1).max() if sums.size else 0.0
    if off > _SUM_TOLERANCE:
        worst = sums.flat[np.abs(sums - 1).argmax()]
        return [
            f"probabilities sum to {worst:.4g} instead of 1; apply softmax or divide by the sum"
        ]
    return []

"""Scores of an order: AUROC and the area under the risk-coverage curve, sorted once."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics.base import (
    Counts,
    Floats,
    Labels,
    mean_of_defined,
    per_sample,
    probabilities_of,
    scores_of,
    whole,
)


class OneVersusRest(NamedTuple):
    """Positives and negatives of one class, ready to be weighted.

    Attributes:
        negatives: cases that are not of the class, by rising score.
        positives: cases of the class.
        below: for each positive, how many negatives have a lower score.
        not_above: for each positive, how many have a lower or the same score.
    """

    negatives: NDArray[np.int64]
    positives: NDArray[np.int64]
    below: NDArray[np.int64]
    not_above: NDArray[np.int64]

    def area(self, weights: Counts) -> float:
        """Return the weighted share of pairs in the right order, ties as half."""
        passed = np.zeros(len(self.negatives) + 1)
        np.cumsum(weights[self.negatives], dtype=np.float64, out=passed[1:])
        positives = weights[self.positives].astype(np.float64)
        pairs = 2 * positives.sum() * passed[-1]
        # A product and a sum: the matrix product would wait for threads on so few numbers.
        ordered = (positives * (passed[self.below] + passed[self.not_above])).sum()
        return float(ordered / pairs) if pairs else np.nan


class Ranking(NamedTuple):
    """AUROC: one ranking of positives among negatives a class, and the mean of their areas.

    Attributes:
        rankings: one a class, or one alone for two classes.
        samples: number of samples.
        cases: of a sample.
    """

    rankings: tuple[OneVersusRest, ...]
    samples: int
    cases: int

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.replicates(whole(self.samples))[0])

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate of `(replicates, n)` counts; NaN without a pair."""
        return mean_of_defined(self.areas(counts))

    def areas(self, counts: Counts) -> Floats:
        """Return the area of each class in each replicate: `(replicates, classes)`."""
        found = np.empty((len(counts), len(self.rankings)))
        for number, weights in enumerate(counts):
            each = weights if self.cases == 1 else np.repeat(weights, self.cases)
            found[number] = [ranking.area(each) for ranking in self.rankings]
        return found


def auroc(prediction: NDArray[Any], labels: Labels) -> Ranking:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties as half.

    Two classes give the area of class 1; more give the mean over classes, each against the rest;
    `(n, labels)` scores with labels of the same shape the mean over labels. What has no positive
    or no negative is left out, also replicate by replicate. Over heads each position is a case.

    Args:
        prediction: `(n, ..., classes)` scores of any scale, or `(n,)` or `(n, labels)` scores of
            class 1.
        labels: `(n, ...)` int64.

    Raises:
        DataError: decided classes, NaN, or shapes or labels that do not fit.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])).value
        0.75
    """
    scores = scores_of(prediction, labels, "AUROC")
    if scores.shape == labels.shape:
        columns = per_sample(scores), per_sample(labels)
        # Column k of sample i is case `width * i + k`, as when counts are repeated a sample.
        width = columns[0].shape[1]
        rankings = [
            _ranked(columns[0][:, k], columns[1][:, k] == 1, width, k) for k in range(width)
        ]
        return Ranking(tuple(rankings), len(labels), width)
    classes, cases = scores.shape[-1], per_sample(labels).shape[1]
    flat, true = scores.reshape(-1, classes), labels.ravel()
    wanted = [1] if classes == 2 else range(classes)
    return Ranking(tuple(_ranked(flat[:, k], true == k) for k in wanted), len(labels), cases)


class RiskCoverage(NamedTuple):
    """The area under the risk-coverage curve, from cases by falling confidence.

    Attributes:
        order: cases by falling confidence.
        wrong: 1.0 where the case in that order is wrong.
        ends: the last case of each run of equal confidence.
        samples: number of samples.
        cases: of a sample.
    """

    order: NDArray[np.int64]
    wrong: Floats
    ends: NDArray[np.int64]
    samples: int
    cases: int

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.replicates(whole(self.samples))[0])

    def replicates(self, counts: Counts) -> Floats:
        """Return the score of each replicate of `(replicates, n)` counts."""
        return np.array([self._area(np.repeat(row, self.cases)) for row in counts])

    def _area(self, weights: Counts) -> float:
        sorted_weights = weights[self.order].astype(np.float64)
        covered = np.cumsum(sorted_weights)[self.ends]
        errors = np.cumsum(sorted_weights * self.wrong)[self.ends]
        share = np.diff(covered, prepend=0.0) / covered[-1]
        # Where nothing is covered yet nothing is weighted either.
        return float((share * (errors / np.maximum(covered, 1.0))).sum())


def aurc(prediction: NDArray[Any], labels: Labels) -> RiskCoverage:
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017): 0 is best.

    The mean over samples of the error rate among all samples that the model is at least as sure
    of; how sure it is, is its largest probability. Equal confidences enter together, so the order
    of samples does not matter. Over heads each position is a case.

    Args:
        prediction: `(n, ..., classes)` probabilities, or `(n, ...)` probabilities of class 1.
        labels: `(n, ...)` int64.

    Raises:
        DataError: decided classes or logits instead of probabilities, NaN, or shapes or labels
            that do not fit.

    Example:
        >>> sure_and_right = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> aurc(sure_and_right, np.array([0, 1])).value
        0.25
    """
    probabilities = probabilities_of(prediction, labels, "AURC")
    confidence = probabilities.max(-1).ravel()
    wrong = (probabilities.argmax(-1) != labels).ravel()
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    ends = np.flatnonzero(np.append(sorted_confidence[1:] != sorted_confidence[:-1], True))
    cases = per_sample(labels).shape[1]
    return RiskCoverage(order, wrong[order].astype(np.float64), ends, len(labels), cases)


def _ranked(
    scores: NDArray[Any], positive: NDArray[np.bool_], step: int = 1, offset: int = 0
) -> OneVersusRest:
    """Rank positives among negatives; case i of them is number `step * i + offset` of all."""
    positives, negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    rising = scores[negatives]
    return OneVersusRest(
        step * negatives + offset,
        step * positives + offset,
        np.searchsorted(rising, scores[positives], "left"),
        np.searchsorted(rising, scores[positives], "right"),
    )

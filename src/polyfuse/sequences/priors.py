"""What training labels tell before an image is seen: characters by position, lengths."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import array_of
from polyfuse.sequences.base import IMPOSSIBLE, Floats, Labels, check_strings, lengths_of

STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)


def position_prior(labels: Any, *, classes: int, smoothing: float = 1.0) -> Floats:
    """Return how often each class is seen at each position, as log-probabilities.

    Args:
        labels: `(sample, position)` int64 of training rows, the blank among the classes.
        classes: how many there are.
        smoothing: added to each count (Laplace 1812): what was never seen stays possible.

    Returns:
        `(position, class)` float64; each row's probabilities sum to 1.

    Raises:
        DataError: labels that are none, or a negative smoothing.

    Example:
        >>> np.exp(position_prior(np.array([[0, 2], [1, 2]]), classes=3)).round(2).tolist()
        [[0.4, 0.4, 0.2], [0.2, 0.2, 0.6]]
    """
    array = array_of(labels)
    checked = check_strings(array, (len(array), array.shape[-1]), classes)
    counts = [np.bincount(column, minlength=classes) for column in checked.T]
    return _log_shares(np.array(counts, np.float64), smoothing)


def length_prior(labels: Any, *, blank: int, smoothing: float = 1.0) -> Floats:
    """Return how often each length is seen, as log-probabilities.

    Args:
        labels: `(sample, position)` int64 of training rows.
        blank: the class that means "no character".
        smoothing: added to each count.

    Returns:
        `(position + 1,)` float64: of the lengths 0 to `position`.

    Raises:
        DataError: labels that are none, or a negative smoothing.

    Example:
        >>> np.exp(length_prior(np.array([[4, 10], [4, 2]]), blank=10)).round(1).tolist()
        [0.2, 0.4, 0.4]
    """
    array = array_of(labels)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise DataError(
            f"expected (sample, position) integer classes, got {array.dtype} of shape {array.shape}"
        )
    counts = np.bincount(lengths_of(array, blank=blank), minlength=array.shape[1] + 1)
    return _log_shares(counts.astype(np.float64), smoothing)


def apply_prior(heads: Any, log_prior: Any, strength: float) -> NDArray[Any]:
    """Return log-probabilities times a prior: `log p + strength * log_prior`, normalised.

    A net that was trained on rows like those it now reads has learned their frequencies already:
    strength 1 counts them twice, and only validation can say which strength helps. Of a net that
    was trained on balanced characters strength 1 is Bayes' rule (Saerens et al. 2002, eq. 2.4).

    Args:
        heads: `(..., class)` log-probabilities: of characters, or of lengths.
        log_prior: what `position_prior` or `length_prior` gave; its shape ends that of `heads`.
        strength: 0 changes nothing, to the bit.

    Returns:
        As `heads`, in its precision.

    Raises:
        DataError: shapes that do not fit, or a strength that is no finite number.

    Example:
        >>> np.exp(apply_prior(np.log([0.5, 0.5]), np.log([0.9, 0.1]), 1.0)).round(2).tolist()
        [0.9, 0.1]
    """
    array, prior = array_of(heads), array_of(log_prior)
    if not np.isfinite(strength):
        raise DataError(f"strength={strength} is no finite number; 0 leaves the prior out")
    if array.dtype.kind != "f" or not 0 < prior.ndim <= array.ndim:
        raise DataError(
            f"a prior of shape {prior.shape} does not fit {array.dtype} scores of {array.shape}"
        )
    if array.shape[array.ndim - prior.ndim :] != prior.shape:
        raise DataError(
            f"a prior of shape {prior.shape} does not fit scores of {array.shape}; estimate it on "
            "labels of as many positions and classes"
        )
    if strength == 0:
        return array
    wide = np.maximum(array.astype(np.float64), IMPOSSIBLE) + strength * np.maximum(
        prior, IMPOSSIBLE
    )
    top = wide.max(-1, keepdims=True)
    normal = wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))
    return np.asarray(normal, array.dtype)


def fit_strength(
    read: Callable[[float], Any], labels: Any, *, strengths: Sequence[float] = STRENGTHS
) -> float:
    """Return the strength with which most strings are read right: 0 unless another one is better.

    So a prior, a weight of lengths or a lexicon can only help on the rows it is fitted on. Its
    score there is not an honest one: cross-fit it.

    Args:
        read: returns `(sample, position)` decided strings, given a strength.
        labels: `(sample, position)` int64, of rows that no member trained on.
        strengths: to try; 0 is always tried.

    Returns:
        The best one; of equals the one nearest to 0.

    Raises:
        DataError: what is read does not fit the labels.

    Example:
        >>> fit_strength(lambda s: np.array([[int(s > 0.3)]]), np.array([[1]]))
        0.35
    """
    truth = array_of(labels)
    tried = sorted({0.0, *map(float, strengths)}, key=lambda s: (abs(s), s))
    right = [_right(array_of(read(strength)), truth) for strength in tried]
    return tried[int(np.argmax(right))]


def _right(read: NDArray[Any], truth: Labels) -> int:
    if read.shape != truth.shape or read.dtype.kind not in "iu":
        raise DataError(
            f"read {read.dtype} of shape {read.shape}, but labels are of {truth.shape}; read must "
            "return (sample, position) decided classes of the same rows"
        )
    return int((read == truth).all(-1).sum())


def _log_shares(counts: Floats, smoothing: float) -> Floats:
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise DataError(f"smoothing={smoothing} must be a finite number of 0 or more")
    raised = counts + smoothing
    total = raised.sum(-1, keepdims=True)
    if not (total > 0).all():
        raise DataError("there are no labels to count; give training rows, or a smoothing above 0")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(raised / total))

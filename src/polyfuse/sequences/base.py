"""What all of this folder shares: heads read as strings, where they end, what a string scores."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import array_of

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

DIGITS = "0123456789"
# What a probability of 0 counts in a sum of logarithms: one that is impossible is worse than any
# that are not, two are worse than one, and differences of 1e-9 beside it are still seen.
IMPOSSIBLE = -1e6
_SLACK = 0.01  # of a sum of probabilities: float16 keeps three digits


def decode(prediction: Any, *, blank: int) -> Labels:
    """Read strings off the heads: the best class a head, and nothing after the first blank.

    Args:
        prediction: `(sample, position, class)` logits or probabilities, or `(sample, position)`
            integer classes.
        blank: the class that means "no character".

    Returns:
        `(sample, position)` int64, blank from the first blank on.

    Raises:
        DataError: another number of axes.

    Example:
        >>> decode(np.array([[4, 2, 10, 7]]), blank=10).tolist()
        [[4, 2, 10, 10]]
    """
    classes, blank = best_classes(prediction, blank)
    ended = np.logical_or.accumulate(classes == blank, axis=1)
    return np.where(ended, blank, classes).astype(np.int64)


def best_classes(prediction: Any, blank: int) -> tuple[NDArray[Any], int]:
    """Return `(sample, position)` classes, and the number of the blank one.

    Args:
        prediction: as `decode` takes it.
        blank: -1 is the last class, where there are scores.

    Raises:
        DataError: another number of axes, or no such class.

    Example:
        >>> best_classes(np.array([[[0.2, 0.8]]]), -1)
        (array([[1]]), 1)
    """
    array = array_of(prediction)
    decided = array.dtype.kind in "iu"
    if array.ndim != (2 if decided else 3) or (not decided and not array.shape[2]):
        raise DataError(
            f"expected (sample, position, class) scores or (sample, position) integer classes, got "
            f"{array.dtype} of shape {array.shape}"
        )
    if decided:
        return array, blank
    return array.argmax(-1), blank_of(blank, array.shape[2])


def blank_of(blank: int, classes: int) -> int:
    """Return the number of the blank class; -1 is the last one.

    Raises:
        DataError: there is no such class.

    Example:
        >>> blank_of(-1, 11)
        10
    """
    if not -classes <= blank < classes:
        raise DataError(f"blank={blank} is no class of {classes}, numbered 0 to {classes - 1}")
    return blank % classes


def lengths_of(labels: Any, *, blank: int) -> Labels:
    """Return how many characters come before the first blank.

    Args:
        labels: `(..., position)` integer classes.
        blank: the class that means "no character".

    Returns:
        `(...)` int64.

    Example:
        >>> lengths_of(np.array([[4, 2, 10, 7], [1, 2, 3, 4]]), blank=10).tolist()
        [2, 4]
    """
    array = array_of(labels)
    return np.asarray((claimed(array, blank) & (array != blank)).sum(-1), np.int64)


def claimed(labels: NDArray[Any], blank: int) -> NDArray[np.bool_]:
    """Tell which positions a string speaks of: its characters and the first blank.

    Example:
        >>> claimed(np.array([[4, 10, 10]]), 10).tolist()
        [[True, True, False]]
    """
    there = np.ones(labels.shape, bool)
    there[..., 1:] = ~np.logical_or.accumulate(labels == blank, axis=-1)[..., :-1]
    return there


def heads_of(heads: Any, blank: int) -> tuple[Floats, int]:
    """Return log-probabilities as float64, none below `IMPOSSIBLE`, and the blank's number.

    Args:
        heads: `(sample, position, class)` log-probabilities, floating; `-inf` is a 0.
        blank: -1 is the last class.

    Raises:
        DataError: other shapes, a single class, NaN, or what are no log-probabilities.

    Example:
        >>> heads_of(np.log([[[0.5, 0.5]]]), -1)[0].round(3).tolist()
        [[[-0.693, -0.693]]]
    """
    array = array_of(heads)
    if array.ndim != 3 or array.dtype.kind != "f" or 0 in array.shape[1:] or array.shape[2] < 2:
        raise DataError(
            "expected (sample, position, class) floating log-probabilities of two classes or more, "
            f"got {array.dtype} of shape {array.shape}"
        )
    wide = array.astype(np.float64)
    with np.errstate(over="ignore"):
        sums = np.exp(wide).sum(-1)
    if not (np.abs(sums - 1) <= _SLACK).all():
        worst = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
        raise DataError(
            f"these are no log-probabilities: in row {worst[0]}, position {worst[1]} the "
            f"probabilities sum to {sums[worst]:.4g}; of logits z they are "
            "z - logsumexp(z, -1, keepdims=True), of probabilities p they are log(p)"
        )
    return np.maximum(wide, IMPOSSIBLE), blank_of(blank, array.shape[2])


def length_scores_of(lengths: Any, rows: int, positions: int) -> Floats:
    """Return what each length scores by itself, `(sample, position + 1)` float64; 0 where None.

    Args:
        lengths: `(sample, position + 1)`, or `(position + 1,)` for all rows alike; `-inf` rules a
            length out.
        rows: samples.
        positions: the longest length.

    Raises:
        DataError: another shape, NaN or +inf.

    Example:
        >>> length_scores_of(None, 1, 2).tolist()
        [[0.0, 0.0, 0.0]]
    """
    if lengths is None:
        return np.zeros((rows, positions + 1))
    array = array_of(lengths)
    if array.dtype.kind not in "iuf" or array.shape not in (
        (rows, positions + 1),
        (positions + 1,),
    ):
        raise DataError(
            f"expected ({rows}, {positions + 1}) scores, one for each length from 0 to {positions},"
            f" got {array.dtype} of shape {array.shape}"
        )
    wide = array.astype(np.float64)
    if np.isnan(wide).any() or (wide == np.inf).any():
        raise DataError("scores of lengths hold NaN or +inf; give finite numbers, or -inf for 'no'")
    return np.broadcast_to(np.maximum(wide, IMPOSSIBLE), (rows, positions + 1))


def check_strings(labels: Any, shape: tuple[int, int], classes: int) -> Labels:
    """Return decided strings as int64, refused where they do not fit the heads.

    Args:
        labels: `(sample, position)` integer classes.
        shape: that they must have.
        classes: of the heads.

    Raises:
        DataError: another shape, no integers, or numbers that are no classes.

    Example:
        >>> check_strings(np.array([[1, 0]]), (1, 2), 2).tolist()
        [[1, 0]]
    """
    array = array_of(labels)
    if array.dtype.kind not in "iu" or array.shape != shape:
        raise DataError(
            f"expected {shape} integer classes, got {array.dtype} of shape {array.shape}"
        )
    if array.size and not 0 <= array.min() <= array.max() < classes:
        raise DataError(
            f"classes from {array.min()} to {array.max()} do not fit {classes} classes, which are "
            f"numbered 0 to {classes - 1}"
        )
    return np.asarray(array, np.int64)


def string_scores(heads: Floats, labels: Labels, lengths: Floats, *, blank: int) -> Floats:
    """Return what strings score: their characters, the blanks after them, and their length.

    Args:
        heads: `(sample, position, class)` log-probabilities, checked.
        labels: `(sample, position)`, blank from the first blank on.
        lengths: `(sample, position + 1)`.
        blank: the class that means "no character".

    Returns:
        `(sample,)`.

    Example:
        >>> string_scores(np.log([[[0.5, 0.5]]]), np.array([[1]]), np.zeros((1, 2)), blank=1)
        array([-0.69314718])
    """
    said = np.take_along_axis(heads, labels[..., None], -1)[..., 0].sum(-1)
    own = lengths_of(labels, blank=blank)
    return np.asarray(said + np.take_along_axis(lengths, own[:, None], 1)[:, 0])

"""Ways to read heads as strings: blanks dropped, the length decided jointly, the k best strings."""

from collections.abc import Callable
from typing import Any

import numpy as np

from polyfuse.errors import DataError
from polyfuse.sequences.base import (
    Floats,
    Labels,
    best_classes,
    decode,
    heads_of,
    length_scores_of,
)

_CELLS = 1 << 22  # numbers held at a time


def drop_blanks(prediction: Any, *, blank: int) -> Labels:
    """Read strings off the heads: the best class a head, blanks left out wherever they are.

    What many a script does. It reads on after the end of a string: where a head after the first
    blank is unsure, its guess becomes a character. `joint_decode` weighs that guess instead.

    Args:
        prediction: `(sample, position, class)` logits or probabilities, or `(sample, position)`
            integer classes.
        blank: the class that means "no character".

    Returns:
        `(sample, position)` int64, characters first, then blanks.

    Raises:
        DataError: another number of axes.

    Example:
        >>> drop_blanks(np.array([[4, 10, 2, 10]]), blank=10).tolist()
        [[4, 2, 10, 10]]
    """
    classes, blank = best_classes(prediction, blank)
    order = np.argsort(classes == blank, axis=1, kind="stable")
    return np.take_along_axis(classes, order, 1).astype(np.int64)


def joint_scores(
    heads: Any, lengths: Any = None, *, blank: int, length_weight: float = 1.0
) -> Floats:
    """Return what the best string of each length scores (Goodfellow et al. 2013, section 4).

    The score of length L is `w ln P(L) + sum_{i<=L} max_c ln p_i(c) + sum_{i>L} ln p_i(blank)`,
    the maximum being over characters, not the blank. The paper's own heads have no blank: there
    the last sum is absent.

    Args:
        heads: `(sample, position, class)` log-probabilities.
        lengths: `(sample, position + 1)` log-probabilities of the lengths 0 to `position`, of a
            length head or of a model of its own. None: the heads alone decide.
        blank: the class that means "no character"; -1 is the last one.
        length_weight: w.

    Returns:
        `(sample, position + 1)` float64; -1e6 for each probability of 0.

    Raises:
        DataError: shapes that do not fit, NaN, or no log-probabilities.

    Example:
        >>> heads = np.log([[[0.6, 0.4], [0.3, 0.7]]])  # the character "a", the blank
        >>> joint_scores(heads, blank=1).round(2).tolist()
        [[-1.27, -0.87, -1.71]]
    """
    wide, blank = heads_of(heads, blank)
    return _scored(wide, lengths, blank, length_weight)


def joint_decode(
    heads: Any,
    lengths: Any = None,
    *,
    blank: int,
    length_weight: float = 1.0,
    log_prior: Any = None,
) -> Labels:
    """Read the most probable string: its length is decided together with its characters.

    Of the first blank alone, a single unsure head can cut a string short or make it longer. Here
    every head, and the length head, has a say in where the string ends.

    Args:
        heads: `(sample, position, class)` log-probabilities.
        lengths: `(sample, position + 1)` log-probabilities of lengths, or None.
        blank: the class that means "no character"; -1 is the last one.
        length_weight: of `lengths`.
        log_prior: `(position + 1,)` added to the score of each length, as `length_prior` gives
            it, perhaps times a strength.

    Returns:
        `(sample, position)` int64; of lengths that score the same, the shortest.

    Raises:
        DataError: shapes that do not fit, NaN, or no log-probabilities.

    Example:
        >>> heads = np.log([[[0.9, 0.1], [0.49, 0.51], [0.9, 0.1]]])
        >>> decode(heads, blank=1).tolist(), joint_decode(heads, blank=1).tolist()
        ([[0, 1, 1]], [[0, 0, 0]])
    """
    wide, blank = heads_of(heads, blank)
    scores = _scored(wide, lengths, blank, length_weight)
    if log_prior is not None:
        scores = scores + length_scores_of(log_prior, *wide.shape[:2])
    best = _without(wide, blank).argmax(-1)
    inside = np.arange(best.shape[1]) < scores.argmax(1)[:, None]
    return np.where(inside, best, blank).astype(np.int64)


def best_strings(heads: Any, k: int, *, blank: int, lengths: Any = None) -> tuple[Labels, Floats]:
    """Return the k most probable strings of each sample, the best first.

    Exact: the k best beginnings of length L + 1 begin with one of the k best of length L.

    Args:
        heads: `(sample, position, class)` log-probabilities.
        k: how many; fewer come back where there are not so many strings.
        blank: the class that means "no character"; -1 is the last one.
        lengths: `(sample, position + 1)` added to the score of each length, already weighted.

    Returns:
        `(sample, k, position)` int64 strings and `(sample, k)` float64 scores, as `joint_scores`
        has them. The first is what `joint_decode` reads.

    Raises:
        DataError: shapes that do not fit, NaN, no log-probabilities, or k below 1.

    Example:
        >>> heads = np.log([[[0.6, 0.4], [0.3, 0.7]]])
        >>> best_strings(heads, 2, blank=1)[0].tolist()
        [[[0, 1], [1, 1]]]
    """
    if type(k) is not int or k < 1:
        raise DataError(f"k={k!r} strings cannot be asked for; give a whole number of 1 or more")
    wide, blank = heads_of(heads, blank)
    rows, positions, classes = wide.shape
    own = length_scores_of(lengths, rows, positions)
    step = max(1, _CELLS // (min(k, classes**positions) * positions * (positions + classes)))
    parts = [
        _best(wide[start : start + step], own[start : start + step], k, blank)
        for start in range(0, max(rows, 1), step)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


DECODERS: dict[str, Callable[..., Labels]] = {
    "first_blank": decode,
    "drop_blanks": drop_blanks,
    "joint_length": joint_decode,
}


def _scored(heads: Floats, lengths: Any, blank: int, weight: float) -> Floats:
    own = length_scores_of(lengths, *heads.shape[:2])
    return _characters(heads, blank) + _tails(heads, blank) + weight * own


def _without(heads: Floats, blank: int) -> Floats:
    """Return the heads with the blank ruled out."""
    characters = heads.copy()
    characters[..., blank] = -np.inf
    return characters


def _characters(heads: Floats, blank: int) -> Floats:
    """Return the score of the best L characters, for each L from 0, `(sample, position + 1)`."""
    best = _without(heads, blank).max(-1)
    return np.cumsum(np.pad(best, ((0, 0), (1, 0))), axis=1)


def _tails(heads: Floats, blank: int) -> Floats:
    """Return the score of blanks from position L on, for each L, `(sample, position + 1)`."""
    blanks = np.pad(heads[..., blank], ((0, 0), (0, 1)))
    return np.cumsum(blanks[:, ::-1], axis=1)[:, ::-1]


def _best(heads: Floats, lengths: Floats, k: int, blank: int) -> tuple[Labels, Floats]:
    rows, positions, classes = heads.shape
    characters, tails = _without(heads, blank), _tails(heads, blank)
    order = np.argsort(-characters, axis=-1, kind="stable")[..., : min(k, classes - 1)]
    scores = np.zeros((rows, 1))
    begun = np.full((rows, 1, positions), blank, np.int64)
    found, totals = [], []
    for length in range(positions + 1):
        found.append(begun)
        totals.append(scores + tails[:, length, None] + lengths[:, length, None])
        if length < positions:
            scores, begun = _longer(scores, begun, characters, order, length, k)
    every = np.concatenate(totals, 1)
    first = np.argsort(-every, axis=1, kind="stable")[:, :k]
    read = np.take_along_axis(np.concatenate(found, 1), first[..., None], 1)
    return read, np.take_along_axis(every, first, 1)


def _longer(
    scores: Floats, begun: Labels, characters: Floats, order: Labels, place: int, k: int
) -> tuple[Floats, Labels]:
    """Return the k best beginnings that are one character longer."""
    next_best = order[:, place]
    gains = np.take_along_axis(characters[:, place], next_best, 1)
    every = scores[:, :, None] + gains[:, None, :]
    every = every.reshape(len(scores), scores.shape[1] * gains.shape[1])
    first = np.argsort(-every, axis=1, kind="stable")[:, :k]
    parent, added = np.divmod(first, next_best.shape[1])
    longer = np.take_along_axis(begun, parent[..., None], 1)
    longer[..., place] = np.take_along_axis(next_best, added, 1)
    return np.take_along_axis(every, first, 1), longer

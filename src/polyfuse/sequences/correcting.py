"""Corrections of strings: forbidden patterns, a lexicon, and a list of what changed."""

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.fitting import array_of
from polyfuse.sequences.base import (
    DIGITS,
    Floats,
    Labels,
    check_strings,
    heads_of,
    length_scores_of,
    lengths_of,
    string_scores,
)
from polyfuse.sequences.decoding import best_strings
from polyfuse.sequences.text import strings

LONGEST_PATTERN = 100
_SEARCHED = 4096  # strings a sample, the best first
_CELLS = 1 << 22  # numbers held at a time


class Change(NamedTuple):
    """One answer that a correction has changed.

    Attributes:
        name: of the row.
        before: the string that was read.
        after: the string that stands now.
        why: the correction.
    """

    name: str
    before: str
    after: str
    why: str


def changes(
    before: Sequence[str], after: Sequence[str], names: Sequence[str], why: str | Sequence[str]
) -> list[Change]:
    """List every answer that changed, in the order of the rows.

    Args:
        before: one text a row.
        after: likewise.
        names: of the rows.
        why: one reason for all, or one a row.

    Raises:
        DataError: lists of several lengths.

    Example:
        >>> changes(["01", "7"], ["91", "7"], ["a.png", "b.png"], "no leading zero")
        [Change(name='a.png', before='01', after='91', why='no leading zero')]
    """
    reasons = [why] * len(before) if isinstance(why, str) else list(why)
    sizes = [len(before), len(after), len(names), len(reasons)]
    if len(set(sizes)) > 1:
        raise DataError(
            f"before, after, names and why have {', '.join(map(str, sizes))} rows; give one a row"
        )
    every = zip(names, before, after, reasons, strict=True)
    return [Change(*row) for row in every if row[1] != row[2]]


def matches(texts: Sequence[str], patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which texts match one of these patterns as a whole.

    Args:
        texts: any.
        patterns: `*` stands for any characters, `?` for one, `[05]` for one of these, `[!05]` for
            one that is none of these; the rest for itself. `0?*` is a leading zero.

    Raises:
        DataError: patterns that are no texts, or too long.

    Example:
        >>> matches(["0", "07", "70"], ["0?*"]).tolist()
        [False, True, False]
    """
    rules = [re.compile(translate(_checked(pattern))) for pattern in patterns]
    return np.array([any(rule.match(text) for rule in rules) for text in texts], bool)


def forbid(
    read: Any,
    heads: Any,
    patterns: Sequence[str],
    *,
    blank: int,
    alphabet: str = DIGITS,
    lengths: Any = None,
) -> Labels:
    """Replace strings that match a forbidden pattern by the most probable one that matches none.

    Args:
        read: `(sample, position)` decided strings.
        heads: `(sample, position, class)` log-probabilities.
        patterns: as `matches` takes them, of the written strings: `0?*` forbids leading zeros, the
            empty pattern forbids the empty string.
        blank: the class that means "no character".
        alphabet: that strings are written in.
        lengths: `(sample, position + 1)` added to the score of each length, already weighted.

    Returns:
        `(sample, position)` int64. A string stays where the 4,096 best are all forbidden.

    Raises:
        DataError: shapes that do not fit, no log-probabilities, or patterns that are none.

    Example:
        >>> heads = np.log([[[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]])
        >>> forbid(np.array([[0, 1]]), heads, ["0?*"], blank=2, alphabet="01").tolist()
        [[1, 1]]
    """
    wide, blank = heads_of(heads, blank)
    fixed = check_strings(read, wide.shape[:2], wide.shape[2]).copy()
    own = length_scores_of(lengths, *wide.shape[:2])
    left = np.flatnonzero(matches(strings(fixed, blank=blank, alphabet=alphabet), patterns))
    k = 16
    while len(left) and k <= _SEARCHED:
        found, _ = best_strings(wide[left], k, blank=blank, lengths=own[left])
        texts = strings(found.reshape(-1, found.shape[2]), blank=blank, alphabet=alphabet)
        allowed = ~matches(texts, patterns).reshape(found.shape[:2])
        some = allowed.any(1)
        fixed[left[some]] = found[some, allowed[some].argmax(1)]
        exhausted = found.shape[1] < k
        left, k = left[~some], k * 16
        if exhausted:
            break
    return fixed


def lexicon(
    read: Any,
    heads: Any,
    words: Any,
    *,
    blank: int,
    strength: float = np.inf,
    lengths: Any = None,
) -> Labels:
    """Prefer strings of a lexicon: each of its words scores `strength` more than any other string.

    Args:
        read: `(sample, position)` decided strings.
        heads: `(sample, position, class)` log-probabilities.
        words: `(word, position)` labels, as `encode` makes them.
        blank: the class that means "no character".
        strength: natural logarithm of how many times more likely a word is; 0 changes nothing,
            infinity leaves nothing but words.
            A string that is a word stays as it was read.
        lengths: `(sample, position + 1)` added to the score of each length, already weighted.

    Returns:
        `(sample, position)` int64: the best word where it scores more than what was read.

    Raises:
        DataError: shapes that do not fit, no log-probabilities, no words, a negative strength.

    Example:
        >>> heads = np.log([[[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]])
        >>> lexicon(np.array([[0, 1]]), heads, np.array([[1, 1], [0, 2]]), blank=2).tolist()
        [[1, 1]]
    """
    wide, blank = heads_of(heads, blank)
    given = check_strings(read, wide.shape[:2], wide.shape[2])
    array = array_of(words)
    known = check_strings(array, (len(array), wide.shape[1]), wide.shape[2])
    if not len(known) or not strength >= 0:
        raise DataError(
            f"a lexicon needs words and a strength of 0 or more; got {len(known)} words and "
            f"strength={strength}"
        )
    if strength == 0:
        return given.copy()
    own = length_scores_of(lengths, *wide.shape[:2])
    word, gain = _best_words(wide, known, own, blank)
    before = string_scores(wide, given, own, blank=blank)
    better = ~_are_in(given, known) & (gain + strength > before)
    return np.where(better[:, None], known[word], given)


def _best_words(
    heads: Floats, words: Labels, lengths: Floats, blank: int
) -> tuple[NDArray[np.int64], Floats]:
    """Return the best word of each sample and its score, some samples at a time."""
    own = lengths_of(words, blank=blank)
    best, gain = np.zeros(len(heads), np.int64), np.zeros(len(heads))
    step = max(1, _CELLS // len(words))
    for start in range(0, len(heads), step):
        part = slice(start, start + step)
        scores = lengths[part][:, own]
        for place, column in enumerate(words.T):
            scores += heads[part, place][:, column]
        best[part] = scores.argmax(1)
        gain[part] = np.take_along_axis(scores, best[part][:, None], 1)[:, 0]
    return best, gain


def _are_in(given: Labels, words: Labels) -> NDArray[np.bool_]:
    known = set(map(tuple, words.tolist()))
    return np.array([tuple(row) in known for row in given.tolist()], bool)


def _checked(pattern: str) -> str:
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
        raise DataError(
            f"'{printable(pattern, 60)}' is no pattern: give a text of at most {LONGEST_PATTERN} "
            "characters, such as '0?*' for leading zeros"
        )
    return pattern

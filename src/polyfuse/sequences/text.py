"""Strings as text: labels written in an alphabet, and text encoded as labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyfuse.errors import DataError, printable
from polyfuse.sequences.base import DIGITS, Labels, decode

_SHOWN = 5


def strings(labels: Any, *, blank: int, alphabet: str = DIGITS) -> list[str]:
    """Write decoded labels as text.

    Args:
        labels: `(sample, position)` classes, or scores with an axis of classes.
        blank: the class that means "no character".
        alphabet: character c of it is what class c is written as.

    Raises:
        DataError: a class that has no character, or an alphabet that is none.

    Example:
        >>> strings(np.array([[4, 2, 10], [0, 10, 10]]), blank=10)
        ['42', '0']
        >>> strings(np.array([[0, 27, 52]]), blank=52, alphabet="abcdefghijklmnopqrstuvwxyzABC")
        ['aB']
    """
    check_alphabet(alphabet)
    read = decode(labels, blank=blank)
    characters = read[read != blank]
    if characters.size and not 0 <= characters.min() <= characters.max() < len(alphabet):
        odd = characters.max() if characters.max() >= len(alphabet) else characters.min()
        raise DataError(
            f"class {odd} has no character in an alphabet of {len(alphabet)}, "
            f"'{printable(alphabet, 60)}'; give the alphabet that the labels were made with"
        )
    return ["".join(alphabet[c] for c in row if c != blank) for row in read.tolist()]


def encode(
    texts: Sequence[str],
    *,
    positions: int | None = None,
    blank: int | None = None,
    alphabet: str = DIGITS,
) -> Labels:
    """Return labels of strings, padded right with the blank class; `strings` is the way back.

    Args:
        texts: strings of characters of the alphabet.
        positions: the longest length; that of the longest string where None, at least 1.
        blank: the class that means "no character"; the one after the alphabet's where None.
        alphabet: its character c becomes class c. Upper and lower case are different characters.

    Returns:
        `(text, position)` int64.

    Raises:
        DataError: characters that are not in the alphabet, strings that are too long, an alphabet
            that is none; all at once.

    Example:
        >>> encode(["42", "", "0"]).tolist()
        [[4, 2], [10, 10], [0, 10]]
        >>> encode(["Ab"], alphabet="abAB", positions=3).tolist()
        [[2, 1, 4]]
    """
    check_alphabet(alphabet)
    blank = len(alphabet) if blank is None else blank
    if blank < 0:
        raise DataError(f"blank={blank} is no class; classes are numbered from 0")
    known = {character: number for number, character in enumerate(alphabet) if number != blank}
    longest = max([len(text) for text in texts], default=0)
    positions = max(longest, 1) if positions is None else positions
    _refuse(texts, known, positions)
    labels = np.full((len(texts), positions), blank, np.int64)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = [known[character] for character in text]
    return labels


def check_alphabet(alphabet: str) -> None:
    """Refuse an alphabet that is empty or names a character twice.

    Raises:
        DataError: saying which.

    Example:
        >>> check_alphabet("0123")
    """
    if not isinstance(alphabet, str) or not alphabet:
        raise DataError("an alphabet is a text of one character a class, such as '0123456789'")
    twice = [c for number, c in enumerate(alphabet) if c in alphabet[:number]]
    if twice:
        raise DataError(f"the alphabet names '{printable(twice[0])}' twice; name each once")


def _refuse(texts: Sequence[str], known: dict[str, int], positions: int) -> None:
    faults = []
    for number, text in enumerate(texts):
        odd = next((character for character in text if character not in known), None)
        if odd is not None:
            faults.append(
                f"text {number}, '{printable(text, 40)}', has '{printable(odd)}', which is not in "
                "the alphabet"
            )
        if len(text) > positions:
            faults.append(
                f"text {number}, '{printable(text, 40)}', has {len(text)} characters, more than "
                f"{positions}"
            )
    if faults:
        more = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise DataError("\n".join([*faults[:_SHOWN], *more]))

"""Votes over texts: by the whole string, by position, or along an alignment."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from polyfuse import sequences

Answers = Sequence[Sequence[str]]


def string_vote(answers: Answers, weights: Sequence[float]) -> list[str]:
    """Let each file vote for its whole answer.

    Of answers with equal votes the one with the heaviest single voter wins, then the one whose
    first voter comes first: the best file belongs in the first place.

    Args:
        answers: `(file, row)` texts.
        weights: `(file,)` votes of each file, 0 or more; sums are exact, so that 0.1 + 0.2 and 0.3
            are a tie.

    Returns:
        One answer a row.

    Example:
        >>> string_vote([["12"], ["13"], ["13"]], [1, 1, 1]), string_vote([["12"], ["13"]], [1, 1])
        (['13'], ['12'])
    """
    votes = exact(weights)
    return [_elected(said, votes) for said in zip(*answers, strict=True)]


def position_vote(answers: Answers, weights: Sequence[float]) -> list[str]:
    """Let each file vote at each position for its character, or for the end of the string.

    An answer ends at the first position where "the end" wins. Ties as in `string_vote`.

    Args:
        answers: `(file, row)` texts.
        weights: `(file,)` votes of each file, 0 or more.

    Example:
        >>> position_vote([["12"], ["13"], ["23"]], [1, 1, 1])
        ['13']
    """
    votes = exact(weights)
    return [_by_position(said, votes) for said in zip(*answers, strict=True)]


def aligned_vote(answers: Answers, weights: Sequence[float]) -> list[str]:
    """Lay the answers of a row under each other, then vote place by place (ROVER, Fiscus 1997).

    Where files read strings of different lengths, a missing first digit puts all others into the
    wrong position; here it does not. Ties go to what the string with most votes says, and of
    strings with equal votes to the first file.

    Args:
        answers: `(file, row)` texts.
        weights: `(file,)` votes of each file, 0 or more.

    Example:
        >>> answers = [["1234"], ["234"], ["124"]]
        >>> aligned_vote(answers, [1, 1, 1]), position_vote(answers, [1, 1, 1])
        (['1234'], ['124'])
    """
    alphabet = "".join(sorted({sign for row in answers for text in row for sign in text})) or "0"
    longest = max([len(text) for row in answers for text in row], default=1)
    read = [sequences.encode(row, positions=max(longest, 1), alphabet=alphabet) for row in answers]
    blank = len(alphabet)
    voted = sequences.aligned_vote(np.stack(read), weights=exact(weights), blank=blank)
    return sequences.strings(voted, blank=blank, alphabet=alphabet)


VOTES: dict[str, Callable[[Answers, Sequence[float]], list[str]]] = {
    "string_vote": string_vote,
    "position_vote": position_vote,
    "aligned_vote": aligned_vote,
}


def exact(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in the same proportions as these, as they are written in decimals.

    Example:
        >>> exact([0.1, 0.2, 0.3])
        [1, 2, 3]
    """
    written = [Fraction(repr(float(weight))) for weight in weights]
    scale = lcm(*(weight.denominator for weight in written))
    return [int(weight * scale) for weight in written]


def _by_position(said: Sequence[str], votes: Sequence[int]) -> str:
    read = ""
    while elected := _elected([one[len(read) : len(read) + 1] for one in said], votes):
        read += elected
    return read


def _elected(said: Sequence[str], votes: Sequence[int]) -> str:
    """Return the text with the most votes, then the heaviest voter, then the first voter."""
    if len(set(said)) == 1:
        return said[0]
    total: dict[str, list[int]] = {}
    for text, vote in zip(said, votes, strict=True):
        held = total.setdefault(text, [0, 0])
        held[0] += vote
        held[1] = max(held[1], vote)
    return max(total, key=lambda text: total[text])  # the first of equal ones

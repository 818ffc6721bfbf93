"""A vote on strings of different lengths: they are aligned first, then voted on place by place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from polyfuse.sequences.ballots import Ballots, ballots_of

GAP = -1  # "nothing stands here"
Path = list[tuple[int | None, int | None]]
Column = list[int | None]
# As NIST's scoring aligns words: one replaced is better than one dropped and one added, but a
# shift by one is better than two replaced.
_REPLACED, _SKIPPED, _ADDED = 4, 3, 3
_ROUNDED = 9  # digits: other sums of the same weights may differ by rounding


class Voice(NamedTuple):
    """One string, and the members that read it.

    Attributes:
        characters: its classes.
        votes: summed weight of its members.
        sure: of each character, and of the end, the summed weight times probability.
    """

    characters: tuple[int, ...]
    votes: float
    sure: tuple[float, ...]


def aligned_vote(
    predictions: Any, *, weights: Any = None, space: str = "logit", blank: int = -1
) -> Any:
    """Align the members' strings, then vote place by place (ROVER, Fiscus 1997).

    A member that missed a character, or read one too many, has all later ones in the wrong
    position: a vote by position counts them as errors. Here the strings are laid under each other
    by edit distance (4 for a replaced character, 3 for a missing one): the one with most votes
    first, each next one along all that are there. At each place the votes are counted, "no
    character" among them. Ties go to the larger summed confidence, then to what the string with
    most votes says there. How sure a member is that nothing stands between two characters is how
    sure it is of the less sure one of the two.

    Args:
        predictions: `(member, sample, position, class)`, floating; NumPy or torch. Or decided
            strings, `(member, sample, position)` integers, which are all as sure.
        weights: `(member,)` votes of each member, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        blank: the class that means "no character"; -1 is the last class.

    Returns:
        `(sample, position)` int64, the kind of array that came in. Of a result that is longer
        than there are positions, the characters with the least lead over "nothing" go.

    Raises:
        DataError: as `string_vote`.

    Example:
        >>> read = np.array([[[1, 2, 3, 4]], [[2, 3, 4, 9]], [[1, 2, 3, 9]]])
        >>> aligned_vote(read, blank=9).tolist()
        [[1, 2, 3, 4]]
    """
    ballots = ballots_of(predictions, weights=weights, space=space, blank=blank)
    heard = ballots.weights > 0
    first = heard.argmax(0)
    voted = ballots.read[first, np.arange(len(first))].copy()
    apart = ((ballots.read != voted).any(-1) & heard).any(0)
    for sample in np.flatnonzero(apart):
        text = _fuse(voices(ballots, int(sample)), voted.shape[1])
        voted[sample] = ballots.blank
        voted[sample, : len(text)] = text
    return ballots.back(voted)


def voices(ballots: Ballots, sample: int) -> list[Voice]:
    """Return the different strings of one sample, the one with most votes first.

    Example:
        >>> read = np.array([[[1]], [[2]], [[2]]])
        >>> voices(ballots_of(read, weights=None, space="prob", blank=9), 0)[0].characters
        (2,)
    """
    found: dict[tuple[int, ...], list[tuple[float, list[float]]]] = {}
    for read, sure, weight in zip(
        ballots.read[:, sample].tolist(),
        ballots.sure[:, sample].tolist(),
        ballots.weights[:, sample].tolist(),
        strict=True,
    ):
        if weight:
            length = read.index(ballots.blank) if ballots.blank in read else len(read)
            own = [weight * p for p in [*sure, 1.0][: length + 1]]
            found.setdefault(tuple(read[:length]), []).append((weight, own))
    every = [
        Voice(text, sum(w for w, _ in own), tuple(map(sum, zip(*(s for _, s in own), strict=True))))
        for text, own in found.items()
    ]
    return sorted(every, key=lambda v: (-round(v.votes, _ROUNDED), -_support(v)))


def align(slots: Sequence[frozenset[int]], word: Sequence[int]) -> Path:
    """Lay a word along slots at the least edit distance; a slot fits what any string has there.

    Args:
        slots: the classes in each place, `GAP` among them where some string has nothing there.
        word: classes.

    Returns:
        Pairs in order: (slot, place in the word), either of them None.

    Example:
        >>> align([frozenset({1}), frozenset({2})], [2, 3])
        [(0, None), (1, 0), (None, 1)]
    """
    skip = [_SKIPPED * (GAP not in slot) for slot in slots]
    cost = [[_ADDED * j for j in range(len(word) + 1)]]
    for slot, skipped in zip(slots, skip, strict=True):
        above = cost[-1]
        row = [above[0] + skipped]
        for j, character in enumerate(word):
            fits = above[j] + _REPLACED * (character not in slot)
            row.append(min(fits, above[j + 1] + skipped, row[j] + _ADDED))
        cost.append(row)
    return _traced(slots, word, skip, cost)


def _traced(
    slots: Sequence[frozenset[int]],
    word: Sequence[int],
    skip: Sequence[int],
    cost: Sequence[Sequence[int]],
) -> Path:
    """Walk back along the least costs; of equal ones together, past a slot, a new one."""
    path: Path = []
    i, j = len(slots), len(word)
    while i or j:
        replaced = _REPLACED * (word[j - 1] not in slots[i - 1]) if i and j else 0
        if i and j and cost[i][j] == cost[i - 1][j - 1] + replaced:
            i, j = i - 1, j - 1
            path.append((i, j))
        elif i and cost[i][j] == cost[i - 1][j] + skip[i - 1]:
            i -= 1
            path.append((i, None))
        else:
            j -= 1
            path.append((None, j))
    return path[::-1]


def _fuse(every: Sequence[Voice], longest: int) -> list[int]:
    """Return what the strings of one sample come to."""
    columns: list[Column] = [[place] for place in range(len(every[0].characters))]
    for number in range(1, len(every)):
        columns = _added(columns, every, number)
    chosen = [_elected(tally) for tally in _tallies(columns, every)]
    kept = [(lead, character) for lead, character in chosen if character != GAP]
    while len(kept) > longest:
        kept.remove(min(kept))
    return [character for _, character in kept]


def _added(columns: list[Column], every: Sequence[Voice], number: int) -> list[Column]:
    """Return the columns with one more string laid along them."""
    slots = [
        frozenset(
            GAP if p is None else v.characters[p] for p, v in zip(column, every, strict=False)
        )
        for column in columns
    ]
    empty: Column = [None] * number
    return [
        [*(empty if slot is None else columns[slot]), place]
        for slot, place in align(slots, every[number].characters)
    ]


def _tallies(
    columns: Sequence[Column], every: Sequence[Voice]
) -> list[dict[int, tuple[float, float]]]:
    """Count votes and confidence of each class in each column; keys in the strings' order."""
    tallies = []
    before = [0] * len(every)
    for column in columns:
        tally: dict[int, tuple[float, float]] = {}
        for number, (place, voice) in enumerate(zip(column, every, strict=True)):
            said = GAP if place is None else voice.characters[place]
            sure = _of_gap(voice, before[number]) if place is None else voice.sure[place]
            votes, belief = tally.get(said, (0.0, 0.0))
            tally[said] = (votes + voice.votes, belief + sure)
            before[number] += place is not None
        tallies.append(tally)
    return tallies


def _of_gap(voice: Voice, place: int) -> float:
    """Return how sure a string is that nothing stands before this character of it, or its end."""
    return min(voice.sure[max(place - 1, 0) : place + 1])


def _elected(tally: dict[int, tuple[float, float]]) -> tuple[tuple[float, float], int]:
    """Return the class that is elected, and its lead in votes and confidence over a gap."""
    ranked = [(round(votes, _ROUNDED), belief, said) for said, (votes, belief) in tally.items()]
    votes, belief, said = max(ranked, key=lambda one: one[:2])  # the first of equals
    gap = tally.get(GAP, (0.0, 0.0))
    return (round(votes - gap[0], _ROUNDED), belief - gap[1]), said


def _support(voice: Voice) -> float:
    """Return how sure a string's members are of it: the product of its claims."""
    return float(np.prod([sure / voice.votes for sure in voice.sure])) * voice.votes

"""Choose members by a score of subsets: greedily, or by steps forward and backward.

Nothing here knows what a member is: soups and prediction ensembles alike hand in a function from a
tuple of indices to a number. A subset is scored once, whatever the order of its members; given the
scores of an earlier, interrupted search, the search goes on from them. The path of a search depends
on the scores alone, not on how many subsets are scored at once.
"""

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import NamedTuple

from polyfuse.errors import DataError, printable

Members = tuple[int, ...]
Score = Callable[[Members], float]
Map = Callable[[Score, Sequence[Members]], Iterable[float]]


class Trial(NamedTuple):
    """One subset that was tried.

    Attributes:
        members: in the order they were added.
        score: of the subset.
        kept: whether it became the selection.
    """

    members: Members
    score: float
    kept: bool


class Selection(NamedTuple):
    """What was chosen, and how.

    Attributes:
        members: in the order they were added.
        score: of them together.
        trials: all subsets that decided it, in order.
    """

    members: Members
    score: float
    trials: tuple[Trial, ...]


class Scores:
    """A score that is computed once a subset.

    Args:
        score: maps a tuple of indices, in the order they were added, to a finite number.
        known: scores by sorted members; read and added to. A journal that is kept on disk makes a
            search go on where it was stopped.
        over: maps the score over several subsets at once, in order, as `map` does.
        at_once: how many subsets are worth scoring ahead in a greedy search.
        higher_is_better: False for a loss.

    Example:
        >>> scores = Scores(sum)
        >>> scores.of([(0, 1), (1, 0)]), scores.known
        ([1.0, 1.0], {(0, 1): 1.0})
    """

    def __init__(
        self,
        score: Score,
        *,
        known: MutableMapping[Members, float] | None = None,
        over: Map = map,
        at_once: int = 1,
        higher_is_better: bool = True,
    ) -> None:
        """Keep what scores, and what is known."""
        self.score, self.over, self.at_once = score, over, max(1, at_once)
        self.known: MutableMapping[Members, float] = {} if known is None else known
        self.sign = 1 if higher_is_better else -1

    def of(self, subsets: Sequence[Members]) -> list[float]:
        """Return the scores of subsets; those that are not known are computed together.

        Raises:
            DataError: a score is NaN or infinite.
        """
        new = {_key(s): s for s in reversed(subsets) if _key(s) not in self.known}
        due = [new[key] for key in dict.fromkeys(map(_key, subsets)) if key in new]
        if due:
            for members, score in zip(due, self.over(self.score, due), strict=True):
                self.keep(members, score)
        return [self.known[_key(members)] for members in subsets]

    def keep(self, members: Members, score: float) -> None:
        """Take note of a score.

        Raises:
            DataError: it is NaN or infinite.
        """
        self.known[_key(members)] = _finite(members, float(score))

    def better(self, score: float, than: float, *, ties: bool = False) -> bool:
        """Tell whether a score is better, or with `ties` as good."""
        gain = self.sign * (score - than)
        return gain > 0 or (ties and gain == 0)

    def best(self, subsets: Sequence[Members]) -> tuple[int, list[float]]:
        """Return the place of the best subset, the first among equals, and all scores."""
        scores = self.of(subsets)
        return max(range(len(scores)), key=lambda i: (self.sign * scores[i], -i)), scores


def ranked(candidates: Sequence[int], scores: Scores) -> list[int]:
    """Return candidates by their own score, the best first; equals stay in the order given.

    Raises:
        DataError: no candidates, one twice, or a score that is NaN or infinite.

    Example:
        >>> ranked([0, 1, 2], Scores({(0,): 0.5, (1,): 0.9, (2,): 0.5}.__getitem__))
        [1, 0, 2]
    """
    _check(candidates)
    own = dict(zip(candidates, scores.of([(c,) for c in candidates]), strict=True))
    return sorted(candidates, key=lambda c: -scores.sign * own[c])


def greedy(order: Sequence[int], scores: Scores, *, ties: bool = False) -> Selection:
    """Add each candidate in turn and keep it where the score gets better (Wortsman et al. 2022).

    Args:
        order: candidates, the best first; see `ranked`. The first one is always kept.
        scores: of subsets.
        ties: keep a candidate that leaves the score as it is, too: the paper's `>=`, where its
            code has `>`.

    Raises:
        DataError: no candidates, one twice, or a score that is NaN or infinite.

    Example:
        >>> greedy([2, 0, 1], Scores(lambda members: -abs(3 - sum(members)))).members
        (2, 1)
    """
    _check(order)
    trials: list[Trial] = []
    chosen: Members = ()
    best = -math.inf
    place = 0
    while place < len(order):
        # Scored ahead as if none but the last were kept; what follows one that is kept is not used.
        width = scores.at_once if chosen else 1
        ahead = [(*chosen, c) for c in order[place : place + width]]
        for members, score in zip(ahead, scores.of(ahead), strict=True):
            place += 1
            kept = not chosen or scores.better(score, best, ties=ties)
            trials.append(Trial(members, score, kept))
            if kept:
                chosen, best = members, score
                break
    return Selection(chosen, best, tuple(trials))


def forward_backward(
    candidates: Sequence[int], scores: Scores, *, start: Members = ()
) -> Selection:
    """Add the candidate that helps most, then drop the member that hurts most, until neither helps.

    Every step makes the score strictly better, so the search ends; the result is a subset that no
    single addition and no single removal improves.

    Args:
        candidates: in the order that decides between equals.
        scores: of subsets.
        start: members to start from; the best single candidate where none are given.

    Raises:
        DataError: no candidates, one twice, or a score that is NaN or infinite.

    Example:
        >>> forward_backward([0, 1, 2], Scores(lambda members: -abs(3 - sum(members)))).members
        (2, 1)
    """
    _check(candidates)
    _check_start(start, candidates)
    steps = [start] if start else [(c,) for c in candidates]
    place, found = scores.best(steps)
    chosen, best = steps[place], found[place]
    trials = _trials(steps, found, place)
    moved = True
    while moved:
        moved = False
        for next_steps in (_added, _dropped):
            steps = next_steps(chosen, candidates)
            if not steps:
                continue
            place, found = scores.best(steps)
            helps = scores.better(found[place], best)
            trials += _trials(steps, found, place if helps else None)
            if helps:
                chosen, best, moved = steps[place], found[place], True
    return Selection(chosen, best, tuple(trials))


def _added(chosen: Members, candidates: Sequence[int]) -> list[Members]:
    return [(*chosen, c) for c in candidates if c not in chosen]


def _dropped(chosen: Members, candidates: Sequence[int]) -> list[Members]:
    if len(chosen) == 1:
        return []
    return [tuple(m for m in chosen if m != gone) for gone in candidates if gone in chosen]


def _trials(steps: Sequence[Members], scores: Sequence[float], kept: int | None) -> list[Trial]:
    pairs = zip(steps, scores, strict=True)
    return [Trial(members, score, i == kept) for i, (members, score) in enumerate(pairs)]


def _key(members: Members) -> Members:
    return tuple(sorted(members))


def _check(candidates: Sequence[int]) -> None:
    if not candidates:
        raise DataError("nothing to choose from: no candidates; name at least one")
    if len(set(candidates)) < len(candidates):
        raise DataError(f"a candidate is given twice: {printable(list(candidates))}; keep one")


def _check_start(start: Members, candidates: Sequence[int]) -> None:
    strangers = [member for member in start if member not in candidates]
    if strangers or len(set(start)) < len(start):
        raise DataError(
            f"start={printable(start)} must name candidates, each once; they are "
            f"{printable(list(candidates))}"
        )


def _finite(members: Members, score: float) -> float:
    if not math.isfinite(score):
        raise DataError(
            f"the score of members {', '.join(map(str, members))} is {score}; nothing can be "
            "compared with it: return a finite number, a very bad one for a model that is broken"
        )
    return score

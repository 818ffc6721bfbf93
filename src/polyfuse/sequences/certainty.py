"""How sure a string is, and what leaving unsure ones unanswered buys."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import array_of
from polyfuse.sequences.base import (
    Floats,
    check_strings,
    claimed,
    heads_of,
    length_scores_of,
    string_scores,
)


class RiskCoverage(NamedTuple):
    """What share is answered, and what share of that is wrong, as the threshold falls.

    Attributes:
        threshold: `(k,)` falling confidences; those at or above are answered.
        coverage: `(k,)` share of samples that are answered.
        risk: `(k,)` share of these that are wrong.
    """

    threshold: Floats
    coverage: Floats
    risk: Floats

    @property
    def area(self) -> float:
        """The mean, over samples, of the risk at which each one is answered; 0 is best (AURC)."""
        return float(np.diff(self.coverage, prepend=0.0) @ self.risk)


def confidence(heads: Any, strings: Any, *, blank: int) -> Floats:
    """Return how probable each string is to the heads: the product along what it claims.

    It claims its characters and, unless it fills every position, that it ends where it does: the
    first blank is part of the product, later positions are not. Over all strings this sums to 1.

    Args:
        heads: `(sample, position, class)` log-probabilities.
        strings: `(sample, position)` decided classes, blank from the first blank on.
        blank: the class that means "no character"; -1 is the last one.

    Returns:
        `(sample,)` float64 from 0 to 1.

    Raises:
        DataError: shapes that do not fit, or no log-probabilities.

    Example:
        >>> heads = np.log([[[0.8, 0.2], [0.5, 0.5]]])
        >>> confidence(heads, np.array([[0, 1]]), blank=1).round(2).tolist()
        [0.4]
    """
    wide, blank = heads_of(heads, blank)
    read = check_strings(strings, wide.shape[:2], wide.shape[2])
    said = np.take_along_axis(wide, read[..., None], -1)[..., 0]
    return np.asarray(np.exp(np.where(claimed(read, blank), said, 0.0).sum(-1)))


def joint_confidence(heads: Any, strings: Any, lengths: Any = None, *, blank: int) -> Floats:
    """Return how probable each string is to heads and lengths together, as `joint_decode` reads.

    The score of a string, divided by the sum over all strings that end once: of length L these
    are `P(L)^w prod_{i<=L} (1 - p_i(blank)) prod_{i>L} p_i(blank)`.

    Args:
        heads: `(sample, position, class)` log-probabilities.
        strings: `(sample, position)` decided classes, blank from the first blank on.
        lengths: `(sample, position + 1)` added to the score of each length, already weighted.
        blank: the class that means "no character"; -1 is the last one.

    Returns:
        `(sample,)` float64 from 0 to 1.

    Raises:
        DataError: shapes that do not fit, or no log-probabilities.

    Example:
        >>> heads = np.log([[[0.8, 0.2], [0.5, 0.5]]])  # "aa", "a" and "" are 4 : 4 : 1
        >>> joint_confidence(heads, np.array([[0, 1]]), blank=1).round(3).tolist()
        [0.444]
    """
    wide, blank = heads_of(heads, blank)
    read = check_strings(strings, wide.shape[:2], wide.shape[2])
    own = length_scores_of(lengths, *wide.shape[:2])
    characters = np.delete(wide, blank, -1)
    there = np.cumsum(np.pad(np.logaddexp.reduce(characters, -1), ((0, 0), (1, 0))), 1)
    after = np.cumsum(np.pad(wide[..., blank], ((0, 0), (0, 1)))[:, ::-1], 1)[:, ::-1]
    every = np.logaddexp.reduce(there + after + own, -1)
    return np.asarray(np.exp(string_scores(wide, read, own, blank=blank) - every))


def risk_coverage(confidence: Any, right: Any) -> RiskCoverage:
    """Return the risk at each coverage (El-Yaniv and Wiener 2010): who answers least, errs least.

    Samples of equal confidence are answered together, so their order does not matter.

    Args:
        confidence: `(sample,)`.
        right: `(sample,)` booleans: the string was read right.

    Raises:
        DataError: shapes that do not fit, none at all, or NaN.

    Example:
        >>> risk_coverage([0.9, 0.5, 0.7], [True, False, True]).risk.round(2).tolist()
        [0.0, 0.0, 0.33]
    """
    sure, correct = _pair(confidence, right)
    order = np.argsort(-sure, kind="stable")
    falling = sure[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    answered = ends + 1.0
    wrong = np.cumsum(~correct[order])[ends]
    return RiskCoverage(falling[ends], answered / len(sure), wrong / answered)


def threshold_for(confidence: Any, right: Any, *, risk: float, doubt: float | None = None) -> float:
    """Return a confidence at and above which answered strings are wrong at most this often.

    The lowest that is so on these rows promises too much for others: it was chosen by their luck.
    With `doubt` it is chosen by guaranteed risk control (Geifman and El-Yaniv 2017, algorithm 1):
    binary search, each step a binomial test with its share of the doubt.

    Args:
        confidence: `(sample,)`, of rows that no member trained on.
        right: `(sample,)` booleans.
        risk: the largest share of wrong answers, from 0 to 1.
        doubt: the probability with which new rows of the same kind may exceed the risk.

    Returns:
        The threshold for `abstain`; infinity where no threshold is that safe.

    Raises:
        DataError: shapes that do not fit, a risk outside 0 to 1, or a doubt that is none.

    Example:
        >>> threshold_for([0.9, 0.5, 0.7], [True, False, True], risk=0.1)
        0.7
        >>> threshold_for([0.9, 0.5, 0.7], [True, False, True], risk=0.1, doubt=0.05)
        inf
    """
    if not 0 <= risk <= 1:
        raise DataError(f"risk={risk} is no share; give a number from 0 to 1")
    if doubt is not None and not 0 < doubt < 1:
        raise DataError(f"doubt={doubt} is no probability between 0 and 1; 0.05 is customary")
    curve = risk_coverage(confidence, right)
    if doubt is not None and risk < 1:
        return _controlled(curve, len(array_of(right)), risk, doubt)
    safe = np.flatnonzero(curve.risk <= risk)
    return float(curve.threshold[safe[-1]]) if len(safe) else np.inf


def abstain(confidence: Any, threshold: float) -> NDArray[np.bool_]:
    """Tell which strings to leave unanswered: those below a confidence.

    Args:
        confidence: `(sample,)`; NaN abstains.
        threshold: as `threshold_for` gives it.

    Returns:
        `(sample,)` booleans, True where there should be no answer.

    Example:
        >>> abstain([0.9, 0.5], 0.7).tolist()
        [False, True]
    """
    return np.asarray(~(array_of(confidence) >= threshold))


def _controlled(curve: RiskCoverage, samples: int, risk: float, doubt: float) -> float:
    """Return the lowest threshold that binary search finds safe beyond this doubt."""
    steps = max(1, math.ceil(math.log2(len(curve.risk) + 1)))
    low, high, found = 0, len(curve.risk), np.inf
    while low < high:
        middle = (low + high) // 2
        answered = round(curve.coverage[middle] * samples)
        wrong = round(curve.risk[middle] * answered)
        if _luck(wrong, answered, risk) <= doubt / steps:
            low, found = middle + 1, float(curve.threshold[middle])
        else:
            high = middle
    return found


def _luck(wrong: int, answered: int, risk: float) -> float:
    """Return the probability of so few wrong answers, were each wrong with this probability."""
    if risk == 0:
        return 1.0
    ways = [
        math.lgamma(answered + 1) - math.lgamma(k + 1) - math.lgamma(answered - k + 1)
        for k in range(wrong + 1)
    ]
    odds = math.log(risk) - math.log1p(-risk)
    terms = np.array(ways) + np.arange(wrong + 1) * odds + answered * math.log1p(-risk)
    return float(np.exp(np.logaddexp.reduce(terms)))


def _pair(confidence: Any, right: Any) -> tuple[Floats, NDArray[np.bool_]]:
    sure, correct = np.asarray(array_of(confidence), np.float64), array_of(right)
    if sure.ndim != 1 or sure.shape != correct.shape or not len(sure) or correct.dtype != bool:
        raise DataError(
            "expected one confidence and one boolean a sample, got shapes "
            f"{sure.shape} and {correct.shape} ({correct.dtype})"
        )
    if np.isnan(sure).any():
        raise DataError("confidences hold NaN; leave those rows out")
    return sure, correct

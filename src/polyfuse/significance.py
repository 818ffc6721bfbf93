"""Is a row of a scoreboard really better: paired bootstrap, exact McNemar, Holm's correction."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.metrics import Floats, Interval, Score, Terms, percentiles, replicate_scores

LEVEL = 0.05


class Pair(NamedTuple):
    """Two rows of a scoreboard on the same samples.

    Attributes:
        a: name of the one.
        b: name of the other.
        difference: a - b, with its paired 95 % bootstrap interval.
        p: chance of a difference as large where there is none: exact by McNemar where every
            sample is right or wrong, else by the bootstrap's standard error.
        corrected: p after Holm's correction for all pairs that were compared.
        better: the better row where the interval excludes zero and `corrected` is at most 0.05.
    """

    a: str
    b: str
    difference: Interval
    p: float
    corrected: float
    better: str | None


class Verdict(NamedTuple):
    """Which row won, if any.

    Attributes:
        best: the row with the best value.
        winner: the same, where it is better than each other row; else None.
        level: the best and all rows that are not told from it, the best first.
        pairs: the best against each other row.
    """

    best: str
    winner: str | None
    level: tuple[str, ...]
    pairs: tuple[Pair, ...]


def compare_pairs(
    rows: Mapping[str, Score],
    *,
    reference: str | None = None,
    lower_is_better: bool = False,
    replicates: int = 2000,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    drawn: Mapping[str, Floats] | None = None,
) -> tuple[Pair, ...]:
    """Compare rows of a scoreboard, corrected for the number of comparisons.

    Args:
        rows: scores of the same samples by name.
        reference: compare each row with this one, chosen before these samples were looked at;
            where None, all pairs are compared.
        lower_is_better: whether a smaller score is the better one.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        groups: `(n,)` group of each sample; whole groups are drawn.
        drawn: by name, each row's score in each replicate, where they were drawn already, with
            these replicates, seed and groups.

    Returns:
        One pair each, `(row, reference)` or `(earlier, later)`.

    Raises:
        DataError: fewer than two rows, an unknown reference, rows of other samples.

    Example:
        >>> right, wrong = Terms(np.ones(9), np.ones(9)), Terms(np.zeros(9), np.ones(9))
        >>> pair, = compare_pairs({"a": right, "b": wrong}, replicates=99)
        >>> pair.difference.value, pair.p, pair.better
        (1.0, 0.00390625, 'a')
    """
    _check_rows(rows, reference)
    if drawn is None:
        every = replicate_scores(
            list(rows.values()), replicates=replicates, seed=seed, groups=groups
        )
        drawn = dict(zip(rows, every.T, strict=True))
    values = {name: row.value for name, row in rows.items()}
    units = _units(next(iter(rows.values())).samples, groups)
    found = []
    for a, b in _pairs(list(rows), reference):
        gap = drawn[a] - drawn[b]
        difference = percentiles(values[a] - values[b], gap)
        p = _chance(rows[a], rows[b], difference.value, gap, units)
        found.append(Pair(a, b, difference, p, p, None))
    sign, corrected = -1 if lower_is_better else 1, holm([pair.p for pair in found])
    return tuple(_judged(pair, p, sign) for pair, p in zip(found, corrected, strict=True))


def declare_winner(
    rows: Mapping[str, Score],
    *,
    lower_is_better: bool = False,
    replicates: int = 2000,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    drawn: Mapping[str, Floats] | None = None,
) -> Verdict:
    """Say which row is best, and whether it is really better than each of the others.

    The best row is chosen on the samples that it is judged on, so the correction is for all pairs
    of rows, any of which could have turned out first and last.

    Args:
        rows: scores of the same samples by name.
        lower_is_better: whether a smaller score is the better one.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        groups: `(n,)` group of each sample; whole groups are drawn.
        drawn: as `compare_pairs` takes it.

    Raises:
        DataError: fewer than two rows, a score that is undefined, rows of other samples.

    Example:
        >>> right, wrong = Terms(np.ones(9), np.ones(9)), Terms(np.zeros(9), np.ones(9))
        >>> declare_winner({"a": wrong, "b": right}, replicates=99).winner
        'b'
    """
    undefined = [name for name, row in rows.items() if math.isnan(row.value)]
    if undefined:
        raise DataError(
            f"the scores of {printable(', '.join(undefined))} are undefined (NaN) on these samples"
        )
    pairs = compare_pairs(
        rows,
        lower_is_better=lower_is_better,
        replicates=replicates,
        seed=seed,
        groups=groups,
        drawn=drawn,
    )
    sign = -1 if lower_is_better else 1
    best = max(rows, key=lambda name: sign * rows[name].value)
    against = tuple(seen_from(best, pair) for pair in pairs if best in pair[:2])
    level = (best, *(pair.b for pair in against if pair.better != best))
    return Verdict(best, best if len(level) == 1 else None, level, against)


def mcnemar(a: Terms | NDArray[Any], b: Terms | NDArray[Any]) -> float:
    """Exact McNemar test (1947): the chance of a split as uneven where neither is better.

    Only samples that one gets right and the other wrong count; if neither is better, each of them
    is a fair coin. Two-sided, without continuity correction.

    Args:
        a: whether each sample is right, ones and zeros; or its `Terms`.
        b: of the same samples, in the same order.

    Raises:
        DataError: shapes that differ, or other values than right and wrong.

    Example:
        >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0]))
        0.0625
    """
    first, second = (_rightness(part) for part in (a, b))
    if first.shape != second.shape:
        raise DataError(
            f"{first.shape} and {second.shape} samples; both need the same ones in the same order"
        )
    return _sign_test(int((first > second).sum()), int((second > first).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number so that any false alarm is as rare as one (Holm 1979).

    Args:
        p_values: of the comparisons that were made.

    Returns:
        Adjusted p-values in the same order; reject where they are at most the level.

    Raises:
        DataError: NaN, or values outside 0 to 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"expected p-values between 0 and 1, got {printable(list(p_values))}")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(value) for value in adjusted]


def _pairs(names: Sequence[str], reference: str | None) -> Iterator[tuple[str, str]]:
    if reference is None:
        return combinations(names, 2)
    return ((name, reference) for name in names if name != reference)


def _judged(pair: Pair, corrected: float, sign: int) -> Pair:
    """Return a pair with its corrected p, and the better row if there is one."""
    apart = pair.difference.low > 0 or pair.difference.high < 0  # never so of NaN
    better = pair.a if sign * pair.difference.value > 0 else pair.b
    told = apart and corrected <= LEVEL
    return pair._replace(corrected=corrected, better=better if told else None)


def seen_from(name: str, pair: Pair) -> Pair:
    """Return a pair with this row first.

    Example:
        >>> pair = Pair("a", "b", Interval(1.0, -1.0, 2.0), 0.5, 0.5, None)
        >>> seen_from("b", pair).difference
        Interval(value=-1.0, low=-2.0, high=1.0)
    """
    if pair.a == name:
        return pair
    value, low, high = pair.difference
    turned = Interval(0.0 - value, 0.0 - high, 0.0 - low)
    return pair._replace(a=pair.b, b=pair.a, difference=turned)


def _chance(a: Score, b: Score, value: float, gap: Floats, units: int) -> float:
    """Return the two-sided p-value of one pair, of so many units that are drawn independently.

    Never below that of the most uneven split of the units' signs, `2 / 2^units`: few samples prove
    little, however alike their differences are.
    """
    if units == a.samples and _is_decided(a) and _is_decided(b):
        return mcnemar(a, b)
    gap = gap[~np.isnan(gap)]
    if value == 0 or math.isnan(value) or gap.size < 2:
        return 1.0
    error = float(gap.std(ddof=1))
    tail = math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else 0.0
    return max(tail, 2.0 ** (1 - min(units, 1024)))


def _units(samples: int, groups: NDArray[np.int64] | None) -> int:
    """Return how many units are drawn; one group alone says nothing, so samples are."""
    found = samples if groups is None else len(np.unique(groups))
    return found if found > 1 else samples


def _is_decided(row: object) -> TypeGuard[Terms]:
    """Tell whether a row is terms of samples that are right or wrong."""
    if not isinstance(row, Terms) or not (row.denominator == 1).all():
        return False
    return bool(((row.numerator == 0) | (row.numerator == 1)).all())


def _check_rows(rows: Mapping[str, Score], reference: str | None) -> None:
    if len(rows) < 2:
        raise DataError(f"expected two rows or more to compare, got {printable(list(rows))}")
    if reference is not None and reference not in rows:
        raise DataError(
            f"there is no row '{printable(reference)}'{did_you_mean(reference, rows)}; rows: "
            f"{printable(', '.join(rows))}"
        )


def _rightness(part: Terms | NDArray[Any]) -> NDArray[Any]:
    values = part.numerator if isinstance(part, Terms) else np.asarray(part)
    whole = not isinstance(part, Terms) or _is_decided(part)
    if not whole or not ((values == 0) | (values == 1)).all():
        raise DataError(
            "McNemar's test needs samples that are right or wrong (ones and zeros); of other "
            "scores compare_pairs takes the bootstrap"
        )
    return values.astype(np.int8)


def _sign_test(wins: int, losses: int) -> float:
    """Return the chance of a split of fair coins at least as uneven, two-sided."""
    tosses, fewer = wins + losses, min(wins, losses)
    if wins == losses:
        return 1.0
    k = np.arange(1, fewer + 1)
    # ln of binomial coefficients, one from the one before: exact enough for a million tosses.
    logs = np.concatenate([[0.0], np.cumsum(np.log((tosses - k + 1) / k))])
    return min(1.0, 2 * float(np.exp(logs - tosses * math.log(2)).sum()))

"""The bootstrap as a weighting by counts: drawing them, and intervals from them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.metrics.base import Counts, Floats, Root, Score, Terms

# Replicates that are drawn and weighted at once: few enough to stay in cache as bytes.
_PART, _PART_BYTES = 128, 64 << 20
# Rows and samples of one matrix product. BLAS computes so few multiplications in one thread, so
# that bits do not depend on the number of threads, and nobody waits for them on a busy machine.
_ROWS, _ONE_THREAD = 32, 1 << 18


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap_counts(
    n: int, replicates: int, *, seed: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Draw how often each sample appears in each bootstrap replicate.

    Samples of one group share a source, so where there are groups whole groups are drawn (the
    cluster bootstrap): the interval then covers new sources, not only new samples of the same.

    Args:
        n: number of samples.
        replicates: number of replicates.
        seed: draws them.
        groups: `(n,)` group of each sample, or None.

    Returns:
        `(replicates, n)` float32 counts.

    Example:
        >>> bootstrap_counts(4, 2, seed=0).sum(1).tolist()
        [4.0, 4.0]
    """
    rng = np.random.default_rng([seed, 2])
    member, units = _units(n, groups)
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=replicates)
    counts: NDArray[np.float32] = drawn[:, member].astype(np.float32)
    return counts


def draw_counts(
    n: int, replicates: int, *, seed: int, groups: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Draw counts as `bootstrap_counts` does, but part by part and ten times as fast.

    Samples are drawn one by one and counted, so the counts have the same distribution, yet not the
    same numbers for one seed. No more than 64 MB of them are in memory at once.

    Args:
        n: number of samples.
        replicates: number of replicates.
        seed: draws them.
        groups: `(n,)` group of each sample, or None.

    Yields:
        `(some, n)` uint8 counts, `replicates` rows in all. The next part overwrites them.

    Example:
        >>> [part.sum(1).tolist() for part in draw_counts(4, 2, seed=0)]
        [[4, 4]]
    """
    # The fastest of NumPy's generators, and a product instead of bounded integers: at 53 bits no
    # sample is more likely than another by more than n / 2^53, and u < 1 never rounds up to n.
    rng = np.random.Generator(np.random.SFC64([seed, 3]))
    member, units = _units(n, groups)
    rows = max(1, min(replicates, _PART, _PART_BYTES // max(n, 1)))
    # No count is above its number of draws, nor, but for one chance in 10^500, above 255.
    counts = np.empty((rows, n), np.uint8)
    uniform, drawn = np.empty(units), np.empty(units, np.int64)
    for start in range(0, replicates, rows):
        part = counts[: min(rows, replicates - start)]
        for row in part:
            np.multiply(rng.random(out=uniform), units, out=drawn, casting="unsafe")
            times = np.bincount(drawn, minlength=units)
            row[:] = times if units == n else times[member]
        yield part


def interval(score: Score, counts: Counts) -> Interval:
    """Return a score with its 95 % percentile bootstrap interval (Efron 1979).

    Args:
        score: of `n` samples.
        counts: `(replicates, n)` from `bootstrap_counts`.

    Example:
        >>> interval(Terms(np.ones(4), np.ones(4)), bootstrap_counts(4, 9, seed=0))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    return percentiles(score.value, score.replicates(counts))


def paired_interval(a: Score, b: Score, counts: Counts) -> Interval:
    """Return the difference a - b on the same samples, with its 95 % bootstrap interval.

    Args:
        a: score of `n` samples.
        b: score of the same samples, in the same order.
        counts: `(replicates, n)` from `bootstrap_counts`.

    Example:
        >>> one = Terms(np.ones(4), np.ones(4))
        >>> paired_interval(one, one, bootstrap_counts(4, 9, seed=0))
        Interval(value=0.0, low=0.0, high=0.0)
    """
    return percentiles(a.value - b.value, a.replicates(counts) - b.replicates(counts))


def percentiles(value: float, replicates: Floats) -> Interval:
    """Return a value with the middle 95 % of its replicates.

    Replicates that leave the score undefined (NaN) are left out; without any left the interval
    is NaN.

    Example:
        >>> percentiles(0.5, np.array([0.5, np.nan, 0.5]))
        Interval(value=0.5, low=0.5, high=0.5)
    """
    defined = replicates[~np.isnan(replicates)]
    if not defined.size:
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def replicate_scores(
    rows: Sequence[Score],
    *,
    replicates: int = 2000,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> Floats:
    """Score all rows of a scoreboard on the same bootstrap replicates.

    All `Terms` are weighted in one matrix product a part of the replicates, so memory does not
    grow with their number.

    Args:
        rows: scores of the same samples.
        replicates: number of replicates.
        seed: draws them.
        groups: `(n,)` group of each sample; whole groups are drawn.

    Returns:
        `(replicates, rows)` float64; NaN where a replicate leaves a score undefined.

    Raises:
        DataError: no rows, or rows of other samples.

    Example:
        >>> replicate_scores([Terms(np.ones(4), np.ones(4))], replicates=2).tolist()
        [[1.0], [1.0]]
    """
    sizes = sorted({row.samples for row in rows})
    if len(sizes) != 1 or (groups is not None and len(groups) != sizes[0]):
        raise DataError(
            f"rows of {sizes} samples{'' if groups is None else f' and {len(groups)} groups'}; all "
            "need the same samples in the same order"
        )
    score, result, done = _scorer(rows), np.empty((replicates, len(rows))), 0
    for counts in draw_counts(sizes[0], replicates, seed=seed, groups=groups):
        result[done : done + len(counts)] = score(counts)
        done += len(counts)
    return result


def _scorer(rows: Sequence[Score]) -> Callable[[NDArray[np.uint8]], Floats]:
    """Return what scores all rows by counts: one product for all terms, the others one by one."""
    terms = {i: t for i, row in enumerate(rows) if (t := _terms(row))}
    others = {i: row for i, row in enumerate(rows) if i not in terms}
    roots = [i for i in terms if isinstance(rows[i], Root)]
    columns, below = [term.numerator for term in terms.values()], []
    for term in terms.values():
        if not np.array_equal(columns[-1], term.denominator):  # most rows have the same
            columns.append(term.denominator)
        below.append(len(columns) - 1)
    matrix = np.stack(columns, 1) if columns else np.empty(0)

    def score(counts: NDArray[np.uint8]) -> Floats:
        found = np.empty((len(counts), len(rows)))
        if terms:
            sums = _product(counts, matrix)
            found[:, list(terms)] = sums[:, : len(terms)] / sums[:, below]
        found[:, roots] = np.sqrt(found[:, roots])
        for i, row in others.items():
            found[:, i] = row.replicates(counts)
        return found

    return score


def _product(counts: NDArray[np.uint8], matrix: Floats) -> Floats:
    """Multiply by blocks of samples, summed in order; counts become float64 a block at a time."""
    samples, columns = matrix.shape
    width = max(1, _ONE_THREAD // (_ROWS * columns))
    result = np.zeros((len(counts), columns))
    for start in range(0, samples, width):
        block = counts[:, start : start + width].astype(np.float64)
        for row in range(0, len(counts), _ROWS):
            part = slice(row, row + _ROWS)
            result[part] += block[part] @ matrix[start : start + width]
    return result


def _terms(row: Score) -> Terms | None:
    if isinstance(row, Root):
        return row.square
    return row if isinstance(row, Terms) else None


def _units(n: int, groups: NDArray[np.int64] | None) -> tuple[NDArray[Any], int]:
    """Return the unit that each sample is drawn with, and their number."""
    if groups is not None:
        names, member = np.unique(groups, return_inverse=True)
        if len(names) > 1:
            return member, len(names)
    return np.arange(n), n

"""The bootstrap as a weighting by counts: drawing them, and intervals from them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics.base import Counts, Floats, Score

_CHUNK_BYTES = 32 << 20


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
) -> Iterator[Floats]:
    """Draw counts as `bootstrap_counts` does, but part by part and several times as fast.

    Samples are drawn one by one and counted, so the counts are of the same distribution, yet not
    the same numbers for one seed. No more than 32 MB of them are in memory at once.

    Args:
        n: number of samples.
        replicates: number of replicates.
        seed: draws them.
        groups: `(n,)` group of each sample, or None.

    Yields:
        `(some, n)` float64 counts, `replicates` rows in all. The next part overwrites them.

    Example:
        >>> [part.sum(1).tolist() for part in draw_counts(4, 2, seed=0)]
        [[4.0, 4.0]]
    """
    rng = np.random.default_rng([seed, 3])
    member, units = _units(n, groups)
    rows = max(1, min(replicates, _CHUNK_BYTES // (8 * max(n, 1))))
    counts = np.empty((rows, n))
    for start in range(0, replicates, rows):
        part = counts[: min(rows, replicates - start)]
        for row in part:
            drawn = np.bincount(rng.integers(units, size=units), minlength=units)
            row[:] = drawn if units == n else drawn[member]
        yield part


def interval(score: Score, counts: Counts) -> Interval:
    """Return a score with its 95 % percentile bootstrap interval (Efron 1979).

    Args:
        score: of `n` samples.
        counts: `(replicates, n)` from `bootstrap_counts`.

    Example:
        >>> from polyfuse.metrics import Terms
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
        >>> from polyfuse.metrics import Terms
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


def _units(n: int, groups: NDArray[np.int64] | None) -> tuple[NDArray[Any], int]:
    """Return the unit that each sample is drawn with, and their number."""
    if groups is not None:
        names, member = np.unique(groups, return_inverse=True)
        if len(names) > 1:
            return member, len(names)
    return np.arange(n), n

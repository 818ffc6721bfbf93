"""The nearest rows to a row: exact, in memory that is bounded, ties to the earlier row."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.classical import nearest_rows
from polyfuse.errors import DataError
from polyfuse.fitting import Floats

Rows = NDArray[np.int64]
_SPARE = 8  # rows above 2 k that are measured again, exactly
_SAME = 1e-6  # distances that differ by less, relatively, may come in the wrong order


def _unit(points: Floats) -> Floats:
    lengths = np.sqrt((points**2).sum(-1, keepdims=True))
    scaled: Floats = points / np.where(lengths > 0, lengths, 1)
    return scaled


def _roots(points: Floats) -> Floats:
    if (points < 0).any():
        raise DataError(
            f'distance="hellinger" is between probabilities, and got {points.min():.3g}; use '
            '"euclidean"'
        )
    return np.sqrt(points)


# Each maps points so that the plain distance between them is the one asked for, or rises with it.
DISTANCES: dict[str, Callable[[Floats], Floats]] = {
    "euclidean": lambda points: points,
    "cosine": _unit,
    "hellinger": _roots,
}


class Neighbours(NamedTuple):
    """The rows that neighbours are looked for among.

    Attributes:
        points: `(row, coordinate)` around their mean.
        centre: `(coordinate,)` the mean.
        find: returns the numbers of the k rows that are nearest, but for rounding errors.
    """

    points: Floats
    centre: Floats
    find: Callable[[Floats, int], Rows]

    def nearest(self, queries: Floats, k: int) -> tuple[Rows, Floats]:
        """Return the k nearest rows, nearest first, and their distances: `(query, k)` each.

        Args:
            queries: `(query, coordinate)`.
            k: at most the number of rows.

        Example:
            >>> rows, far = around(np.array([[0.0], [1.0], [5.0]])).nearest(np.array([[4.0]]), 2)
            >>> rows.tolist(), far.tolist()
            ([[2, 1]], [[1.0, 3.0]])
        """
        away = queries - self.centre
        listed = np.sort(self.find(away, min(2 * k + _SPARE, len(self.points))), axis=1)
        exact = np.sqrt(((self.points[listed] - away[:, None]) ** 2).sum(-1))
        order = np.argsort(exact, axis=1, kind="stable")
        listed, exact = np.take_along_axis(listed, order, 1), np.take_along_axis(exact, order, 1)
        if listed.shape[1] < len(self.points):
            # As near as the last one that was listed may be rows that were not.
            for query in np.flatnonzero(exact[:, k - 1] * (1 + _SAME) >= exact[:, -1]):
                far = np.sqrt(((self.points - away[query]) ** 2).sum(-1))
                listed[query, :k] = np.argsort(far, kind="stable")[:k]
                exact[query, :k] = far[listed[query, :k]]
        return listed[:, :k], exact[:, :k]


def around(points: Floats) -> Neighbours:
    """Return points ready to be searched; far from zero, products of them would lose digits.

    Args:
        points: `(row, coordinate)` finite.

    Example:
        >>> around(np.array([[1.0], [3.0]])).points.tolist()
        [[-1.0], [1.0]]
    """
    centre = points.mean(0)
    moved = points - centre
    return Neighbours(moved, centre, nearest_rows(moved))


def numbers_at_once(rows: int, coordinates: int, k: int) -> int:
    """Return how many numbers one query takes in `nearest`.

    Example:
        >>> numbers_at_once(100, 10, 1)
        100
    """
    return min(2 * k + _SPARE, rows) * coordinates

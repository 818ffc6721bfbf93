"""Which rows a layer is fitted on and which it then predicts, fold by fold."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.classical import fold_rows
from polyfuse.errors import DataError

Rows = NDArray[np.int64]
Folds = list[tuple[Rows, Rows]]


def folds_of(
    asked: Any,
    labels: NDArray[Any],
    covered: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    ordered: bool = False,
    seed: int = 0,
) -> Folds:
    """Return (rows to fit on, rows to predict) of each fold, numbered among the covered rows.

    Args:
        asked: number of folds; a splitter of scikit-learn; or pairs of row numbers among all rows.
        labels: `(n, ...)` of all rows; where they are classes `(n,)`, these are balanced.
        covered: `(n,)` booleans; the other rows are left out of every fold.
        groups: `(n,)`; a group never lies on both sides of a fold.
        ordered: rows come in the order of time, and each block is predicted from earlier ones.
        seed: shuffles rows, where `asked` is a number.

    Raises:
        DataError: folds that do not fit the rows, that predict rows they fit on, or that cut a
            group.

    Example:
        >>> labels, covered = np.zeros(6, int), np.array([True] * 4 + [False, True])
        >>> [held.tolist() for _, held in folds_of([([0, 1], [4, 5]), ([5], [0])], labels, covered)]
        [[4], [0]]
    """
    if isinstance(asked, int | np.integer) and not isinstance(asked, bool):
        return _numbered(int(asked), labels[covered], _of(groups, covered), ordered, seed)
    if ordered:
        raise DataError(
            "ordered=True needs a number of folds; bring a splitter such as TimeSeriesSplit alone"
        )
    place = np.cumsum(covered) - 1
    folds = []
    for number, (fit, held) in enumerate(_pairs(asked, labels, groups)):
        _check(f"fold {number}", fit, held, len(labels), groups)
        mine, other = (place[rows[covered[rows]]] for rows in (fit, held))
        if len(mine) and len(other):
            folds.append((mine, other))
    if not folds:
        raise DataError("no fold has rows to fit on and rows to predict; bring more folds or rows")
    return folds


def within(folds: Folds, usable: NDArray[np.bool_]) -> Folds:
    """Return the folds without the rows that cannot be used; those left with nothing are dropped.

    Raises:
        DataError: nothing is left.

    Example:
        >>> rows = np.arange(4)
        >>> left = within([(rows[:2], rows[2:])], rows > 0)
        >>> [(fit.tolist(), held.tolist()) for fit, held in left]
        [([1], [2, 3])]
    """
    cut = [(fit[usable[fit]], held[usable[held]]) for fit, held in folds]
    left = [(fit, held) for fit, held in cut if len(fit) and len(held)]
    if not left:
        raise DataError(
            "no fold has rows left that the layer before predicted; bring more rows or fewer layers"
        )
    return left


def _numbered(
    count: int, labels: NDArray[Any], groups: NDArray[Any] | None, ordered: bool, seed: int
) -> Folds:
    classes = labels if labels.ndim == 1 and labels.dtype.kind in "iu" else None
    parts = fold_rows(
        len(labels), count, seed=seed, classes=classes, groups=groups, ordered=ordered
    )
    return list(parts)


def _of(groups: NDArray[Any] | None, covered: NDArray[np.bool_]) -> NDArray[Any] | None:
    return None if groups is None else groups[covered]


def _pairs(
    asked: Any, labels: NDArray[Any], groups: NDArray[Any] | None
) -> Iterator[tuple[Rows, Rows]]:
    if hasattr(asked, "split") and not isinstance(asked, str):
        classes = labels if labels.ndim == 1 else None
        asked = asked.split(np.zeros((len(labels), 1)), classes, groups)
    if not isinstance(asked, Iterable) or isinstance(asked, str):
        raise DataError(
            f"folds must be a number, a splitter with split(), or pairs (rows to fit on, rows to "
            f"predict); got {type(asked).__name__}"
        )
    for fit, held in asked:
        yield np.asarray(fit, np.int64), np.asarray(held, np.int64)


def _check(fold: str, fit: Rows, held: Rows, count: int, groups: NDArray[Any] | None) -> None:
    for rows in (fit, held):
        if len(rows) and not 0 <= rows.min() <= rows.max() < count:
            raise DataError(f"{fold} has rows from {rows.min()} to {rows.max()} of {count} rows")
    shared = np.intersect1d(fit, held)
    if len(shared):
        raise DataError(
            f"{fold} predicts {len(shared)} of the rows it is fitted on, row {shared[0]} the "
            "first; hold them out"
        )
    if groups is not None and np.isin(groups[fit], groups[held]).any():
        raise DataError(
            f"{fold} cuts groups: rows of one lie on both sides; take GroupKFold, or a number of "
            "folds"
        )

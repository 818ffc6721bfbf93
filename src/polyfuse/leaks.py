"""Who trained on which rows, and the refusal to fit or to judge on those.

A combination that is fitted on rows its members learned from trusts the members that remember
best; a score on rows that the fit saw flatters it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.fitting import array_of, stacked

Mask = NDArray[np.bool_]
_SHOWN = 5  # ids that are written out


def trained_mask(rows: Sequence[Any], count: int) -> Mask:
    """Return which member trained on which row.

    Args:
        rows: one entry a member: the numbers of the rows that it learned from, was stopped on or
            was selected on; or `(count,)` booleans; or None where it saw none of them.
        count: number of rows.

    Returns:
        `(member, count)` booleans.

    Raises:
        DataError: numbers that are no rows, or booleans of another length; all at once.

    Example:
        >>> trained_mask([[0, 1], None, np.array([False, False, True])], 3).astype(int).tolist()
        [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    """
    trained, faults = np.zeros((len(rows), count), dtype=bool), []
    for member, own in enumerate(rows):
        if own is None or not np.size(own):
            continue
        fault = _row_fault(array_of(own), count)
        if fault:
            faults.append(f"member {member}: {fault}")
        else:
            trained[member, array_of(own)] = True
    if faults:
        raise DataError("\n".join(faults))
    return trained


def refuse_trained(said: Any, trained: Any, what: str = "this fit") -> None:
    """Refuse rows where a member that trained on them has a say.

    Args:
        said: `(member, row)` booleans, where a member has a say; or its predictions, `(member,
            row, ...)` floating or a sequence of `(row, ...)`, NaN where it has none.
        trained: `(member, row)` booleans as `trained_mask` has them; None: nothing is known, and
            nothing refused.
        what: who refuses, for the message.

    Raises:
        DataError: names every such member and how many rows; or a mask of another shape.

    Example:
        >>> refuse_trained(np.array([[[0.5, 0.5]]]), [[True]])
        Traceback (most recent call last):
        polyfuse.errors.DataError: this fit would learn from rows that its members trained on:
        member 0 trained on 1 of the 1 rows
        bring out-of-fold predictions, NaN where a member trained: predictions[trained] = np.nan; or
        rows that no member saw (here there are none)
    """
    if trained is None:
        return
    mask, array = array_of(trained), _said(said)
    _check_mask(mask, array.shape)
    leaks = [(member, _count(array[member], mask[member])) for member in range(len(mask))]
    if any(rows for _, rows in leaks):
        raise DataError(_told(leaks, mask, what))


def refuse_trained_rows(said: Any, trained: Any, what: str = "this fit") -> None:
    """Refuse rows of one combined prediction that speaks for members that trained on them.

    Args:
        said: `(row, ...)` combined predictions, NaN where there are none.
        trained: `(row,)` booleans, True where one of the members that have a say on the row trained
            on it; None: nothing is known, and nothing refused.
        what: who refuses, for the message.

    Raises:
        DataError: says how many rows; or a mask of another length.

    Example:
        >>> refuse_trained_rows(np.array([0.5, np.nan]), np.array([False, True]))
    """
    if trained is None:
        return
    mask, array = array_of(trained), array_of(said)
    if mask.dtype != bool or mask.shape != array.shape[:1]:
        raise DataError(
            f"trained must be booleans (row,) of shape {array.shape[:1]}, got {mask.dtype} of "
            f"shape {mask.shape}"
        )
    rows = _count(array, mask)
    if rows:
        raise DataError(
            f"{what} would learn from {rows} of the {len(mask)} rows that members trained on; "
            "combine out-of-fold predictions, or leave these rows out: said[~trained]"
        )


def refuse_shared(fit_ids: Iterable[Any], test_ids: Iterable[Any]) -> None:
    """Refuse rows, by their ids, that are both fitted and judged on.

    Args:
        fit_ids: of the rows that a combination is fitted on.
        test_ids: of the rows that it is judged on.

    Raises:
        DataError: says how many there are, and names the first of them.

    Example:
        >>> refuse_shared(["a", "b"], ["c"])
    """
    fitted = set(_ids(fit_ids))
    judged = _ids(test_ids)
    shared = list(dict.fromkeys(one for one in judged if one in fitted))
    if not shared:
        return
    named = ", ".join(printable(repr(one), 40) for one in shared[:_SHOWN])
    more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
    raise DataError(
        f"{len(shared)} rows are both fitted and judged on: {named}{more}; a score on them "
        "flatters the fit: leave them out of one of the two, or let cross_fitted(...) predict "
        "each row by a fit without it"
    )


def _said(said: Any) -> NDArray[Any]:
    array = array_of(said) if not isinstance(said, list | tuple) else None
    if array is not None and array.dtype == bool and array.ndim == 2:
        return array
    return stacked(said, 2)


def _row_fault(own: NDArray[Any], count: int) -> str:
    """Say why these are not rows; "" where they are."""
    if own.dtype == bool:
        fits = own.shape == (count,)
        return "" if fits else f"booleans of shape {own.shape} do not fit {count} rows"
    if own.dtype.kind not in "iu" or own.ndim != 1:
        return f"rows must be integers (n,), got {own.dtype} of shape {own.shape}"
    if own.min() < 0 or own.max() >= count:
        return f"rows from {own.min()} to {own.max()} do not fit {count} rows, numbered from 0"
    return ""


def _check_mask(mask: NDArray[Any], shape: tuple[int, ...]) -> None:
    if mask.dtype != bool or mask.shape != shape[:2]:
        raise DataError(
            f"trained must be booleans (member, row) of shape {shape[:2]}, got {mask.dtype} of "
            f"shape {mask.shape}; trained_mask(rows, {shape[1]}) makes them from row numbers"
        )


def _count(said: NDArray[Any], trained: Mask) -> int:
    """Return in how many of the rows that it trained on a member has a say, if only in part."""
    own = said[trained]
    if own.dtype.kind != "f":
        return int(own.sum()) if own.dtype == bool else len(own)
    return int((~np.isnan(own)).reshape(len(own), -1).any(1).sum()) if own.size else 0


def _told(leaks: list[tuple[int, int]], trained: Mask, what: str) -> str:
    rows, unseen = trained.shape[1], int((~trained.any(0)).sum())
    members = [f"member {member} trained on {n} of the {rows} rows" for member, n in leaks if n]
    there = f"the {unseen} in ~trained.any(0)" if unseen else "here there are none"
    return "\n".join(
        [
            f"{what} would learn from rows that its members trained on:",
            *members,
            "bring out-of-fold predictions, NaN where a member trained: predictions[trained] = "
            f"np.nan; or rows that no member saw ({there})",
        ]
    )


def _ids(ids: Iterable[Any]) -> list[Any]:
    return array_of(ids).tolist() if isinstance(ids, np.ndarray) else list(ids)

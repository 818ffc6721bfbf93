"""In which space numbers are: told from themselves, or refused where they do not tell."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.parameters import one_of
from polyfuse.predictions.base import TASKS

NUMBERS = frozenset({"regression", "mean_variance", "quantiles"})  # tasks that have no classes
_SLACK = 0.01  # rows sum to one within this: half precision, or a CSV with three digits
_PIECE = 1 << 20  # numbers that are looked at at once
_ENOUGH = 8  # rows that rise by chance once in 256, where there are two columns


def guess_space(array: NDArray[Any], *, task: str | None = None, name: str = "array") -> str:
    """Return the space that predictions are in, where the numbers leave no doubt.

    Rows with NaN, where a member has no say, are left out.

    Args:
        array: `(sample, ...)`.
        task: where it is known, it settles what the numbers leave open.
        name: of it, for the error.

    Returns:
        "label" for whole numbers; "prob" where rows sum to one; "log_prob" where their exponentials
        do; "logit" for other numbers of both signs; "value" for tasks without classes.

    Raises:
        DataError: the numbers may mean several things; it says which, and what to type.

    Example:
        >>> guess_space(np.array([[0.25, 0.75], [0.5, 0.5]]))
        'prob'
        >>> guess_space(np.array([0.2, 0.9, 0.4]))
        Traceback (most recent call last):
        polyfuse.errors.DataError: 'array' has one number a row, from 0.2 to 0.9: probabilities ...
    """
    if task is not None:
        one_of("task", task, TASKS)
    if task in NUMBERS:
        return "value"
    if array.dtype.kind in "iub" and not (task == "multiclass" and array.ndim > 1):
        return "label"
    by_element = task in ("binary", "multilabel") and (task == "multilabel" or _is_column(array))
    found = _look(array, by_element or _is_column(array), printable(name))
    if by_element:
        return _space_of_elements(found)
    if _is_column(array):
        raise _one_number(found)
    return _space_of_rows(found, array)


def _is_column(array: NDArray[Any]) -> bool:
    return array.ndim < 2 or array.shape[1:] == (1,)


@dataclass
class _Found:
    """What is true of all numbers of an array."""

    name: str
    low: float = np.inf
    high: float = -np.inf
    sums: tuple[float, float] = (np.inf, -np.inf)
    logs: float = 0.0  # how far, at most, the log of summed exponentials is from 0
    rising: bool = True  # every row, from its first number to its last
    rows: int = 0

    @property
    def span(self) -> str:
        return f"from {self.low:.3g} to {self.high:.3g}"


def _look(array: NDArray[Any], by_element: bool, name: str) -> _Found:
    """Look at all rows once, some at a time."""
    found = _Found(name)
    for rows in _pieces(array.reshape(-1, 1) if by_element else array):
        found.rows += len(rows)
        found.low = min(found.low, float(rows.min()))
        found.high = max(found.high, float(rows.max()))
        with np.errstate(invalid="ignore", over="ignore"):  # infinite ones are told when fitted
            sums = rows.sum(-1)
        found.sums = (min(found.sums[0], sums.min()), max(found.sums[1], sums.max()))
        found.rising = found.rising and bool((rows[:, 1:] >= rows[:, :-1]).all())
        if found.high <= 0:
            with np.errstate(divide="ignore"):
                logs = np.abs(np.log(np.exp(rows).sum(-1)))
            found.logs = max(found.logs, float(logs.max()))
    if not found.rows:
        raise DataError(
            f"'{name}' has no row without NaN, so its space cannot be told; say it: space=\"prob\""
        )
    return found


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Yield `(row, class)` float64 rows that hold no NaN; heads count as rows."""
    step = max(1, _PIECE // max(1, array[:1].size))
    for start in range(0, len(array), step):
        part = array[start : start + step]
        rows = part.reshape(-1, part.shape[-1]).astype(np.float64)
        rows = rows[~np.isnan(rows).any(-1)]
        if rows.size:
            yield rows


def _space_of_rows(found: _Found, array: NDArray[Any]) -> str:
    if found.low >= 0 and max(1 - found.sums[0], found.sums[1] - 1) <= _SLACK:
        return "prob"
    if found.high <= 0 and found.logs <= _SLACK:
        return "log_prob"
    if found.low >= 0:
        raise DataError(
            f"'{found.name}' has values {found.span} in rows that sum to {found.sums[0]:.3g} to "
            f'{found.sums[1]:.3g}, which may mean several things; say which: space="logit", '
            'task="multilabel" where each column has a probability of its own, '
            'task="quantiles", task="mean_variance"; or divide each row by its sum'
        )
    _refuse_numbers(found, array)
    return "logit"


def _refuse_numbers(found: _Found, array: NDArray[Any]) -> None:
    """Refuse what may as well be quantiles, or a mean and a variance."""
    what = ""
    if array.ndim == 2 and found.rising and found.rows >= _ENOUGH:
        what = 'quantiles, for their rows all rise: task="quantiles"'
    elif array.shape[1:] == (2,) and np.nanmin(array[:, 1]) >= 0 and found.rows >= _ENOUGH:
        what = 'a mean and a variance, for column 1 is never negative: task="mean_variance"'
    if what:
        raise DataError(
            f"'{found.name}' has values {found.span}, which may be logits, space=\"logit\", or "
            f"{what}; say which"
        )


def _space_of_elements(found: _Found) -> str:
    if found.low >= 0 and found.high <= 1:
        return "prob"
    if found.low < 0 < found.high:
        return "logit"
    raise DataError(
        f"'{found.name}' has values {found.span}, which may mean several things; say which: "
        'space="logit" or space="log_prob"'
    )


def _one_number(found: _Found) -> DataError:
    what = "probabilities" if found.low >= 0 and found.high <= 1 else "logits"
    return DataError(
        f"'{found.name}' has one number a row, {found.span}: {what} of the second of two classes, "
        'task="binary", or plain values, task="regression"? Say which'
    )

"""What a value from a stranger's file must be; each check returns the fault, or ""."""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any, Union, get_args, get_origin

import numpy as np

from polyfuse.errors import did_you_mean, printable

Check = Callable[[Any], str]


def words(*known: str) -> Check:
    """Return a check for one of these words.

    Example:
        >>> words("nll", "brier")("nl")
        "'nl' is not known; did you mean 'nll'?; it is one of nll, brier"
    """

    def check(value: Any) -> str:
        if isinstance(value, str) and value in known:
            return ""
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        shown = printable(repr(value), 40)
        return f"{shown} is not known{near}; it is one of {', '.join(known)}"

    return check


def either(*checks: Check) -> Check:
    """Return a check that is content where one of these is.

    Example:
        >>> either(number, words("best"))("best")
        ''
    """

    def check(value: Any) -> str:
        faults = [one(value) for one in checks]
        return "" if "" in faults else faults[-1]

    return check


def array(
    *axes: int, dtype: str = "float64", low: float = -math.inf, high: float = math.inf
) -> Check:
    """Return a check for a finite array that is not empty.

    Args:
        axes: numbers of axes that it may have.
        dtype: its dtype.
        low: the least value.
        high: the largest value.

    Example:
        >>> array(1, low=0)(np.array([1.0, -1.0]))
        'values from -1 to 1 are not all finite from 0 to inf'
    """

    def check(value: Any) -> str:
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim not in axes:
            return f"{_shown(value)} is no array of {dtype} with {' or '.join(map(str, axes))} axes"
        if not value.size:
            return "the array is empty"
        least, most = value.min(), value.max()
        inside = bool(np.isfinite(value).all() and least >= low and most <= high)
        return (
            ""
            if inside
            else f"values from {least:g} to {most:g} are not all finite from "
            + (f"{low:g} to {high:g}")
        )

    return check


def weights(*axes: int) -> Check:
    """Return a check for weights that are not negative, and sum to one over members.

    Example:
        >>> weights(1)(np.array([0.5, 0.4]))
        'weights sum to 0.9 over members, not to 1'
    """
    is_array = array(*axes, low=0)

    def check(value: Any) -> str:
        fault = is_array(value)
        if fault:
            return fault
        sums = value.sum(0)
        off = np.atleast_1d(sums)[np.abs(np.atleast_1d(sums) - 1).argmax()]
        return "" if abs(off - 1) <= 1e-6 else f"weights sum to {off:g} over members, not to 1"

    return check


def number(value: Any) -> str:
    """Check for a finite number.

    Example:
        >>> number(True)
        'True is no finite number'
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    fits = real and abs(value) <= 1.7e308
    return "" if fits else f"{_shown(value)} is no finite number"


def between(low: float, high: float) -> Check:
    """Return a check for a number in a range.

    Example:
        >>> between(0.5, 2)(0.0)
        '0.0 is not from 0.5 to 2'
    """

    def check(value: Any) -> str:
        inside = not number(value) and low <= value <= high
        return "" if inside else f"{_shown(value)} is not from {low:g} to {high:g}"

    return check


def whole(value: Any) -> str:
    """Check for a whole number from 0 to 2^40.

    Example:
        >>> whole(-1)
        '-1 is no whole number from 0'
    """
    fits = type(value) is int and 0 <= value < 1 << 40
    return "" if fits else f"{_shown(value)} is no whole number from 0"


def flag(value: Any) -> str:
    """Check for true or false.

    Example:
        >>> flag(1)
        '1 is neither true nor false'
    """
    return "" if isinstance(value, bool) else f"{_shown(value)} is neither true nor false"


def tuple_of(each: Check, *, least: int = 0) -> Check:
    """Return a check for a tuple, all of whose values pass a check.

    Example:
        >>> tuple_of(whole)((1, "a"))
        "'a' is no whole number from 0"
    """

    def check(value: Any) -> str:
        if not isinstance(value, tuple) or len(value) < least:
            return f"{_shown(value)} is no tuple of {least} or more"
        return next((fault for fault in map(each, value) if fault), "")

    return check


def of_type(hint: Any) -> Check:
    """Return a check for what an annotation says; `Any` is None, or numbers in lists or an array.

    Example:
        >>> of_type(int | None)("a")
        "'a' is neither int nor None"
    """

    def check(value: Any) -> str:
        if _fits(value, hint):
            return ""
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        named = [_named(kind) for kind in kinds]
        said = f"neither {' nor '.join(named)}" if len(named) > 1 else f"no {named[0]}"
        return f"{_shown(value)} is {said}"

    return check


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is Any:
        return value is None or _are_numbers(value)
    if origin is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(inner)
            and all(_fits(v, h) for v, h in zip(value, inner, strict=True))
        )
    if hint is type(None):
        return value is None
    if hint is float:
        return not number(value) or (isinstance(value, float) and not math.isnan(value))
    if hint is int:
        return type(value) is int and abs(value) < 1 << 63
    if isinstance(hint, type):
        return type(value) is hint
    return callable(value)


def _are_numbers(value: Any) -> bool:
    """Tell whether this is an array, or a list of lists, of numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iuf"
    if not isinstance(value, list | tuple) or not value:
        return False
    if any(isinstance(one, list | tuple) for one in value):
        rows: Sequence[Any] = value
        alike = all(isinstance(row, list | tuple) and len(row) == len(rows[0]) for row in rows)
        return alike and bool(rows[0]) and not any(number(v) for row in rows for v in row)
    return not any(number(one) for one in value)


def _named(hint: Any) -> str:
    if hint is Any:
        return "numbers"
    if hint is type(None):
        return "None"
    return (
        hint.__name__
        if isinstance(hint, type) and not get_args(hint)
        else ("tuple" if get_origin(hint) is tuple else "function")
    )


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with {value.ndim} axes"
    return printable(repr(value), 40)

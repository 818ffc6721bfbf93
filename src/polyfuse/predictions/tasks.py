"""Predictions in the shape of their task: binary pairs, classes, labels, numbers, quantiles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.parameters import one_of
from polyfuse.predictions.base import SPACES, TASKS, Predictions
from polyfuse.predictions.spaces import NUMBERS, guess_space

_AXES = {
    "binary": "(n,), (n, 1) or (n, 2)",
    "multiclass": "(n, classes)",
    "multilabel": "(n, labels)",
    "regression": "(n,) or (n, 1)",
    "mean_variance": "(n, 2)",
    "quantiles": "(n, levels)",
    "multi_head": "(n, heads, classes)",
}
_DECIDED = {"binary": 1, "multiclass": 1, "multilabel": 2, "multi_head": 2}  # axes of labels


def as_task(
    member: Predictions, task: str | None = None, *, levels: Sequence[float] | None = None
) -> Predictions:
    """Return predictions in the shape of a task, with its name and the space they are in.

    Args:
        member: what was read.
        task: one of `TASKS`; where None, it is told from shape and numbers: rows of classes are
            "multiclass", with heads "multi_head". One number a row must be named.
        levels: of quantiles, rising, between 0 and 1; by default the names of the columns.

    Returns:
        Binary predictions as `(n, 2)`: `[1 - p, p]`, logits `[0, z]`; regression as `(n,)`; all
        others as they came. Whole numbers are decided labels and stay so.

    Raises:
        DataError: a shape that the task does not have, negative variances, levels that do not fit,
            numbers that may mean several things.

    Example:
        >>> member = Predictions(name="a.csv", array=np.array([0.25, 1.0]))
        >>> as_task(member, "binary").array.tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    task = task or member.task or ("quantiles" if levels is not None else None)
    if task is not None:
        one_of("task", task, TASKS)
    if member.space is not None:
        one_of("space", member.space, SPACES)
    space = member.space
    if space is None or task in NUMBERS:
        space = guess_space(member.array, task=task, name=member.name)
    if space == "label":
        return _decided(member, task)
    task = task or _told(member.array, space)
    array = member.array if member.array.dtype.kind == "f" else member.array.astype(np.float64)
    member = member.noted(space=space, task=task, array=array)
    if task == "quantiles":
        return _quantiles(member, levels)
    return _SHAPED[task](member)


def _told(array: NDArray[Any], space: str) -> str:
    if array.ndim < 2 or array.shape[1:] == (1,):
        return "regression" if space == "value" else "binary"
    return "multiclass" if array.ndim == 2 else "multi_head"


def _decided(member: Predictions, task: str | None) -> Predictions:
    axes = _DECIDED.get(task or "", member.array.ndim)
    array = member.array
    if array.ndim == 2 and axes == 1 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != axes:
        raise DataError(
            f"'{printable(member.name)}' has decided labels of shape {array.shape}; "
            f"the task {task} has {'one a row' if axes == 1 else 'a row of them'}"
        )
    return member.noted(space="label", task=task, array=array)


def _refuse(member: Predictions) -> DataError:
    return DataError(
        f"'{printable(member.name)}' has shape {member.array.shape}; the task {member.task} takes "
        f"{_AXES[str(member.task)]}"
    )


def _binary(member: Predictions) -> Predictions:
    array = member.array
    if array.ndim == 2 and array.shape[1] == 2:
        return member
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise _refuse(member)
    first = _FIRST[str(member.space)](array)
    note = f"'{printable(member.name)}': one number a row is read as that of class 1"
    return member.noted(note, array=np.stack([first, array], -1), classes=None)


def _log_rest(logs: NDArray[Any]) -> NDArray[Any]:
    """Return the logarithm of what is left, exact for probabilities near 0 and near 1."""
    with np.errstate(divide="ignore"):
        rest: NDArray[Any] = np.where(
            logs > -np.log(2), np.log(-np.expm1(logs)), np.log1p(-np.exp(logs))
        )
    return rest


_FIRST: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "prob": lambda p: 1 - p,
    "logit": np.zeros_like,
    "log_prob": _log_rest,
}


def _classes(member: Predictions) -> Predictions:
    if member.array.ndim != 2 or member.array.shape[1] < 2:
        raise _refuse(member)
    return member


def _labels(member: Predictions) -> Predictions:
    if member.array.ndim != 2:
        raise _refuse(member)
    return member


def _heads(member: Predictions) -> Predictions:
    if member.array.ndim != 3 or member.array.shape[2] < 2:
        raise _refuse(member)
    return member


def _regression(member: Predictions) -> Predictions:
    array = member.array
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise _refuse(member)
    return member.noted(array=array, classes=None)


def _mean_variance(member: Predictions) -> Predictions:
    if member.array.shape[1:] != (2,):
        raise _refuse(member)
    negative = int((member.array[:, 1] < 0).sum())
    if negative:
        raise DataError(
            f"'{printable(member.name)}' has {negative} negative variances in column 1; it takes "
            "the mean in column 0 and the variance in column 1: numpy.stack([mean, variance], -1)"
        )
    return member


def _quantiles(member: Predictions, levels: Sequence[float] | None) -> Predictions:
    if member.array.ndim != 2:
        raise _refuse(member)
    found = list(levels or member.levels or _levels_of(member))
    rising = all(a < b for a, b in zip([0.0, *found], [*found, 1.0], strict=True))
    if len(found) != member.array.shape[1] or not rising:
        raise DataError(
            f"'{printable(member.name)}' has {member.array.shape[1]} columns, and levels "
            f"{printable(found)}; give one level a column, rising, between 0 and 1: "
            "levels=[0.1, 0.5, 0.9]"
        )
    crossing = int((member.array[:, 1:] < member.array[:, :-1]).any(-1).sum())
    notes = [f"'{printable(member.name)}': quantiles cross in {crossing:,} rows"] * bool(crossing)
    return member.noted(*notes, levels=tuple(found), classes=None)


def _levels_of(member: Predictions) -> list[float]:
    """Return the levels that columns are named after, such as 0.1 or q0.1."""
    try:
        return [float(name.removeprefix("q")) for name in member.classes or ()]
    except ValueError:
        return []


_SHAPED: dict[str, Callable[[Predictions], Predictions]] = {
    "binary": _binary,
    "multiclass": _classes,
    "multilabel": _labels,
    "regression": _regression,
    "mean_variance": _mean_variance,
    "multi_head": _heads,
}

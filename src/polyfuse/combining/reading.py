"""Read what is handed in: files, arrays or tensors become members, labels, groups and costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.combining.naming import member_names
from polyfuse.errors import DataError, PolyfuseError, printable
from polyfuse.fitting import array_of
from polyfuse.predictions import LabelColumn, Predictions, read, read_labels, read_predictions
from polyfuse.predictions.tables import label_column

Array = NDArray[Any]
T = TypeVar("T")
Inputs = Sequence[Any] | Mapping[str, Any] | Array | Tensor


class Faults:
    """Faults that are gathered, to be told all at once."""

    def __init__(self) -> None:
        """Begin without any."""
        self.found: list[str] = []

    def of(self, call: Callable[[], T]) -> T | None:
        """Return what a call returns; where it refuses, keep its message."""
        try:
            return call()
        except PolyfuseError as error:
            self.found += str(error).split("\n")
            return None

    def raise_any(self) -> None:
        """Raise all of them, each once.

        Raises:
            DataError: where there are any.
        """
        if self.found:
            raise DataError("\n".join(dict.fromkeys(self.found)))


def members_of(
    given: Inputs,
    *,
    faults: Faults,
    space: str | None = None,
) -> list[Predictions]:
    """Read what was handed in as one `Predictions` a member.

    Args:
        given: paths, arrays or tensors; by name in a mapping; or `(member, row, ...)` stacked.
        faults: takes what could not be read.
        space: of the numbers, where it is known.

    Example:
        >>> [m.name for m in members_of({"cnn": np.ones((2, 1))}, faults=Faults())]
        ['cnn']
    """
    if isinstance(given, Mapping):
        names, entries = list(map(str, given)), list(given.values())
    else:
        entries = list(given)
        names = member_names(entries)
    found = [
        faults.of(partial(_member, entry, name, space))
        for entry, name in zip(entries, names, strict=True)
    ]
    return [member for member in found if member is not None]


def _member(entry: Any, name: str, space: str | None) -> Predictions:
    if isinstance(entry, Predictions):
        return replace(entry, name=name)
    if isinstance(entry, str | Path):
        return replace(read_predictions(entry, space=space), name=name)
    array = array_of(entry)
    whole = array.dtype.kind in "iub" and space is None
    return Predictions(name=name, array=array, space="label" if whole else space)


def labels_of(given: Any, what: str = "labels") -> LabelColumn:
    """Read labels: a path, an array, a tensor, or a list of numbers or names.

    Example:
        >>> labels_of(["b", "a"]).names
        ['a', 'b']
    """
    if isinstance(given, LabelColumn):
        return given
    if isinstance(given, str | Path):
        return read_labels(given)
    values = array_of(given)
    if values.dtype.kind not in "iufbUS":
        raise DataError(f"{what} are {values.dtype}; bring numbers, or names as text")
    return label_column(what, values)


def by_ids(column: LabelColumn, ids: Sequence[str] | None, what: str) -> LabelColumn:
    """Return a column in the order of these ids, where both have some.

    Raises:
        DataError: ids that it lacks.

    Example:
        >>> column = LabelColumn(values=np.array([1, 2]), ids=["b", "a"])
        >>> by_ids(column, ["a", "b"], "groups").values.tolist()
        [2, 1]
    """
    if ids is None or column.ids is None or list(ids) == list(column.ids):
        return column
    place = {name: number for number, name in enumerate(column.ids)}
    missing = [name for name in ids if name not in place]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"the {what} lack the row '{printable(missing[0])}'{more}; bring one value for each "
            "row of the predictions, under the same ids"
        )
    order = np.array([place[name] for name in ids])
    return LabelColumn(values=column.values[order], ids=list(ids), names=column.names)


def groups_of(
    given: Any, ids: Sequence[str] | None, count: int, what: str = "groups"
) -> NDArray[np.int64] | None:
    """Return the group of each row as a number, or None where there are none.

    Raises:
        DataError: not one a row.

    Example:
        >>> groups_of(["x", "y", "x"], None, 3).tolist()
        [0, 1, 0]
    """
    if given is None:
        return None
    values = by_ids(labels_of(given, what), ids, what).values
    if values.shape != (count,):
        raise DataError(
            f"{what} of shape {values.shape} do not fit {count} rows; bring one group a row"
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def costs_of(given: Any, names: Sequence[str]) -> NDArray[np.float64]:
    """Return what each member costs: numbers in the members' order, or a file or mapping by name.

    Raises:
        DataError: another number of them, names that are no members, negative or infinite ones.

    Example:
        >>> costs_of({"b": 2, "a": 1}, ["a", "b"]).tolist()
        [1.0, 2.0]
    """
    if given is None:
        return np.ones(len(names))
    if isinstance(given, Mapping):
        given = LabelColumn(values=np.array(list(given.values()), float), ids=list(given))
    column = by_ids(labels_of(given), names, "costs")
    costs = column.values.astype(np.float64)
    if costs.shape != (len(names),) or not (np.isfinite(costs) & (costs >= 0)).all():
        raise DataError(
            f"costs must be {len(names)} finite numbers, none negative, one a member: "
            f"{printable(', '.join(names))}; got {printable(costs.tolist())}"
        )
    return costs


def trained_of(given: Any, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return which member trained on which row, `(member, row)` booleans, or None.

    Raises:
        DataError: another shape, or no booleans.

    Example:
        >>> trained_of([[True], [False]], (2, 1)).tolist()
        [[True], [False]]
    """
    if given is None:
        return None
    mask = read(Path(given)) if isinstance(given, str | Path) else array_of(given)
    if mask.dtype != bool or mask.shape != shape:
        raise DataError(
            f"trained must be booleans (member, row) of shape {shape}, got {mask.dtype} of shape "
            f"{mask.shape}; polyfuse.leaks.trained_mask(rows, {shape[1]}) makes them"
        )
    return np.asarray(mask, dtype=bool)

"""Labels in the numbers of the predictions' columns: matched by name, never guessed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from polyfuse.errors import DataError, printable
from polyfuse.predictions.base import LabelColumn

_SHOWN = 5


def code(labels: LabelColumn, count: int, classes: Sequence[str] | None) -> LabelColumn:
    """Return labels as numbers of the columns of predictions.

    Args:
        labels: whole numbers, or texts.
        count: of columns.
        classes: names of the columns, where they have any.

    Returns:
        Matched by name where texts or numbers are names of columns; numbers from 0 to `count - 1`
        as they are; others, and texts without names of columns, in sorted order, where there is
        one a column: `names` says which is which, and a note tells.

    Raises:
        DataError: labels that are no classes of these columns.

    Example:
        >>> labels = LabelColumn(values=np.array([30, 10, 20]))
        >>> code(labels, 3, ["10", "20", "30"]).values
        array([2, 0, 1])
    """
    if labels.values.dtype.kind == "f":
        raise DataError(
            f"'{labels.name}' has fractions, such as {_fraction(labels)}; classes are whole "
            'numbers or texts. For regression say task="regression"'
        )
    present = np.unique(labels.values).tolist()
    names = list(labels.names or map(str, present))
    called = {number: labels.names[number] if labels.names else str(number) for number in present}
    if classes is not None and set(called.values()) <= set(classes):
        numbers = {name: i for i, name in enumerate(classes)}
        return _recoded(labels, {n: numbers[name] for n, name in called.items()}, list(classes))
    if labels.names is None and 0 <= present[0] <= present[-1] < count:
        return labels
    if len(names) != count or classes is not None:
        raise _misfit(labels, called, count, classes)
    order = {number: i for i, number in enumerate(present)}
    note = (
        f"'{labels.name}': labels are matched with columns in sorted order: "
        + ", ".join(f"{i} is '{printable(name, 40)}'" for i, name in enumerate(names[:_SHOWN]))
        + (", ..." if count > _SHOWN else "")
    )
    known = order if labels.names is None else {number: number for number in present}
    return replace(_recoded(labels, known, names), notes=[*labels.notes, note])


def _recoded(labels: LabelColumn, numbers: Mapping[int, int], names: list[str]) -> LabelColumn:
    present = np.array(sorted(numbers))
    codes = np.array([numbers[number] for number in present.tolist()], np.int64)
    values = codes[np.searchsorted(present, labels.values)]
    return replace(labels, values=values, names=names)


def _fraction(labels: LabelColumn) -> float:
    values = labels.values
    return float(values[values != np.floor(values)][:1].sum())


def _misfit(
    labels: LabelColumn, called: Mapping[int, str], count: int, classes: Sequence[str] | None
) -> DataError:
    found = list(called.values())
    strange = [name for name in found if classes is None or name not in classes]
    shown = ", ".join(f"'{printable(name, 40)}'" for name in strange[:_SHOWN])
    more = ", ..." if len(strange) > _SHOWN else ""
    if classes is not None:
        columns = printable(", ".join(classes), 120)
        return DataError(
            f"'{labels.name}' has labels that are no columns of the predictions: {shown}{more}; "
            f"these are {columns}: rename the columns or the labels"
        )
    fix = (
        "they count from 1: subtract 1"
        if labels.names is None and min(called) == 1 and max(called) == count
        else "name the columns of the predictions after the labels"
    )
    return DataError(
        f"'{labels.name}' has {len(found)} different labels ({shown}{more}), which do not fit "
        f"{count} columns, numbered 0 to {count - 1}; {fix}"
    )

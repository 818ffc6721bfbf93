"""Answers as a table: ids, and probabilities or decided classes under the names that came in."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from polyfuse import tables
from polyfuse.sequences import DIGITS, decode, strings

Array = NDArray[Any]


def submission(
    prediction: Array,
    kind: str,
    *,
    ids: Sequence[str] | None,
    columns: Sequence[str],
    classes: Sequence[str] | None = None,
    levels: Sequence[float] = (),
    blank: int | None = None,
) -> str:
    r"""Return predictions as CSV.

    Args:
        prediction: as it goes out: `(row, ...)` probabilities or numbers, or decided classes.
        kind: of the task.
        ids: of the rows; their numbers from 0 where None.
        columns: the name of the column of ids, and of the one other column where there was one.
        classes: names of classes or labels.
        levels: of quantiles.
        blank: of character strings, which are then written as text.

    Example:
        >>> import numpy as np
        >>> decided, called = np.array([1, 0]), ["cat", "dog"]
        >>> submission(decided, "multiclass", ids=["x", "y"], columns=["id"], classes=called)
        'id,label\nx,dog\ny,cat\n'
    """
    names = list(map(str, ids)) if ids is not None else [str(n) for n in range(len(prediction))]
    if kind == "multi_head":
        decided = prediction if prediction.ndim == 2 else prediction.argmax(-1)
        titles, cells = _heads(decided, columns, classes, blank)
    elif prediction.dtype.kind != "f":
        titles, cells = _decided(prediction, columns, classes)
    else:
        titles, cells = _numbers(prediction, columns, classes, levels)
    lines = [[name, *row] for name, row in zip(names, cells, strict=True)]
    return tables.comma_separated([columns[0], *titles], lines)


Cells = tuple[list[str], list[list[str]]]


def _heads(
    decided: Array, columns: Sequence[str], classes: Sequence[str] | None, blank: int | None
) -> Cells:
    if blank is not None:
        return [_only(columns, "label")], [[text] for text in _texts(decided, classes, blank)]
    titles = [f"position_{number}" for number in range(decided.shape[1])]
    return titles, [[_called(one, classes) for one in row] for row in decided.tolist()]


def _texts(decided: Array, classes: Sequence[str] | None, blank: int) -> list[str]:
    """Return strings in the characters that the classes are called, or in digits.

    Where neither fits, they are numbers with a space between them: 11 is not 1 and 1.
    """
    read = decode(decided, blank=blank)
    names = [name for number, name in enumerate(classes or DIGITS) if number != blank]
    names.insert(blank, "\0")  # never written: the blank has no character
    if len(names) <= read.max() or any(len(n) != 1 for n in names) or len(set(names)) < len(names):
        return [" ".join(str(one) for one in row if one != blank) for row in read.tolist()]
    return strings(read, blank=blank, alphabet="".join(names))


def _decided(prediction: Array, columns: Sequence[str], classes: Sequence[str] | None) -> Cells:
    if prediction.ndim == 1:
        rows = [[_called(one, classes)] for one in prediction.tolist()]
        return [_only(columns, "label")], rows
    titles = list(classes or map(str, range(prediction.shape[1])))
    return titles, [list(map(str, row)) for row in prediction.tolist()]


def _numbers(
    prediction: Array,
    columns: Sequence[str],
    classes: Sequence[str] | None,
    levels: Sequence[float],
) -> Cells:
    # NumPy writes the shortest text that reads back as the same number.
    cells = prediction.reshape(len(prediction), -1).astype(str).tolist()
    if prediction.ndim == 1:
        return [_only(columns, "prediction")], cells
    width = prediction.shape[1]
    if levels:
        return [f"q{level:g}" for level in levels], cells
    return list(classes if classes and len(classes) == width else map(str, range(width))), cells


def _only(columns: Sequence[str], default: str) -> str:
    return columns[1] if len(columns) > 1 else default


def _called(number: int, classes: Sequence[str] | None) -> str:
    return classes[number] if classes and number < len(classes) else str(number)

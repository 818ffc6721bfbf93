"""A table of ids, numbers and texts, and the predictions or labels that it holds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.predictions.base import LabelColumn, Predictions, coded

_ID = re.compile(
    r"|index|image|img|file|path|row|key|uuid|sample|__index_level_0__"
    r"|((file|image|img|row|sample|example|object)?[ _-]?(name|id|ids|index|path))|.*[ _-]id",
    re.IGNORECASE,
)
_CAMEL_ID = re.compile(r".*[a-z](Id|ID)")


class Table(NamedTuple):
    """What a file of columns holds.

    Attributes:
        name: of the file, printable.
        names: of all columns; None where the file has no header.
        ids: of the rows; None where it has none.
        texts: cells of the other columns that hold text, by position.
        numbers: `(n, columns)` float64 of those that hold numbers.
        numeric: their positions.
        whole: all numbers are written as whole ones.
    """

    name: str
    names: list[str] | None
    ids: list[str] | None
    texts: Mapping[int, list[str]]
    numbers: NDArray[np.float64]
    numeric: list[int]
    whole: bool

    def column(self, position: int) -> str:
        """Return what a column is called."""
        return self.names[position] if self.names is not None else f"column {position}"


def is_id_name(name: str) -> bool:
    """Tell whether a column is called as ids are.

    Example:
        >>> [is_id_name(n) for n in ("id", "file_name", "PassengerId", "", "cat", "covid")]
        [True, True, True, True, False, False]
    """
    plain = name.strip()
    return bool(_ID.fullmatch(plain) or _CAMEL_ID.fullmatch(plain))


def position_of(shown: str, names: Sequence[str] | None, width: int, wanted: str) -> int:
    """Return the position of a column, by its name or its number.

    Raises:
        DataError: there is none of that name.

    Example:
        >>> position_of("a.csv", ["id", "cat"], 2, "cat"), position_of("a.csv", None, 2, "1")
        (1, 1)
    """
    if names is not None and wanted in names:
        return list(names).index(wanted)
    if wanted.isascii() and wanted.isdigit() and int(wanted) < width:
        return int(wanted)
    has = ", ".join(names) if names is not None else f"0 to {width - 1} and no header"
    raise DataError(
        f"'{shown}' has no column '{printable(wanted)}'{did_you_mean(wanted, names or ())}; "
        f"it has {printable(has)}"
    )


def predictions_of(table: Table) -> Predictions:
    """Return what a table predicts: a column of labels or of numbers, or one column a class.

    Raises:
        DataError: columns of text beside the numbers.

    Example:
        >>> table = Table("a.csv", ["id", "label"], ["a", "b"], {1: ["dog", "cat"]},
        ...               np.empty((2, 0)), [], False)
        >>> predictions_of(table).array, predictions_of(table).classes
        (array([1, 0]), ['cat', 'dog'])
    """
    if len(table.texts) == 1 and not table.numeric:
        ((position, cells),) = table.texts.items()
        codes, names = coded(cells)
        facts = {"column": table.column(position), **_of_ids(table)}
        return Predictions(
            name=table.name, array=codes, space="label", ids=table.ids, classes=names, facts=facts
        )
    if table.texts or not table.numeric:
        text = ", ".join(table.column(i) for i in table.texts) or "none but ids"
        raise DataError(
            f"'{table.name}' has columns without numbers: {printable(text)}; drop them, or name "
            "the one that holds the rows' ids: id_column=..."
        )
    return _of_numbers(table)


def _of_numbers(table: Table) -> Predictions:
    called = [table.column(i) for i in table.numeric]
    if len(called) > 1:
        classes = called if table.names is not None else None
        return Predictions(
            name=table.name,
            array=table.numbers,
            ids=table.ids,
            classes=classes,
            facts=_of_ids(table),
        )
    column = table.numbers[:, 0]
    array: NDArray[Any] = column.astype(np.int64) if table.whole else column
    space = "label" if table.whole else None
    facts = {"column": called[0], **_of_ids(table)}
    return Predictions(name=table.name, array=array, space=space, ids=table.ids, facts=facts)


def _of_ids(table: Table) -> dict[str, str]:
    """Return what the column of ids is called."""
    if table.ids is None or table.names is None:
        return {}
    others = {*table.texts, *table.numeric}
    own = [name for i, name in enumerate(table.names) if i not in others]
    return {"id_column": own[0]} if own else {}


def labels_of(table: Table, column: str | None = None) -> LabelColumn:
    """Return the labels in a table.

    Args:
        table: of one column beside the ids, or of several with whole numbers (heads).
        column: which one; needed where there are several and any holds text or fractions.

    Raises:
        DataError: no such column, several to choose from, or rows without a label.

    Example:
        >>> table = Table("y.csv", None, None, {}, np.array([[1.0], [3.0]]), [0], True)
        >>> labels_of(table).values
        array([1, 3])
    """
    width = len(table.texts) + len(table.numeric) + (table.ids is not None)
    texts, numbers, numeric = dict(table.texts), table.numbers, list(table.numeric)
    if column is not None:
        chosen = position_of(table.name, table.names, width, column)
        texts = {i: cells for i, cells in texts.items() if i == chosen}
        numbers = numbers[:, [i == chosen for i in numeric]]
        numeric = [i for i in numeric if i == chosen]
    if len(texts) == 1 and not numeric:
        cells = next(iter(texts.values()))
        _refuse_missing(table.name, np.array([not cell.strip() for cell in cells]))
        codes, names = coded(cells)
        return LabelColumn(values=codes, ids=table.ids, names=names, name=table.name)
    if texts or not numeric or (len(numeric) > 1 and not (numbers == np.floor(numbers)).all()):
        known = ", ".join(table.column(i) for i in sorted([*texts, *numeric])) or "none but ids"
        raise DataError(
            f"'{table.name}' has these columns: {printable(known)}; name the one that holds the "
            "labels: column=..."
        )
    return label_column(table.name, numbers[:, 0] if len(numeric) == 1 else numbers, ids=table.ids)


def label_column(
    name: str, array: NDArray[Any], *, ids: Sequence[str] | None = None
) -> LabelColumn:
    """Return an array as labels: whole numbers as int64, texts coded, other numbers as float64.

    Raises:
        DataError: rows without a label, or no rows.

    Example:
        >>> label_column("y.npy", np.array(["b", "a"])).names
        ['a', 'b']
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim < 1 or not array.size:
        raise DataError(f"'{name}' has no labels: its shape is {array.shape}; bring one a row")
    if array.dtype.kind in "US":
        texts = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        codes, names = coded(texts.reshape(-1).tolist())
        return LabelColumn(values=codes.reshape(array.shape), ids=ids, names=names, name=name)
    if array.dtype.kind in "iub":
        return LabelColumn(values=array.astype(np.int64), ids=ids, name=name)
    _refuse_missing(name, np.isnan(array).reshape(len(array), -1).any(-1))
    whole = bool((array == np.floor(array)).all() and (np.abs(array) < 2**53).all())
    return LabelColumn(values=array.astype(np.int64 if whole else np.float64), ids=ids, name=name)


def _refuse_missing(name: str, missing: NDArray[np.bool_]) -> None:
    if missing.any():
        first = ", ".join(map(str, np.flatnonzero(missing)[:3] + 1))
        raise DataError(
            f"'{name}' has no label in {int(missing.sum()):,} rows (first: {first}); leave these "
            "rows out"
        )

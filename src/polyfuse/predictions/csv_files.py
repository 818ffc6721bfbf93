"""Text tables as RFC 4180 has them: read some rows at a time, checked, ids kept as they stand."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.predictions.files import open_file
from polyfuse.predictions.tables import Table, is_id_name, position_of

_CELLS = 1 << 17  # that are held as text, at most
_LINE = 64_000_000  # characters, at most
_SHOWN = 5
_MISSING = {"", "na", "nan", "n/a", "null", "none"}
_SEPARATORS = ",;\t"
Row = list[str]


def read_csv(
    path: Path,
    *,
    id_column: str | None = None,
    header: bool | None = None,
    labels: bool = False,
) -> Table:
    r"""Read a table of a column of ids, perhaps, and of numbers or texts.

    Commas, semicolons or tabs separate cells; which, the first line tells. Empty cells, `NA` and
    `nan` are NaN.

    Args:
        path: UTF-8 text.
        id_column: name of the column of row names, or its number where there is no header. By
            default the first column, where it holds text or is named as ids are.
        header: whether the first row has names; told from the rows where None.
        labels: one text among numbers makes a column of texts; otherwise it is a fault.

    Raises:
        DataError: no UTF-8, rows of other lengths, open quotes, NUL, numbers that are none.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = target.write_text("id,cat,dog\na,0.25,0.75\n")
        >>> table = read_csv(target)
        >>> table.names, table.ids, table.numbers.tolist()
        (['id', 'cat', 'dog'], ['a'], [[0.25, 0.75]])
    """
    shown = printable(path)
    descriptor, _ = open_file(path)
    with open(descriptor, encoding="utf-8-sig", newline="") as file:
        try:
            return _read(file, shown, id_column, header, labels)
        except UnicodeDecodeError as error:
            raise DataError(
                f"'{shown}' is no UTF-8 text (byte {error.object[error.start]:#04x}); save it as "
                'CSV in UTF-8: frame.to_csv(path, index=False, encoding="utf-8")'
            ) from None
        except csv.Error as error:
            raise DataError(
                f"'{shown}' is no CSV as RFC 4180 has it ({printable(error)}); write it with "
                "csv.writer, or frame.to_csv(path, index=False)"
            ) from None


def _read(
    file: TextIO, shown: str, id_column: str | None, header: bool | None, labels: bool
) -> Table:
    lines = _lines(file, shown)
    first = next(lines, "")
    separator = max(_SEPARATORS, key=first.count)
    rows = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    top = next(rows, [])
    if not top:
        raise DataError(f"'{shown}' has no rows; bring a table of ids and predictions")
    width = len(top)
    blocks = iter(lambda: list(islice(rows, max(1, _CELLS // width))), [])
    begin = [top, *next(blocks, [])]
    named = has_header(begin) if header is None else header
    names = [name.strip() for name in begin[0]] if named else None
    _check_names(shown, names)
    begin = begin[1:] if named else begin
    position = _id_position(shown, names, begin, width, id_column)
    columns = _Columns(shown, names, width, position, labels)
    for block in _without_blank_end(chain([begin], blocks)):
        columns.add(block)
    return columns.table()


def _lines(file: TextIO, shown: str) -> Iterator[str]:
    while line := file.readline(_LINE):
        if "\0" in line or len(line) == _LINE:
            what = "a NUL character" if "\0" in line else f"a line of {_LINE:,} characters"
            raise DataError(f"'{shown}' holds {what}; it is no text table: write it again")
        yield line


def _without_blank_end(blocks: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """Yield the blocks without the empty lines at the end; one in between is a fault."""
    blank = 0
    for block in blocks:
        said = len(block)
        while said and not block[said - 1]:
            said -= 1
        if said:
            yield [[]] * blank + block[:said]
            blank = 0
        blank += len(block) - said


def has_header(rows: Sequence[Row]) -> bool:
    """Tell whether the first of some rows has names.

    It has where its first cell is named as ids are, where it counts 0, 1, 2, ..., and where it has
    texts above numbers, or texts that do not occur again.

    Example:
        >>> has_header([["id", "0", "1"], ["a", "0.5", "0.5"]]), has_header([["0.5", "0.5"]])
        (True, False)
    """
    first, rest = rows[0], rows[1:]
    if is_id_name(first[0]) and len(first) > 1:
        return True
    if len(first) > 2 and first in _countings(len(first)):
        return True
    others = slice(len(first) > 1, None)  # but a column that may hold ids
    if all(map(_reads, first[others])):
        return False
    if not rest or all(map(_reads, rest[0][others])):
        return True
    return all(first[-1] != row[-1] for row in rest if row)


def _countings(width: int) -> list[Row]:
    return [[str(i) for i in range(start, start + width)] for start in (0, 1)]


def _number(cell: str) -> float:
    """Return a number, NaN where there is none; ValueError where it is something else."""
    if cell.strip().lower() in _MISSING:
        return np.nan
    if "_" in cell:  # Python takes 1_000 for a number; nobody else does
        raise ValueError(cell)
    return float(cell)


def _check_names(shown: str, names: Sequence[str] | None) -> None:
    twice = sorted({name for name in names or () if names and names.count(name) > 1})
    if twice:
        raise DataError(
            f"'{shown}' names these columns more than once: {printable(', '.join(twice))}; "
            "rename them"
        )


def _id_position(
    shown: str,
    names: Sequence[str] | None,
    rows: Sequence[Row],
    width: int,
    id_column: str | None,
) -> int | None:
    if id_column is not None:
        return position_of(shown, names, width, id_column)
    if width == 1:
        return None
    if names is not None and is_id_name(names[0]):
        return 0
    return None if all(_reads(row[0]) for row in rows if row) else 0


class _Columns:
    """The cells of a table, as they come."""

    def __init__(
        self,
        shown: str,
        names: Sequence[str] | None,
        width: int,
        id_position: int | None,
        labels: bool,
    ) -> None:
        self.shown, self.names, self.width = shown, names, width
        self.id_position, self.labels = id_position, labels
        self.numeric: list[int] | None = None
        self.texts: dict[int, list[str]] = {}
        self.parts: list[NDArray[np.float64]] = []
        self.whole = True
        self.rows = 0

    def add(self, rows: list[Row]) -> None:
        """Take the next rows."""
        self._check_lengths(rows)
        if self.numeric is None:
            self._begin(rows)
        for position, cells in self.texts.items():
            cells.extend(map(itemgetter(position), rows))
        self.parts.append(self._numbers(rows))
        self.rows += len(rows)

    def _check_lengths(self, rows: list[Row]) -> None:
        if set(map(len, rows)) == {self.width}:
            return
        odd = [(i, len(row)) for i, row in enumerate(rows, self.rows + 1) if len(row) != self.width]
        told = ", ".join(f"row {i:,} has {count}" for i, count in odd[:_SHOWN])
        raise DataError(
            f"'{self.shown}' has {self.width} columns, but {told}"
            f"{' and more' if len(odd) > _SHOWN else ''} (counted from 1 after the header); "
            "it is truncated or damaged: write it again, with quotes around commas"
        )

    def _begin(self, rows: list[Row]) -> None:
        """Decide from the first rows which columns hold numbers."""
        others = [i for i in range(self.width) if i != self.id_position]
        texts = {i: _texts_among([row[i] for row in rows]) for i in others}
        most = 0 if self.labels else len(rows) // 2
        self.numeric = [i for i, count in texts.items() if count <= most]
        self.texts = {i: [] for i in range(self.width) if i not in self.numeric}

    def _numbers(self, rows: list[Row]) -> NDArray[np.float64]:
        numeric = self.numeric or []
        if not numeric:
            return np.empty((len(rows), 0))
        pick: Callable[[Row], Any] = itemgetter(*numeric)
        picked = map(pick, rows)
        cells = list(picked if len(numeric) == 1 else chain.from_iterable(picked))
        text = "".join(cells)
        self.whole = self.whole and len(numeric) == 1 and not text.strip("-+0123456789 ")
        try:
            if "_" in text:
                raise ValueError
            flat = np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:  # missing ones, or no numbers at all
            flat = np.fromiter(self._one_by_one(cells), np.float64, len(cells))
        return flat.reshape(len(rows), len(numeric))

    def _one_by_one(self, cells: Sequence[str]) -> Iterator[float]:
        width = len(self.numeric or ())
        for i, cell in enumerate(cells):
            try:
                yield _number(cell)
            except ValueError:
                column = (self.numeric or [])[i % width]
                named = f"'{printable(self.names[column])}'" if self.names else str(column)
                fix = "; write decimals with a point" if "," in cell else ""
                raise DataError(
                    f"'{self.shown}', row {self.rows + i // width + 1:,}, column {named}: "
                    f"'{printable(cell, 60)}' is no number{fix}"
                ) from None

    def table(self) -> Table:
        """Return all of it."""
        if not self.rows:
            raise DataError(f"'{self.shown}' has a header and no rows; bring predictions")
        numbers = np.concatenate(self.parts)
        return Table(
            self.shown,
            list(self.names) if self.names is not None else None,
            self.texts.pop(self.id_position) if self.id_position is not None else None,
            self.texts,
            numbers,
            self.numeric or [],
            self.whole and numbers.size > 0 and bool(np.isfinite(numbers).all()),
        )


def _texts_among(cells: Sequence[str]) -> int:
    """Return how many cells are no numbers; fast where none is."""
    try:
        for _ in map(float, cells):
            pass
    except ValueError:
        return sum(not _reads(cell) for cell in cells)
    return sum("_" in cell for cell in cells)


def _reads(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True

"""Parquet tables, the only file that imports pyarrow."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, MissingExtraError, printable
from polyfuse.predictions.files import open_file
from polyfuse.predictions.tables import Table, is_id_name, position_of

_LIMIT = 8 << 30  # bytes, unpacked


def read_parquet(path: Path, *, id_column: str | None = None) -> Table:
    """Read a table of a column of ids, perhaps, and of numbers or texts; nulls are NaN.

    One column of lists of equal length counts as so many columns.

    Args:
        path: of the file.
        id_column: name of the column of row names; by default the first one, where it holds text or
            is named as ids are.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: no Parquet file, a damaged one, one that unpacks to more than 8 GB, or columns of
            other types.

    Example:
        >>> read_parquet(Path("/no/such.parquet"))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such.parquet': No such file or directory
    """
    shown = printable(path)
    descriptor, _ = open_file(path)
    with open(descriptor, "rb") as file:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingExtraError(
                f"'{shown}' needs pyarrow, which is not installed: pip install 'polyfuse[parquet]'"
            ) from None
        try:
            opened = parquet.ParquetFile(file)
            _check_size(shown, opened.metadata)
            frame = opened.read()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"'{shown}' is no sound Parquet file ({printable(error)}); write it again: "
                "frame.to_parquet(path)"
            ) from None
    return _table(shown, frame, id_column)


def _check_size(shown: str, metadata: Any) -> None:
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(i).total_byte_size for i in groups)
    if max(size, metadata.num_rows * metadata.num_columns) > _LIMIT:
        raise DataError(
            f"'{shown}' states {metadata.num_rows:,} rows in {size:,} bytes; at most {_LIMIT:,} "
            "are read: save the predictions with numpy.save(path, array)"
        )


def _table(shown: str, frame: Any, id_column: str | None) -> Table:
    names = [str(name) for name in frame.column_names]
    if not names or not frame.num_rows:
        raise DataError(f"'{shown}' has no rows; bring a table of ids and predictions")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"'{shown}' names columns more than once: {printable(', '.join(twice))}")
    chosen = _id_position(shown, frame, names, id_column)
    ids = None if chosen is None else _texts(frame.column(chosen))
    texts: dict[int, list[str]] = {}
    numbers: dict[int, NDArray[Any]] = {}
    for i, name in enumerate(names):
        if i == chosen:
            continue
        if _holds_text(frame.column(i).type):
            texts[i] = _texts(frame.column(i))
        else:
            numbers[i] = _numbers(shown, name, frame.column(i))
    if len(numbers) == 1 and next(iter(numbers.values())).ndim == 2:
        return _of_lists(shown, ids, texts, next(iter(numbers.values())))
    columns = list(numbers.values())
    whole = bool(columns) and all(column.dtype.kind in "iub" for column in columns)
    stacked = np.stack(columns, -1) if columns else np.empty((frame.num_rows, 0))
    table = stacked.astype(np.float64, copy=False)
    return Table(shown, names, ids, texts, table, list(numbers), whole)


def _of_lists(
    shown: str, ids: list[str] | None, texts: dict[int, list[str]], rows: NDArray[Any]
) -> Table:
    """Return the table of a column of lists, which has no names."""
    if texts:
        raise DataError(f"'{shown}' has columns of text beside one of lists; drop them")
    return Table(shown, None, ids, {}, rows, list(range(rows.shape[1])), False)


def _id_position(shown: str, frame: Any, names: list[str], id_column: str | None) -> int | None:
    if id_column is not None:
        return position_of(shown, names, len(names), id_column)
    if "__index_level_0__" in names:  # of pandas
        return names.index("__index_level_0__")
    if len(names) == 1:
        return None
    return 0 if is_id_name(names[0]) or _holds_text(frame.column(0).type) else None


def _holds_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view") or str(kind).startswith("dict")


def _texts(column: Any) -> list[str]:
    return ["" if cell is None else str(cell) for cell in column.to_pylist()]


def _numbers(shown: str, name: str, column: Any) -> NDArray[Any]:
    kind = str(column.type)
    if kind.startswith(("list<", "large_list<", "fixed_size_list<")):
        try:
            rows = np.array(column.to_pylist(), np.float64)
        except (ValueError, TypeError):
            rows = np.empty(0)
        if rows.ndim == 2:
            return rows
    elif kind.rstrip("0123456789") in ("float", "double", "halffloat", "int", "uint", "bool"):
        flat: NDArray[Any] = column.to_numpy()
        return flat.astype(np.float64) if flat.dtype.kind == "O" else flat
    raise DataError(
        f"'{shown}', column '{printable(name)}' holds {printable(kind)}, no numbers or lists of "
        "one length; convert it: frame.astype('float32')"
    )

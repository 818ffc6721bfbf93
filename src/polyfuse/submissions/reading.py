"""Read a submission as text, cell by cell; whatever is wrong with the file is told at once."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from polyfuse.errors import DataError, printable
from polyfuse.predictions.files import open_file
from polyfuse.submissions.base import Fault, Submission, shown

LIMIT = 256 << 20  # bytes
_BOM = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_SEPARATORS = ";\t"


def read_submission(path: str | Path) -> tuple[Submission | None, list[Fault]]:
    r"""Read a file of two columns: ids and answers, all as text.

    Args:
        path: CSV in UTF-8 with a header.

    Returns:
        The submission, without the rows that are none; None where nothing can be read. And faults:
        of the file, not of what its answers mean.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = target.write_text("file_name,file_code\n0.png,007\n\n1.png,12\n")
        >>> found, faults = read_submission(target)
        >>> found.answers, [fault.kind for fault in faults]
        (['007', '12'], ['empty_rows'])
    """
    name = printable(path)
    try:
        text, faults = _text(Path(path), name)
        separator = _separator(text)
        if separator != ",":
            fact = f"cells are separated by {separator!r}; write it with commas"
            faults.append(Fault(name, "separator", fact))
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        return None, [Fault(name, "unreadable", f"no CSV: {printable(error)}; write it again")]
    except DataError as error:
        return None, [Fault(name, "unreadable", str(error))]
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        return None, [*faults, Fault(name, "unreadable", "it is empty; bring ids and answers")]
    return _of_rows(name, rows, faults)


def _text(path: Path, name: str) -> tuple[str, list[Fault]]:
    descriptor, size = open_file(path)
    with os.fdopen(descriptor, "rb") as file:
        if size > LIMIT:
            raise DataError(f"{size:,} bytes, and {LIMIT:,} are the most that is read")
        content = file.read(LIMIT + 1)
    faults = []
    if content.startswith(_BOM):
        content = content.removeprefix(_BOM)
        fact = 'it begins with a byte order mark; save it as plain UTF-8 (not "utf-8-sig")'
        faults.append(Fault(name, "bom", fact))
    if content.startswith(_WIDE) or b"\0" in content:
        raise DataError("it is UTF-16 text, or no text at all; save it as CSV in UTF-8")
    try:
        return content.decode("utf-8"), faults
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.object[error.start]:#04x} is no UTF-8; save it as CSV in UTF-8"
        ) from None


def _separator(text: str) -> str:
    head = text.partition("\n")[0]
    return "," if "," in head else max(_SEPARATORS, key=head.count) if _other(head) else ","


def _other(head: str) -> bool:
    return any(sign in head for sign in _SEPARATORS)


def _of_rows(
    name: str, rows: list[list[str]], faults: list[Fault]
) -> tuple[Submission | None, list[Fault]]:
    head, body = rows[0], rows[1:]
    if len(head) != 2:
        fact = (
            f"its header has {len(head)} columns, {shown(head)}; a submission has two: ids, answers"
        )
        return None, [*faults, Fault(name, "columns", fact)]
    if not body:
        return None, [*faults, Fault(name, "unreadable", "a header and no rows; bring answers")]
    faults += _row_faults(name, body)
    kept = [row for row in body if len(row) == 2 and any(row)]
    columns = (head[0], head[1])
    return Submission(name, columns, [row[0] for row in kept], [row[1] for row in kept]), faults


def _row_faults(name: str, body: Sequence[Sequence[str]]) -> list[Fault]:
    empty = [number for number, row in enumerate(body, 1) if not any(row)]
    uneven = [
        f"row {number:,} has {len(row)}"
        for number, row in enumerate(body, 1)
        if any(row) and len(row) != 2
    ]
    faults = []
    if empty:
        numbers = shown(empty, quote="")
        fact = f"empty rows, {len(empty):,}: after the header {numbers}; write it again"
        faults.append(Fault(name, "empty_rows", fact))
    if uneven:
        which = shown(uneven, quote="")
        fact = f"rows without two cells, {len(uneven):,}: {which}; it is cut off or damaged"
        faults.append(Fault(name, "cells", fact))
    return faults

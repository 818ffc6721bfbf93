"""A table as markdown, CSV, HTML or a pandas DataFrame; cells are escaped for their format."""

import csv
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from polyfuse.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas


class Table(NamedTuple):
    """Text cells under column names; the first column names the row.

    Attributes:
        title: what the table shows.
        columns: names.
        rows: as many cells each as there are columns.
        bold: numbers of the rows to stress.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = frozenset()


def markdown(table: Table) -> str:
    """Return a table as GitHub markdown.

    Example:
        >>> print(markdown(Table("scores", ["name", "x"], [["a", "1"]])))
        | name | x |
        |---|--:|
        | a | 1 |
    """
    lines = [
        list(table.columns),
        *(_stressed(row, i in table.bold) for i, row in enumerate(table.rows)),
    ]
    text = ["| " + " | ".join(map(_one_line, line)) + " |" for line in lines]
    rule = "|---" + "|--:" * (len(table.columns) - 1) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def comma_separated(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    r"""Return rows as CSV with `\n` line ends; None is an empty cell.

    Example:
        >>> comma_separated(["name", "x"], [["a", 1.5], ["b", None]])
        'name,x\na,1.5\nb,\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()


def hypertext(table: Table) -> str:
    """Return a table as HTML for a notebook; every cell is escaped.

    Example:
        >>> "&lt;b&gt;" in hypertext(Table("", ["name"], [["<b>"]]))
        True
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = []
    for i, row in enumerate(table.rows):
        tag = "th" if i in table.bold else "td"
        body.append("<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row) + "</tr>")
    return (
        f"<table><caption>{html.escape(table.title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def data_frame(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "pandas.DataFrame":
    """Return rows as a pandas DataFrame.

    Raises:
        MissingExtraError: pandas is not installed.

    Example:
        >>> data_frame(["name", "x"], [["a", 1.5]]).shape
        (1, 2)
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError(
            "to_pandas() needs pandas, which is not installed: pip install pandas"
        ) from None
    return pandas.DataFrame([list(row) for row in rows], columns=list(columns))


def amount(count: float) -> str:
    """Return a number of bytes for people: GB are 1000^3 bytes, as disks and --max-shard-size have.

    Example:
        >>> amount(999), amount(1_500_000), amount(2.8e9)
        ('999 B', '1.50 MB', '2.80 GB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    digits = 0 if units[0] == "B" or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:,.{digits}f} {units[0]}"


def _stressed(row: Sequence[str], bold: bool) -> list[str]:
    return [f"**{cell}**" if bold and cell else cell for cell in row]


def _one_line(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").splitlines())

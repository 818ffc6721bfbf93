"""The terminal: progress bars with time left, tables that fit. The only file that imports rich.

All text is shown as it is, never read as markup, and control characters are escaped. Progress goes
to stderr, results to stdout, so that a pipe sees results only.
"""

import sys
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from polyfuse.errors import printable
from polyfuse.tables import Table, amount

WIDE = 96  # columns from which a table's cells get room to breathe


class Bars:
    """Progress bars by name, with time left; a line when each is done where there is no terminal.

    Args:
        quiet: show nothing at all.
        in_bytes: what is counted is bytes; speed is shown, too.

    Example:
        >>> with Bars(quiet=True) as bars:
        ...     bars("data", 1, 2, "")
    """

    def __init__(self, *, quiet: bool = False, in_bytes: bool = False) -> None:
        """Draw on stderr."""
        self._in_bytes = in_bytes
        counted = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._live = self._console.is_terminal and not quiet
        self._tasks: dict[str, TaskID] = {}
        self._done: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *counted,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._live,
        )

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing and leave the bars as they are."""
        if self._live:
            self._progress.stop()

    def __call__(self, name: str, done: float, total: float, note: str = "") -> None:
        """Show how far the work of this name is."""
        if self._live:
            self._draw(name, done, total, printable(note))
        elif done >= total and name not in self._done and not self._quiet:
            self._done.add(name)
            count = amount(total) if self._in_bytes else f"{total:,.0f}"
            line = f"{printable(name)}: {count} done {printable(note)}".rstrip()
            print(line, file=sys.stderr)  # noqa: T201  # this is the terminal

    def _draw(self, name: str, done: float, total: float, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(printable(name), total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)


def show_table(table: Table) -> None:
    """Print a table to stdout, fitted to the terminal.

    Example:
        >>> show_table(Table("", ["name", "x"], [["[red]a", "1"]]))
        <BLANKLINE>
          name     x
         ────────────
          [red]a   1
        <BLANKLINE>
    """
    console = _stdout()
    drawn = RichTable(
        title=Text(table.title, style="bold"),
        box=box.SIMPLE,
        title_justify="left",
        padding=(0, 1) if console.width >= WIDE else 0,
    )
    for i, column in enumerate(table.columns):
        drawn.add_column(Text(printable(column)), justify="left" if i == 0 else "right")
    for i, row in enumerate(table.rows):
        style = "bold green" if i in table.bold else ""
        drawn.add_row(*(Text(printable(cell)) for cell in row), style=style)
    console.print(drawn)


def show_text(text: str) -> None:
    """Print text to stdout, wrapped to the terminal.

    Example:
        >>> show_text("[b]hello")
        [b]hello
    """
    _stdout().print(Text(escaped(text)), soft_wrap=not sys.stdout.isatty())


def show_error(text: str) -> None:
    """Print an error to stderr.

    Example:
        >>> show_error("the disk is full")
    """
    console = Console(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), escaped(text)), soft_wrap=True)


def escaped(text: str) -> str:
    r"""Return text with its control characters escaped and its lines kept.

    Example:
        >>> escaped("one\ntwo\x1b[31m")
        'one\ntwo\\x1b[31m'
    """
    return "\n".join(printable(line, limit=len(line) * 10) for line in text.split("\n"))


def _stdout() -> Console:
    # A table in a pipe or a log is as wide as it needs, not as narrow as an unknown terminal.
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 110))

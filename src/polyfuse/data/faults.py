"""What is wrong with the files of a data set: all of it at once, by file; and what to leave out.

Nothing is left out by itself. Faults are an error that counts them by kind, names the first, and
can write all of them as a list; that list, given back, leaves out the files that are on it.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from polyfuse import durable, tables
from polyfuse.errors import DataError, PolyfuseError, printable

COLUMNS = ("file", "kind", "fact")
SHOWN = 20  # faults that the error itself names
_LIMIT = 64 << 20  # bytes of a list
_PATH = 1000  # characters of a path that is not cut


class Fault(NamedTuple):
    """One thing that is wrong with one file.

    Attributes:
        file: its path under the data set's folder.
        kind: such as "unreadable image"; faults are counted by it.
        fact: what was found.
    """

    file: str
    kind: str
    fact: str


class Faults:
    """The faults of a data set, as they are found.

    Args:
        root: the folder of the data set.
        exclude: a list of files to leave out; None leaves none out.
        report: where all faults are listed, should there be any; None lists them nowhere.

    Raises:
        DataError: `exclude` is no such list.

    Example:
        >>> faults = Faults(Path("mine"))
        >>> faults.add("train/1.png", "label", "11 is no digit")
        >>> faults.refuse(3)
        Traceback (most recent call last):
        polyfuse.errors.DataError: 1 of 3 files of 'mine' has faults: 1 x label
        train/1.png: label: 11 is no digit
        ...
    """

    def __init__(self, root: Path, exclude: str | None = None, report: str | None = None) -> None:
        """Read the list of what is left out."""
        self.root, self.exclude, self.report = root, exclude, report
        self.excluded = _read(Path(exclude)) if exclude is not None else frozenset()
        self.known: set[str] = set()  # all files that the data set has, or should have
        self.found: list[Fault] = []

    def add(self, file: str, kind: str, fact: str) -> None:
        """Note a fault, unless the file is left out."""
        self.known.add(file)
        if file not in self.excluded:
            self.found.append(Fault(file, kind, fact))

    def refuse_unknown(self) -> None:
        """Refuse a list of what to leave out that names files which the data set does not have.

        Raises:
            DataError: the first of them.
        """
        strange = sorted(self.excluded - self.known)
        if strange:
            raise DataError(
                f"'{printable(self.exclude)}' names {len(strange)} files that "
                f"'{printable(self.root)}' does not have, such as '{printable(strange[0])}'; "
                "remove them from that list"
            )

    def refuse(self, files: int) -> None:
        """Refuse the data set where there are faults.

        Args:
            files: how many there are.

        Raises:
            DataError: the number of faults by kind, the first of them, and what to do.
        """
        if not self.found:
            return
        kinds = Counter(fault.kind for fault in self.found)
        counted = ", ".join(f"{count:,} x {kind}" for kind, count in kinds.most_common())
        faulty = len({fault.file for fault in self.found})
        lines = [
            f"{faulty:,} of {files:,} files of '{printable(self.root)}' "
            f"{'has' if faulty == 1 else 'have'} faults: {counted}",
            *(f"{printable(f.file)}: {f.kind}: {printable(f.fact)}" for f in self.found[:SHOWN]),
        ]
        if len(self.found) > SHOWN:
            lines.append(f"and {len(self.found) - SHOWN:,} more")
        raise DataError("\n".join([*lines, self._advice()]))

    def _advice(self) -> str:
        if self.report is None:
            return (
                "correct the files; or list all faults in a file, report: faults.csv, and leave "
                "out the files that it names, exclude: faults.csv"
            )
        write_list(Path(self.report), self.found)
        return (
            f"all are listed in '{printable(self.report)}'; correct the files, or leave out those "
            f"that it names: exclude: {printable(self.report)}"
        )


def write_list(path: Path, found: Iterable[Fault]) -> None:
    """Write faults as a table, one a line; a file that is no such table is not replaced.

    Raises:
        DataError: another file is there.
        DiskError: the file system refused.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "faults.csv"
        >>> write_list(target, [Fault("train/1.png", "label", "11 is no digit")])
        >>> target.read_text().splitlines()
        ['file,kind,fact', 'train/1.png,label,11 is no digit']
    """
    if path.exists():
        try:
            _read(path)
        except DataError:
            raise DataError(
                f"report: '{printable(path)}' is there and no list of faults; name a new file"
            ) from None
    rows = [(printable(f.file, _PATH), f.kind, printable(f.fact)) for f in found]
    durable.write_bytes(path, tables.comma_separated(COLUMNS, rows).encode())


def rows_of(path: Path, columns: Sequence[tuple[str, ...]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a small table that a stranger wrote.

    Args:
        path: of the table, UTF-8, at most 64 MB.
        columns: the headers that are known; the table must have one of them, exactly.

    Raises:
        DataError: no such file, too large, no text, another header, rows of another width.

    Example:
        >>> rows_of(Path("/no/such.csv"), [("file_name", "file_code")])
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such.csv': No such file or directory
    """
    shown = printable(path)
    try:
        text = durable.read_bytes(path, limit=_LIMIT).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{shown}' is no table in UTF-8 ({printable(error)})") from None
    except PolyfuseError as error:
        raise DataError(str(error)) from None
    header = rows[0] if rows else []
    known = " or ".join(",".join(names) for names in columns)
    if tuple(header) not in columns:
        raise DataError(
            f"'{shown}' begins with '{printable(','.join(header))}'; its first line must be {known}"
        )
    odd = [number for number, row in enumerate(rows) if len(row) != len(header)]
    if odd:
        raise DataError(
            f"'{shown}' has {len(odd)} rows without {len(header)} cells; the first is row "
            f"{odd[0]}: '{printable(','.join(rows[odd[0]]))}'"
        )
    return header, rows[1:]


def _read(path: Path) -> frozenset[str]:
    _, rows = rows_of(path, [COLUMNS, COLUMNS[:1]])
    return frozenset(row[0] for row in rows)

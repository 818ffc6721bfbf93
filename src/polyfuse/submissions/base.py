"""Submissions: a column of ids and a column of texts; and the faults that such a file can have."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polyfuse.errors import DataError, printable
from polyfuse.sequences import DIGITS as DIGITS

SHOWN = 3  # examples that a fault names
_LISTED = 20  # faults of one file that a message lists

# What a file's answers may look like and still be meant: `accept` takes these words.
ACCEPTABLE = (
    *("bom", "separator", "empty_answers", "alphabet", "too_long"),
    *("constant_answers", "constant_suffix", "constant_tail", "lost_zeros"),
)


@dataclass(frozen=True)
class Submission:
    """One file of answers, as it stands in it.

    Attributes:
        name: of the file, printable.
        columns: names of the column of ids and of that of answers.
        ids: of the rows.
        answers: texts, one a row; leading zeros stay.

    Example:
        >>> Submission("a.csv", ("file_name", "file_code"), ["0.png"], ["007"]).answers
        ['007']
    """

    name: str
    columns: tuple[str, str]
    ids: Sequence[str]
    answers: Sequence[str]


class Fault(NamedTuple):
    """What is wrong with a file.

    Attributes:
        file: its name.
        kind: one word; those in `ACCEPTABLE` can be accepted.
        text: the fact, what was found, and what to do.
    """

    file: str
    kind: str
    text: str


def shown(items: Iterable[object], *, quote: str = "'") -> str:
    """Return the first of some items as text, and how many more there are.

    Args:
        items: any of them.
        quote: what stands around each.

    Example:
        >>> shown("abcde")
        "'a', 'b', 'c' and 2 more"
    """
    held = list(items)
    told = ", ".join(f"{quote}{printable(item, 60)}{quote}" for item in held[:SHOWN])
    return told + (f" and {len(held) - SHOWN:,} more" if len(held) > SHOWN else "")


def accepted(faults: Iterable[Fault], accept: Collection[str]) -> list[Fault]:
    """Return the faults that nobody accepts.

    Raises:
        DataError: a word that names no fault that can be accepted.

    Example:
        >>> accepted([Fault("a.csv", "bom", "it begins with a BOM")], ["bom"])
        []
    """
    unknown = [word for word in accept if word not in ACCEPTABLE]
    if unknown:
        raise DataError(
            f"accept={shown(unknown)} names no fault that can be accepted; those are "
            f"{', '.join(ACCEPTABLE)}"
        )
    return [fault for fault in faults if fault.kind not in accept]


def listed(faults: Sequence[Fault]) -> str:
    r"""Return faults as text, file by file.

    Example:
        >>> listed([Fault("a.csv", "bom", "it begins with a BOM"), Fault("a.csv", "ids", "x")])
        'a.csv: it begins with a BOM [bom]\na.csv: x [ids]'
    """
    lines = []
    for file in dict.fromkeys(fault.file for fault in faults):
        own = [fault for fault in faults if fault.file == file]
        lines += [f"{file}: {fault.text} [{fault.kind}]" for fault in own[:_LISTED]]
        lines += [f"{file}: and {len(own) - _LISTED} more"] * (len(own) > _LISTED)
    return "\n".join(lines)

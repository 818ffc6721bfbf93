"""What failed in a run: a table in the error, and in the RUN folder until it has been made good."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from polyfuse import durable
from polyfuse.errors import DiskError, TrainingError, printable
from polyfuse.runners.base import Result

FILE = "failures.json"
SCHEMA = 1
TAIL = 12  # lines of a traceback that the error shows; the file has all that there is


class Failure(NamedTuple):
    """A job that failed.

    Attributes:
        members: the numbers of those that it was to make.
        result: why, and after how many attempts.
    """

    members: Sequence[int]
    result: Result

    @property
    def names(self) -> str:
        """What the members are called, by their numbers."""
        first, last = self.members[0], self.members[-1]
        if first == last:
            return f"member {first}"
        if last - first + 1 == len(self.members):
            return f"members {first} to {last}"
        return f"members {', '.join(map(str, self.members))}"


def forget(root: Path) -> None:
    """Remove what is told of failures: the jobs are begun anew.

    Example:
        >>> forget(Path("/no/such/run"))
    """
    durable.remove(root / FILE)


def told(root: Path, failures: Sequence[Failure], kept: int, size: int) -> TrainingError:
    """Keep what failed in `failures.json`; return the error that shows it.

    Args:
        root: the RUN folder.
        failures: one or more.
        kept: how many members are there.
        size: how many there are to be.

    Example:
        >>> import tempfile
        >>> failed = Failure(range(3, 4), Result(0, error="its node died", attempts=3))
        >>> print(told(Path(tempfile.mkdtemp()), [failed], 4, 5))
        4 of 5 members are kept; what failed:
          member 3  3 attempts  its node died
        run the same command again: it trains only what is missing
    """
    failures = sorted(failures, key=lambda failure: failure.members[0])
    # Where the disk is full, that is what is told, and not that this file did not fit either.
    with contextlib.suppress(DiskError):
        durable.write_json(root / FILE, {"schema": SCHEMA, "failures": list(map(_facts, failures))})
    rows = [_row(failure) for failure in failures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:2]
    lines = [f"{kept} of {size} members are kept; what failed:"]
    for row in rows:
        first, *rest = row[2].splitlines() or [""]
        lines.append(f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {first}")
        lines += [" " * (6 + sum(widths)) + line for line in rest]
    for failure in failures:
        lines += _traceback(failure)
    return TrainingError("\n".join([*lines, _fix(failures)]))


def _row(failure: Failure) -> tuple[str, str, str]:
    attempts = failure.result.attempts
    return failure.names, f"{attempts} attempt{'s' * (attempts > 1)}", failure.result.error or ""


def _traceback(failure: Failure) -> list[str]:
    lines = failure.result.trace.splitlines()[-TAIL:]
    if not lines:
        return []
    return [f"the tail of the traceback of {failure.names}:", *(f"  {line}" for line in lines)]


def _facts(failure: Failure) -> dict[str, object]:
    result = failure.result
    return {
        "members": list(failure.members),
        "attempts": result.attempts,
        "fault": result.fault.name.lower() if result.fault else None,
        "reason": result.error,
        "traceback": [printable(line, 500) for line in result.trace.splitlines()],
    }


def _fix(failures: Sequence[Failure]) -> str:
    killed = any("SIGKILL" in (failure.result.error or "") for failure in failures)
    fewer = ", with fewer --workers if memory is short" if killed else ""
    return f"run the same command again: it trains only what is missing{fewer}"

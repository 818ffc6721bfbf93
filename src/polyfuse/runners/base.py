"""What a runner is: a map over jobs that gives results as they finish, and failures as values."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from polyfuse.errors import PolyfuseError, printable

Notify = Callable[[float, float, str], None]
Watch = Callable[[int, float, float, str], None]
Function = Callable[[Any, Notify], Any]

RETRIES = 2  # attempts after the first one
FRAMES = -4  # of a traceback, the last ones


class Fault(Enum):
    """Why an attempt failed, as far as that decides whether another one may help."""

    REFUSED = "polyfuse states a fact and its fix; it would say the same again"
    RAISED = "the job raised an error of another kind"
    LOST = "its process was killed, or its node died"


@dataclass(frozen=True)
class Result:
    """What became of one job.

    Attributes:
        number: place of the job in the sequence that was given.
        value: what the function returned.
        error: why it failed, for a person; None where it did not.
        trace: tail of the traceback of an error that is not polyfuse's own.
        fault: of which kind the error is.
        attempts: how often the job was begun.
    """

    number: int
    value: Any = None
    error: str | None = None
    trace: str = ""
    fault: Fault | None = None
    attempts: int = 1


class Runner(Protocol):
    """A place where jobs run; the results do not depend on which one."""

    def map(self, function: Function, jobs: Sequence[Any], watch: Watch) -> Iterator[Result]:
        """Yield one result a job, as they finish.

        A job may run more than once, even twice at a time where its node only seemed dead: what it
        does must come to the same.

        Args:
            function: called as `function(job, notify)`, once a job or, after a fault, again.
            jobs: what to call it with.
            watch: called with (number of the job, done, total, note) as jobs report progress.
        """
        ...


def attempt(function: Function, number: int, job: Any, notify: Notify) -> Result:
    """Run one job; a failure becomes a value, so that the other jobs go on.

    Example:
        >>> attempt(lambda job, notify: 1 / job, 7, 0, print).error
        'ZeroDivisionError: division by zero'
    """
    try:
        return Result(number, function(job, notify))
    except PolyfuseError as error:
        return Result(number, error=str(error), fault=Fault.REFUSED)
    except Exception as error:
        reason = f"{type(error).__name__}: {printable(error, 500)}"
        trace = traceback.format_exc(limit=FRAMES)
        return Result(number, error=reason, trace=trace, fault=Fault.RAISED)


def lost(number: int, how: str) -> Result:
    """Return the failure of a job whose process or node is gone.

    Example:
        >>> lost(0, "its node died").fault.name
        'LOST'
    """
    return Result(number, error=how, fault=Fault.LOST)


class Attempts:
    """Count the attempts at each job, and tell which failures are worth another one.

    What polyfuse itself refuses is final. A lost process or node gets `retries` more attempts. So
    does an error that the job raised, unless an attempt repeats the one before it: then it is the
    job's own, and not the machine's.

    Args:
        retries: attempts after the first one.

    Example:
        >>> attempts = Attempts(retries=1)
        >>> attempts.settled(lost(0, "its node died")) is None
        True
        >>> attempts.settled(lost(0, "its node died")).attempts
        2
    """

    def __init__(self, retries: int = RETRIES) -> None:
        """Begin to count."""
        self._retries = retries
        self._failed: dict[int, list[Result]] = {}

    def settled(self, result: Result) -> Result | None:
        """Return the result with its number of attempts; None where the job is to run again."""
        before = self._failed.setdefault(result.number, [])
        if self._may_help(result, before):
            before.append(result)
            return None
        return replace(result, attempts=len(before) + 1)

    def _may_help(self, result: Result, before: Sequence[Result]) -> bool:
        if result.fault in (None, Fault.REFUSED) or len(before) >= self._retries:
            return False
        return not (result.fault is Fault.RAISED and before and before[-1].error == result.error)


class Patient:
    """A watch that goes on where it fails, so that a broken progress bar costs no training.

    Args:
        watch: what to call.

    Example:
        >>> Patient(lambda number, done, total, note: print(number, note))(3, 1, 2, "half")
        3 half
    """

    def __init__(self, watch: Watch) -> None:
        """Have seen no fault yet."""
        self._watch = watch
        self._faults: list[Exception] = []

    def __call__(self, number: int, done: float, total: float, note: str) -> None:
        """Pass a report on."""
        try:
            self._watch(number, done, total, note)
        except Exception as error:
            self._faults.append(error)

    def tell(self) -> None:
        """Raise the first fault, once the jobs are done."""
        if self._faults:
            raise self._faults[0]

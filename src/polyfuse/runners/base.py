"""What a runner is: a map over jobs that gives results as they finish, and failures as values."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Notify = Callable[[float, float, str], None]
Watch = Callable[[int, float, float, str], None]
Function = Callable[[Any, Notify], Any]


@dataclass(frozen=True)
class Result:
    """What became of one job.

    Attributes:
        number: place of the job in the sequence that was given.
        value: what the function returned.
        error: why it failed, for a person; None where it did not.
    """

    number: int
    value: Any = None
    error: str | None = None


class Runner(Protocol):
    """A place where jobs run; the results do not depend on which one."""

    def map(self, function: Function, jobs: Sequence[Any], watch: Watch) -> Iterator[Result]:
        """Yield one result a job, as they finish.

        Args:
            function: called as `function(job, notify)`, once a job or, after a fault, again.
            jobs: what to call it with.
            watch: called with (number of the job, done, total, note) as jobs report progress.
        """
        ...

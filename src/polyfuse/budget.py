"""A time budget: whether what is left of it is likely to suffice for another job."""

import time
from typing import NamedTuple

STARTED = "started"  # the note of a job's first report


class Budget:
    """How long jobs take, beside the time that is left.

    Args:
        deadline: `time.time()` at which the budget is used up; None where there is none.

    Example:
        >>> budget = Budget(deadline=time.time() + 60)
        >>> budget.begun(0), budget.ended(0)
        (None, None)
        >>> budget.longest = 300.0
        >>> budget.begun(1)
        'may not finish: one before took 5.0 minutes, and 1.0 are left; progress is kept'
    """

    def __init__(self, deadline: float | None) -> None:
        """Have seen no job yet."""
        self.deadline = deadline
        self.longest = 0.0  # seconds
        self._begun: dict[int, float] = {}

    def begun(self, number: int) -> str | None:
        """Note that a job begins; return what is to be said where the time may not suffice."""
        now = self._begun[number] = time.time()
        if self.deadline is None or now + self.longest <= self.deadline:
            return None
        took, left = self.longest / 60, max(0.0, self.deadline - now) / 60
        return f"may not finish: one before took {took:.1f} minutes, and {left:.1f} are left; " + (
            "progress is kept"
        )

    def ended(self, number: int) -> None:
        """Note that a job is done."""
        now = time.time()
        self.longest = max(self.longest, now - self._begun.pop(number, now))

    def is_up(self) -> bool:
        """Tell whether the deadline has passed.

        Example:
            >>> Budget(None).is_up(), Budget(0).is_up()
            (False, True)
        """
        return self.deadline is not None and time.time() > self.deadline


class Spent(NamedTuple):
    """What a time budget came to.

    Attributes:
        planned: minutes.
        used: minutes, until training ended.

    Example:
        >>> print(Spent(planned=5, used=4.26))
        4.3 of 5 minutes used
    """

    planned: float
    used: float

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.used:.1f} of {self.planned:g} minutes used"

"""What a strategy is: the jobs that are due, given the members that are done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyfuse.data.base import Rows
from polyfuse.members import Member


@dataclass(frozen=True)
class Job:
    """One member to train.

    Attributes:
        index: its number in the population.
        seed: decides its initial weights, data order, dropout and augmentation.
        learn: rows of the training split that it learns from.
        stop: other rows of its own training part; they choose its epoch.
        held_out: rows that it never sees and predicts out of fold.
        facts: what `member.json` says of it: strategy, fold.
    """

    index: int
    seed: int
    learn: Rows
    stop: Rows
    held_out: Rows
    facts: Mapping[str, Any] = field(default_factory=dict)


class Strategy(Protocol):
    """Which models to train, on what rows."""

    @property
    def size(self) -> int:
        """How many members the finished population has."""
        ...

    def jobs(self, done: Sequence[Member]) -> Sequence[Job]:
        """Return the jobs that are due now; none when the population is complete."""
        ...

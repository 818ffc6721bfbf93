"""A strategy by rounds: a job is known once the members of the rounds before it are there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyfuse.members import Member
from polyfuse.training.base import Job, refuse_another_plan


@dataclass(frozen=True)
class Rounds:
    """A strategy that trains one member a round; it may end before the last one.

    A member that ends it says in its record how many members boosting keeps: see `ended`.

    Attributes:
        facts: what `member.json` says of every member.
        seeds: one a round.
        plan: completes the job of a round, given the members of the rounds before it.

    Example:
        >>> plan = Rounds({"strategy": "mine"}, (7, 8), lambda job, before: job)
        >>> [job.index for job in plan.jobs([])], plan.size([])
        ([0], 2)
    """

    facts: Mapping[str, Any]
    seeds: tuple[int, ...]
    plan: Callable[[Job, Sequence[Member]], Job]

    def size(self, done: Sequence[Member]) -> int:
        """Return how many members there will be: those up to the one that has ended it."""
        last = [member.index + 1 for member in done if "kept" in member.record]
        return min([len(self.seeds), *last])

    def jobs(self, done: Sequence[Member]) -> Sequence[Job]:
        """Return the job of the first round that lacks its member; none at the end.

        Raises:
            RunError: a member of another plan.
        """
        none = np.empty(0, np.int64)
        outlines = [
            Job(index, seed, none, none, none, {**self.facts, "round": index})
            for index, seed in enumerate(self.seeds)
        ]
        refuse_another_plan(done, outlines)
        there = {member.index: member for member in done}
        for job in outlines[: self.size(done)]:
            if job.index not in there:
                return [self.plan(job, [there[index] for index in range(job.index)])]
        return []


def ended(kept: int, why: str) -> dict[str, Any]:
    """Return what the record of the last member says where boosting keeps fewer than all rounds.

    Args:
        kept: how many members boosting keeps, the first ones; it may be without this one.
        why: for a person.

    Example:
        >>> ended(3, "its weighted error is 0.6")
        {'kept': 3, 'ended': 'its weighted error is 0.6'}
    """
    return {"kept": kept, "ended": why}

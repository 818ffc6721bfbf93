"""k-fold: each member learns from all folds but one and predicts that one out of fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyfuse.classical import fold_rows, inner_slice
from polyfuse.data.base import Split
from polyfuse.errors import RunError
from polyfuse.members import Member
from polyfuse.training.base import Job


@dataclass(frozen=True)
class KFold:
    """A k-fold ensemble; make it with `kfold`."""

    all_jobs: tuple[Job, ...]

    @property
    def size(self) -> int:
        """One member a fold."""
        return len(self.all_jobs)

    def jobs(self, done: Sequence[Member]) -> Sequence[Job]:
        """Return the folds that have no member yet; all may run at once.

        Raises:
            RunError: a member of another plan: other folds, or another seed.
        """
        for member in done:
            _refuse_another_plan(member, self.all_jobs)
        there = {member.index for member in done}
        return [job for job in self.all_jobs if job.index not in there]


def kfold(split: Split, *, folds: int = 5, stop_fraction: float = 0.1, seed: int = 0) -> KFold:
    """Plan a k-fold ensemble.

    Groups are never cut, neither by the folds nor by the rows that stop training; without groups
    the folds are balanced by class. The rows that stop training are part of a member's own training
    part, never of its held-out fold, so the out-of-fold predictions are honest.

    Args:
        split: the training split.
        folds: 2 or more; at most as many as there are groups, or rows.
        stop_fraction: share of a member's training part that chooses its epoch.
        seed: decides folds and members' seeds.

    Raises:
        DataError: more folds than groups, or rows.

    Example:
        >>> from polyfuse import Arrays
        >>> plan = kfold(Arrays(np.zeros((10, 2)), np.zeros(10, int)), folds=5)
        >>> [len(job.held_out) for job in plan.jobs([])]
        [2, 2, 2, 2, 2]
    """
    classes = split.labels if split.labels is not None and split.labels.ndim == 1 else None
    pairs = fold_rows(len(split), folds, seed=seed, classes=classes, groups=split.groups)
    seeds = np.random.SeedSequence([seed, 3]).generate_state(folds).tolist()
    jobs = []
    for index, (part, held_out) in enumerate(pairs):
        learn, stop = inner_slice(
            part.astype(np.int64), stop_fraction, seed=seeds[index], groups=split.groups
        )
        facts = {"strategy": "kfold", "fold": index, "folds": folds}
        jobs.append(Job(index, seeds[index], learn, stop, _sorted(held_out), facts))
    return KFold(tuple(jobs))


def _refuse_another_plan(member: Member, jobs: Sequence[Job]) -> None:
    job = jobs[member.index] if member.index < len(jobs) else None
    planned = None if job is None else {**job.facts, "seed": job.seed}
    if planned is None or planned != {key: member.record.get(key) for key in planned}:
        raise RunError(
            f"'{member.path}' was trained by another plan than {len(jobs)} folds with this seed; "
            "name another folder, or train with the plan that it was begun with"
        )


def _sorted(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.sort(rows).astype(np.int64)

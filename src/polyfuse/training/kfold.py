"""k-fold: each member learns from all folds but one and predicts that one out of fold."""

import numpy as np

from polyfuse.classical import fold_rows, inner_slice
from polyfuse.data.base import Split
from polyfuse.training.base import Job, Planned, member_seeds


def kfold(split: Split, *, folds: int = 5, stop_fraction: float = 0.1, seed: int = 0) -> Planned:
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
    seeds = member_seeds(seed, folds)
    jobs = []
    for index, (part, held_out) in enumerate(pairs):
        learn, stop = inner_slice(
            part.astype(np.int64), stop_fraction, seed=seeds[index], groups=split.groups
        )
        facts = {"strategy": "kfold", "fold": index, "folds": folds}
        jobs.append(Job(index, seeds[index], learn, stop, np.sort(held_out), facts))
    return Planned(tuple(jobs))

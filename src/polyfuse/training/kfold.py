"""k-fold: each member learns from all folds but one and predicts that one out of fold."""

from polyfuse.data.base import Split
from polyfuse.training.base import Planned
from polyfuse.training.rows import Kind, Splitter, fold_jobs


def kfold(
    split: Split,
    *,
    folds: int = 5,
    kind: Kind | None = None,
    repeats: int = 1,
    stop_fraction: float = 0.1,
    splitter: Splitter | None = None,
    seed: int = 0,
) -> Planned:
    """Plan a k-fold ensemble.

    Groups are never cut, neither by the folds nor by the rows that stop training; without groups
    the folds are balanced by class. The rows that stop training are part of a member's own training
    part, never of its held-out fold, so the out-of-fold predictions are honest.

    Args:
        split: the training split.
        folds: 2 or more; at most as many as there are groups, or rows.
        kind: "grouped", "stratified" by class (and by groups, where there are any), "plain", or
            "ordered": rows come in the order of time, and each block is predicted from those before
            it, the first one never. None: grouped where there are groups, else stratified where
            each class fills every fold, else plain.
        repeats: how often all rows are divided anew; of a row's out-of-fold predictions, which are
            then as many, the mean counts.
        stop_fraction: share of a member's training part that chooses its epoch; 0: none does, and
            the last epoch is kept.
        splitter: divides the rows instead: any object with scikit-learn's `split(X, y, groups)`.
        seed: decides folds and members' seeds.

    Raises:
        DataError: more folds than groups, or rows; folds with an empty class; a splitter whose
            held-out rows are trained on, by themselves or by their group. All faults at once.

    Example:
        >>> import numpy as np
        >>> from polyfuse import Arrays
        >>> plan = kfold(Arrays(np.zeros((10, 2)), np.zeros(10, int)), folds=5)
        >>> [len(job.held_out) for job in plan.jobs([])]
        [2, 2, 2, 2, 2]
    """
    jobs = fold_jobs(
        split,
        "kfold",
        folds=folds,
        kind=kind,
        repeats=repeats,
        stop_fraction=stop_fraction,
        splitter=splitter,
        seed=seed,
    )
    return Planned(jobs)

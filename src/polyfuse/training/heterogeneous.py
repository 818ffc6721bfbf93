"""Members of different models: one or several of each, over all rows or over the same folds."""

import numpy as np

from polyfuse.data.base import Split
from polyfuse.errors import DataError
from polyfuse.training.base import Job, Planned, member_seeds
from polyfuse.training.rows import Kind, fold_jobs, fraction_faults, stopping, unusual


def heterogeneous(
    split: Split,
    *,
    factories: int,
    seeds_each: int = 1,
    folds: int | None = None,
    kind: Kind | None = None,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan members of every model of a task.

    Without folds all members learn from the same rows. With folds every model is trained on the
    same ones, so that each is one base model with out-of-fold predictions of all rows, as stacking
    needs them (Wolpert 1992). `member.json` has the place of a member's model as `factory`.

    Args:
        split: the training split.
        factories: how many functions make a model: `len(task.factories)`; in a recipe the number of
            models in its list.
        seeds_each: members of each model, and of each fold.
        folds: divide the rows; None: no row is held out.
        kind: of folds, as for `kfold`.
        stop_fraction: share of a member's training rows that chooses its epoch; 0: none does, and
            the last epoch is kept.
        seed: decides rows and members' seeds.

    Raises:
        DataError: no members, or folds that cannot be trained on; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((10, 2)), np.zeros(10, int))
        >>> [job.factory for job in heterogeneous(data, factories=3).jobs([])]
        [0, 1, 2]
        >>> len(heterogeneous(data, factories=3, folds=5).jobs([]))
        15
    """
    given = {"factories": factories, "seeds_each": seeds_each}
    faults = [f"{name}={n}; type 1 or more" for name, n in given.items() if n < 1]
    if kind is not None and folds is None:
        faults.append(f"kind='{kind}' is of folds; type how many, folds=5, or leave kind out")
    faults += fraction_faults(stop_fraction) if faults or folds is None else []
    if faults:
        raise DataError("\n".join(faults))
    name = "heterogeneous"
    if folds is not None:
        jobs = fold_jobs(
            split,
            name,
            folds=folds,
            kind=kind,
            stop_fraction=stop_fraction,
            seed=seed,
            factories=factories,
            each=seeds_each,
        )
        return Planned(jobs)
    learn, stop = stopping(np.arange(len(split)), stop_fraction, seed=seed, groups=split.groups)
    facts = {"strategy": name, **unusual(stop_fraction=stop_fraction)}
    seeds = enumerate(member_seeds(seed, factories * seeds_each))
    return Planned(
        tuple(Job(i, s, learn, stop, learn[:0], facts, factory=i // seeds_each) for i, s in seeds)
    )

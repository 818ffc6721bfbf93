"""Deep ensemble: members of one model that differ by their seeds alone."""

import numpy as np

from polyfuse.data.base import Split
from polyfuse.errors import DataError
from polyfuse.training.base import Job, Planned, member_seeds
from polyfuse.training.rows import fraction_faults, stopping, unusual


def independent(
    split: Split,
    *,
    members: int = 5,
    stop_fraction: float = 0.1,
    own_stop: bool = False,
    seed: int = 0,
) -> Planned:
    """Plan a deep ensemble (Lakshminarayanan, Pritzel and Blundell 2017).

    Every member learns from all rows but those that stop training; initial weights, data order,
    dropout and augmentation follow from its seed. No row is held out, so there are no out-of-fold
    predictions. A folder that was begun with fewer members goes on: the first ones are the same.

    Args:
        split: the training split.
        members: how many.
        stop_fraction: share of the rows (of groups, where there are any) that chooses a member's
            epoch; 0: none does, and the last epoch is kept.
        own_stop: each member stops on rows of its own, else all on the same.
        seed: decides these rows and the members' seeds.

    Raises:
        DataError: no members, or a fraction that leaves nothing; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> plan = independent(Arrays(np.zeros((10, 2)), np.zeros(10, int)), members=2)
        >>> [(len(job.learn), len(job.stop), len(job.held_out)) for job in plan.jobs([])]
        [(9, 1, 0), (9, 1, 0)]
    """
    faults = fraction_faults(stop_fraction)
    if members < 1:
        faults.append(f"members={members}; type 1 or more")
    if faults:
        raise DataError("\n".join(faults))
    rows, jobs = np.arange(len(split)), []
    facts = {"strategy": "independent", **unusual(stop_fraction=stop_fraction)}
    facts |= {"own_stop": True} if own_stop else {}
    for index, own in enumerate(member_seeds(seed, members)):
        chosen = own if own_stop else seed
        learn, stop = stopping(rows, stop_fraction, seed=chosen, groups=split.groups)
        jobs.append(Job(index, own, learn, stop, rows[:0], facts))
    return Planned(tuple(jobs))

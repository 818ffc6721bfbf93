"""Soft gradient boosting: members boost each other while all of them are trained at once."""

from collections.abc import Iterable
from functools import partial

import numpy as np
from torch import Tensor

from polyfuse.boosting import soft_boosting_loss
from polyfuse.data.base import Split, task_of
from polyfuse.errors import DataError
from polyfuse.losses import Loss
from polyfuse.training.base import Job, Made, Planned, Work, member_seeds, refuse_length_head
from polyfuse.training.joint import jointly
from polyfuse.training.rows import fraction_faults, stopping


def soft_boosting(
    split: Split,
    *,
    members: int = 5,
    shrinkage: float = 1.0,
    detach: bool = True,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan soft gradient boosting (Feng, Xu, Jiang, Zhou 2020, arXiv 2006.04059), in one job.

    The loss is `boosting.soft_boosting_loss`; the loss of the run judges the sum of the members on
    the stopping rows. Each member weighs `shrinkage`; fuse by `boosted_sum`.

    Args:
        split: the training split, of classes.
        members: 2 or more.
        shrinkage: of each member's part in the sum, above 0.
        detach: whether a member's target is a mere number. False lets those before it learn to
            leave what it can fit.
        stop_fraction: share of the rows that choose the epoch; 0: the last one is kept.
        seed: decides rows, initial weights, data order.

    Raises:
        DataError: a request that cannot be boosted; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((10, 2)), np.arange(10) % 2)
        >>> soft_boosting(data, members=3).jobs([])[0].count
        3
    """
    faults = [*fraction_faults(stop_fraction)]
    if members < 2:
        faults.append(f"members={members}; soft boosting needs 2 or more")
    if not 0 < shrinkage < np.inf:
        faults.append(f"shrinkage={shrinkage}; type a number above 0, such as 1.0")
    if task_of(split) != "classification":
        faults.append(
            f"soft boosting fits one-hot labels, and these are of the task {task_of(split)}; "
            "gradient_boosting takes any differentiable loss"
        )
    if faults:
        raise DataError("\n".join(faults))
    rows = np.arange(len(split))
    [own] = member_seeds(seed, 1)
    learn, stop = stopping(rows, stop_fraction, seed=own, groups=split.groups)
    facts = {
        "strategy": "soft_boosting",
        "members": members,
        "shrinkage": shrinkage,
        "detach": detach,
        "stop_fraction": stop_fraction,
    }
    given = {
        "loss": partial(_of_the_rest, shrinkage=shrinkage, detach=detach),
        "judge": partial(_of_the_sum, shrinkage=shrinkage),
    }
    how = softly_boosted
    return Planned((Job(0, own, learn, stop, rows[:0], facts, members, how, given=given),))


def softly_boosted(work: Work) -> Iterable[Made]:
    """Train all members as one module; each weighs as much as it does in the loss.

    Example:
        >>> softly_boosted.__name__
        'softly_boosted'
    """
    refuse_length_head(work.model())
    weight = {"weight": work.job.facts["shrinkage"]}
    return [made._replace(facts={**made.facts, **weight}) for made in jointly(work)]


def _of_the_rest(
    each: Loss,
    outputs: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    shrinkage: float,
    detach: bool,
) -> Tensor:
    return soft_boosting_loss(outputs, labels, weights=weights, shrinkage=shrinkage, detach=detach)


def _of_the_sum(
    each: Loss,
    outputs: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    shrinkage: float,
) -> Tensor:
    given = {} if weights is None else {"weights": weights}
    return each(shrinkage * outputs.sum(0), labels, **given)

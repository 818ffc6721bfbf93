"""Several members out of one training run: the plan that such strategies share."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from polyfuse.data.base import Split
from polyfuse.errors import TrainingError
from polyfuse.fit import FitOptions, Fitted
from polyfuse.training.base import Job, Made, Planned, Work, facts_of, member_seeds
from polyfuse.training.rows import stopping, unusual


def one_run(
    split: Split,
    count: int,
    how: Callable[[Work], Iterable[Made]],
    facts: Mapping[str, Any],
    *,
    options: FitOptions | None = None,
    given: Mapping[str, Any] | None = None,
    stop_fraction: float,
    seed: int,
) -> Planned:
    """Plan one job that learns from all rows but those set aside, and makes all members.

    Args:
        split: the training split.
        count: members.
        how: makes them.
        facts: what `member.json` says of each.
        options: how the run trains, where that differs from the task's options.
        given: what else `how` needs to know.
        stop_fraction: share of the rows that is set aside; 0: none.
        seed: decides these rows and the run's seed.

    Raises:
        DataError: a fraction that leaves nothing.

    Example:
        >>> from polyfuse import Arrays
        >>> plan = one_run(
        ...     Arrays(np.zeros((10, 2))), 3, list, {"strategy": "mine"}, stop_fraction=0.2, seed=0
        ... )
        >>> [(len(job.learn), len(job.stop), job.count) for job in plan.jobs([])]
        [(8, 2, 3)]
    """
    (own,) = member_seeds(seed, 1)
    rows = np.arange(len(split))
    learn, stop = stopping(rows, stop_fraction, seed=seed, groups=split.groups)
    job = Job(
        0,
        own,
        learn,
        stop,
        rows[:0],
        {**facts, **unusual(stop_fraction=stop_fraction)},
        count=count,
        how=how,
        options=options,
        given=given or {},
    )
    return Planned((job,))


def collected(fitted: Fitted, epochs: Collection[int]) -> list[Mapping[str, Tensor]]:
    """Return the weights at the end of these epochs.

    Raises:
        TrainingError: training ended before them.

    Example:
        >>> collected(Fitted({}, 2, [], "", {}, {2: {}}), [2])
        [{}]
    """
    missing = sorted(set(epochs) - set(fitted.collected))
    if missing:
        raise TrainingError(
            f"training ended in epoch {fitted.diverged or len(fitted.history)}, and the members of "
            f"this run are its weights after the epochs {', '.join(map(str, sorted(epochs)))}; "
            "lower the learning rate or set clip: 1.0"
        )
    return [fitted.collected[epoch] for epoch in epochs]


def at_ends(work: Work) -> Iterable[Made]:
    """Train once; the weights after each of `given["epochs"]` are a member.

    The averages that were tracked are those of the whole run: they go with its last member.

    Example:
        >>> at_ends.__name__
        'at_ends'
    """
    model, epochs = work.model(), work.job.given["epochs"]
    fitted = work.fit(model, collect=epochs)
    for epoch, state in zip(epochs, collected(fitted, epochs), strict=True):
        facts = {**facts_of(fitted), "best_epoch": epoch, "history": fitted.history[:epoch]}
        yield Made(model, state, facts, fitted.averages if epoch == epochs[-1] else {})

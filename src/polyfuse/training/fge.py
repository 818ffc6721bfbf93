"""Fast geometric ensembling: short cycles after the usual training; members at lowest rates."""

from dataclasses import replace
from functools import partial
from math import ceil

from polyfuse.data.base import Split
from polyfuse.errors import DataError
from polyfuse.fit import FitOptions
from polyfuse.schedules import joined, triangle
from polyfuse.training.base import Planned
from polyfuse.training.one_run import at_ends, one_run
from polyfuse.training.rows import fraction_faults


def fge(
    split: Split,
    *,
    fit: FitOptions,
    start: float = 0.8,
    cycle: int = 2,
    high: float = 0.5,
    low: float = 0.005,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan a fast geometric ensemble (Garipov et al. 2018).

    The first part is trained with `fit.schedule`, as if it went on to the end. Then the rate falls
    from `high` to `low` and rises again in every cycle, in the same run: the optimiser keeps its
    state. Members are the weights, with their own batch-norm statistics, after the epochs in the
    middle of the cycles, where the rate is lowest; training ends with the last of them.
    `fit.patience` has no say. No row is held out, so there are no out-of-fold predictions.

    Args:
        split: the training split.
        fit: how the run trains.
        start: share of the epochs, at least, before the first cycle.
        cycle: epochs from one highest rate to the next, an even number.
        high: factor of the optimiser's rate at the ends of a cycle.
        low: factor in its middle.
        stop_fraction: share of the rows (of groups, where there are any) that choose the epoch of
            averages that are tracked beside; 0: none does.
        seed: decides these rows, and the run's seed.

    Raises:
        DataError: an odd cycle, one that is too long, and what else is wrong; all at once.

    Example:
        >>> import numpy as np
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((10, 2)), np.zeros(10, int))
        >>> (job,) = fge(data, fit=FitOptions(epochs=40)).jobs([])
        >>> job.count, job.given["epochs"]  # the first cycle begins after epoch 33
        (4, (34, 36, 38, 40))
    """
    faults = [*fraction_faults(stop_fraction), *_cycle_faults(fit.epochs, start, cycle)]
    if not 0 <= low <= high < float("inf"):
        faults.append(f"high={high}, low={low}; type factors of the rate, 0 <= low <= high")
    if faults:
        raise DataError("\n".join(faults))
    count = _members(fit.epochs, start, cycle)
    ends = tuple(fit.epochs - cycle * n for n in reversed(range(count)))
    begin = ends[0] - cycle // 2
    schedule = partial(
        joined,
        fit.schedule,
        partial(triangle, cycles=count - 0.5, high=high, low=low),
        start=begin / fit.epochs,
    )
    return one_run(
        split,
        count,
        at_ends,
        {"strategy": "fge", "start": begin, "cycle": cycle, "high": high, "low": low},
        options=replace(fit, schedule=schedule, patience=None),
        given={"epochs": ends},
        stop_fraction=stop_fraction,
        seed=seed,
    )


def _members(epochs: int, start: float, cycle: int) -> int:
    """Return how many lowest rates fit in, the last of them at the end."""
    return (epochs - ceil(round(start * epochs, 9)) + cycle // 2) // cycle


def _cycle_faults(epochs: int, start: float, cycle: int) -> list[str]:
    """Say what is wrong with the cycles."""
    faults = []
    if not 0 <= start < 1:
        faults.append(f"start={start}; type a share of the epochs, 0 or more and below 1")
    if cycle < 2 or cycle % 2:
        even = max(2, cycle - 1)
        fits = str(even) if cycle < 2 else f"{even} or {cycle + 1}"
        faults.append(
            f"cycle={cycle} has no epoch that ends in its middle, where the rate is lowest; type "
            f"an even number: {fits}"
        )
    if not faults and _members(epochs, start, cycle) < 1:
        left = epochs - ceil(round(start * epochs, 9))
        faults.append(
            f"start={start} of {epochs} epochs leaves {left}, and half a cycle of {cycle} needs "
            f"{cycle // 2}; type an earlier start, a shorter cycle, or more epochs"
        )
    return faults

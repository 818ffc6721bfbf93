"""Snapshot ensemble: one run whose learning rate falls in cycles; each end is a member."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from polyfuse.data.base import Split, Splits, task_of, truth_of
from polyfuse.errors import DataError
from polyfuse.fit import FitOptions
from polyfuse.inference import predict
from polyfuse.metrics import LOWER_IS_BETTER, metrics_for
from polyfuse.schedules import cyclic_cosine
from polyfuse.selection import Members, Scores, greedy, ranked
from polyfuse.tasks import mean_of
from polyfuse.training.base import Made, Planned, Work
from polyfuse.training.one_run import at_ends, one_run
from polyfuse.training.rows import fraction_faults


def snapshot(
    split: Split,
    *,
    fit: FitOptions,
    cycles: int = 5,
    last: int | None = None,
    prune: bool = True,
    last_step: Literal["eq2", "zero"] = "eq2",
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan a snapshot ensemble (Huang et al. 2017).

    The learning rate is `cyclic_cosine`; neither the weights nor the optimiser begin anew with a
    cycle. Members are the weights, with their own batch-norm statistics, at the cycles' ends.
    `fit.patience` has no say. No row is held out, so there are no out-of-fold predictions.

    Early snapshots may be under-trained, late ones over-fitted. With `prune`, those that do not
    help the mean on the validation split are no part of fusions; they stay members, and the others'
    mean on validation is then a little too good, as it was chosen there.

    Args:
        split: the training split.
        fit: how the run trains; its schedule must be the default one, which is replaced.
        cycles: how many; they must divide the epochs.
        last: how many members, the last ones; all where None.
        prune: leave out of fusions what greedy selection on the validation split leaves out: the
            best snapshot is taken, and each next best one that makes their mean better, by its NLL
            (of numbers, by its RMSE).
        last_step: "eq2" of the paper, whose last rate is just above 0; or "zero".
        stop_fraction: share of the rows (of groups, where there are any) that choose the epoch of
            averages that are tracked beside; 0: none does.
        seed: decides these rows, and the run's seed.

    Raises:
        DataError: cycles that do not divide the epochs, and what else is wrong; all at once.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((10, 2)), np.zeros(10, int))
        >>> (job,) = snapshot(data, fit=FitOptions(epochs=20), cycles=4).jobs([])
        >>> job.count, job.given["epochs"]
        (4, (5, 10, 15, 20))
    """
    faults = [*fraction_faults(stop_fraction), *_cycle_faults(fit.epochs, cycles)]
    kept = cycles if last is None else last
    if not 1 <= kept <= max(1, cycles):
        faults.append(f"last={last}; type 1 to {cycles} members, or leave it out")
    if last_step not in ("eq2", "zero"):
        faults.append(f"last_step={last_step!r}; type 'eq2' or 'zero'")
    if fit.schedule is not FitOptions.schedule:
        faults.append("snapshot brings the schedule of its cycles; leave fit.schedule out")
    if faults:
        raise DataError("\n".join(faults))
    length = fit.epochs // cycles
    schedule = partial(cyclic_cosine, cycles=cycles, last_step=last_step)
    return one_run(
        split,
        kept,
        pruned if prune else at_ends,
        {"strategy": "snapshot", "cycles": cycles, "last_step": last_step, "prune": prune},
        options=replace(fit, schedule=schedule, patience=None),
        given={"epochs": tuple(length * n for n in range(cycles - kept + 1, cycles + 1))},
        stop_fraction=stop_fraction,
        seed=seed,
    )


def pruned(work: Work) -> Iterable[Made]:
    """Train once; of the weights at the cycles' ends, those that do not help are not fused.

    Example:
        >>> pruned.__name__
        'pruned'
    """
    made = list(at_ends(work))
    helpful = _helpful(made, work.task.splits)
    for place, each in enumerate(made):
        facts = {} if place in helpful else {"fused": False, "pruned": True}
        yield each._replace(facts={**each.facts, **facts})


def _helpful(made: Sequence[Made], splits: Splits) -> Members:
    """Return the places of the members that greedy selection on validation takes."""
    task, truth = task_of(splits.val), truth_of(splits.val)
    metrics = metrics_for(splits.val.blank, task)
    name = "nll" if "nll" in metrics else next(iter(metrics))
    said = []
    for each in made:
        each.model.load_state_dict(each.state)
        said.append(predict(each.model, splits.val))

    def score(members: Members) -> float:
        return float(
            metrics[name](mean_of(task, np.stack([said[m] for m in members])), truth).value
        )

    scores = Scores(score, higher_is_better=name not in LOWER_IS_BETTER)
    return greedy(ranked(range(len(made)), scores), scores).members


def _cycle_faults(epochs: int, cycles: int) -> list[str]:
    """Say what is wrong with the cycles, and name the nearest numbers that are right."""
    if cycles < 1:
        return [f"cycles={cycles}; type 1 or more"]
    if epochs % cycles == 0:
        return []
    near = sorted(n for n in range(1, epochs + 1) if epochs % n == 0)
    fewer = max((n for n in near if n < cycles), default=None)
    more = min((n for n in near if n > cycles), default=None)
    below = epochs - epochs % cycles
    fits = " or ".join(str(n) for n in (fewer, more) if n)
    other = " or ".join(str(n) for n in (below, below + cycles) if n)
    return [
        f"cycles={cycles} do not divide epochs={epochs}: every cycle has as many epochs; "
        f"type cycles: {fits}, or epochs: {other}"
    ]

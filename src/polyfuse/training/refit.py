"""Refit: folds choose the number of epochs, then one model learns from all rows for so many."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median
from typing import Any, Literal, get_args

import numpy as np

from polyfuse.data.base import Split
from polyfuse.errors import DataError, TrainingError, did_you_mean, printable
from polyfuse.fit import FitOptions
from polyfuse.members import Member
from polyfuse.training.base import (
    Job,
    Made,
    Work,
    due,
    facts_of,
    member_seeds,
    refuse_another_plan,
)
from polyfuse.training.rows import Kind, fold_jobs

Rule = Literal["median", "mean"]
RULES: Mapping[str, Callable[[Sequence[int]], float]] = {"median": median, "mean": mean}


def refit(
    split: Split,
    *,
    folds: int = 5,
    kind: Kind | None = None,
    repeats: int = 1,
    rule: Rule = "median",
    fuse: Literal["both", "refit"] = "both",
    stop_fraction: float = 0.1,
    factories: int = 1,
    seed: int = 0,
) -> "Refit":
    """Plan a k-fold ensemble and, of each model, one more member that learns from all rows.

    The last member has no rows that could stop it: it learns for as many epochs as the folds' best
    epochs say. Its learning rate goes the way that theirs went, and ends there: the schedule is
    that of all epochs, cut off, not stretched. It has no out-of-fold predictions; the folds speak
    for its model on training rows.

    Args:
        split: the training split.
        folds: 2 or more.
        kind: of folds, as for `kfold`.
        repeats: how often all rows are divided anew.
        rule: "median" or "mean" of the best epochs, rounded, half of one up.
        fuse: what fusions are made of: "both", the folds' members and those of all rows; or
            "refit", only the latter, as scikit-learn's stacking has it. Members of folds then have
            their rows on the scoreboard, and speak in fits on training rows, but nowhere else.
        stop_fraction: share of a member's training part that chooses its epoch; 0: none does, and
            the refit has all epochs.
        factories: how many functions make a model: `len(task.factories)`.
        seed: decides folds and members' seeds.

    Raises:
        DataError: an unknown rule, or folds that cannot be trained on.

    Example:
        >>> from polyfuse import Arrays
        >>> plan = refit(Arrays(np.zeros((10, 2)), np.zeros(10, int)), folds=5)
        >>> plan.size([]), len(plan.jobs([]))
        (6, 5)
    """
    faults = []
    for name, value, known in (("rule", rule, get_args(Rule)), ("fuse", fuse, ("both", "refit"))):
        if value not in known:
            near = did_you_mean(value, known)
            faults.append(f"{name}='{printable(value)}'{near or ';'} known: {', '.join(known)}")
    if factories < 1:
        faults.append(f"factories={factories}; type 1 or more")
    if faults:
        raise DataError("\n".join(faults))
    jobs = fold_jobs(
        split,
        "refit",
        folds=folds,
        kind=kind,
        repeats=repeats,
        stop_fraction=stop_fraction,
        seed=seed,
        factories=factories,
    )
    if fuse == "refit":
        jobs = tuple(replace(job, facts={**job.facts, "fused": False}) for job in jobs)
    seeds = member_seeds(seed, len(jobs) + factories)[len(jobs) :]
    return Refit(jobs, tuple(seeds), rule, len(split))


@dataclass(frozen=True)
class Refit:
    """Folds first; when all are done, the members that learn from all rows.

    Attributes:
        folds: the jobs of all models' folds.
        seeds: one for each model's last member.
        rule: how the best epochs of the folds become one number.
        rows: of the training split.

    Example:
        >>> Refit((), (7,), "median", 10).size([])
        1
    """

    folds: tuple[Job, ...]
    seeds: tuple[int, ...]
    rule: Rule
    rows: int

    def size(self, done: Sequence[Member]) -> int:
        """Return how many members all jobs make."""
        return len(self.folds) + len(self.seeds)

    def jobs(self, done: Sequence[Member]) -> Sequence[Job]:
        """Return the folds that are missing; then the members that learn from all rows.

        Raises:
            RunError: a member of another plan.
        """
        waiting = due(self.folds, done)
        last = [self._last(n, {} if waiting else self._epochs(n, done)) for n in self._numbers()]
        refuse_another_plan(done, [*self.folds, *last])
        return waiting or due(last, done)

    def _numbers(self) -> range:
        return range(len(self.seeds))

    def _epochs(self, factory: int, done: Sequence[Member]) -> dict[str, Any]:
        """Return what the folds of a model chose."""
        own = {job.index for job in self.folds if job.factory == factory}
        best = [int(member.record["best_epoch"]) for member in done if member.index in own]
        return {"rule": self.rule, "best_epochs": best, "epochs": int(RULES[self.rule](best) + 0.5)}

    def _last(self, factory: int, chosen: Mapping[str, Any]) -> Job:
        rows = np.arange(self.rows)
        facts = {"strategy": "refit", "folds": self.folds[0].facts["folds"]}
        facts |= {"refit": dict(chosen)} if chosen else {}
        return Job(
            len(self.folds) + factory,
            self.seeds[factory],
            rows,
            rows[:0],
            rows[:0],
            facts,
            how=on_all_rows,
            factory=factory,
            given=chosen,
        )


def on_all_rows(work: Work) -> Iterable[Made]:
    """Train one member for as many epochs as were chosen.

    Raises:
        TrainingError: an average would begin after so few epochs.

    Example:
        >>> on_all_rows.__name__
        'on_all_rows'
    """
    options, chosen = work.options, work.job.given["epochs"]
    try:
        options = shortened(options, chosen)
    except TrainingError as error:
        raise TrainingError(f"the folds chose {chosen} epochs for the refit, but {error}") from None
    model = work.model()
    fitted = work.fit(model, options=options)
    return [Made(model, fitted.state, facts_of(fitted), fitted.averages)]


def shortened(options: FitOptions, epochs: int) -> FitOptions:
    """Return options that train for fewer epochs, with the learning rates of all of them.

    Raises:
        TrainingError: an average would begin after so few epochs.

    Example:
        >>> short = shortened(FitOptions(epochs=4), 2)
        >>> [round(short.schedule(step, 2), 3) for step in range(2)]  # a cosine over four steps
        [1.0, 0.854]
    """
    schedule = partial(_cut, options.schedule, options.epochs, epochs)
    return replace(options, epochs=epochs, schedule=schedule)


def _cut(
    schedule: Callable[[int, int], float], epochs: int, chosen: int, step: int, total: int
) -> float:
    """Return the factor of a step that is one of `chosen` epochs, as the first of `epochs`."""
    return schedule(step, total * epochs // chosen)

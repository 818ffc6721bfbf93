"""What a strategy is: the jobs that are due, given the members that are done; and what a job does.

A strategy is a pure plan. What its jobs do is a function, `Job.how`, that turns `Work` into
members; most jobs train one member, some train several at once or take several from one run.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.data.base import Rows, Split, Splits
from polyfuse.determinism import seeded
from polyfuse.errors import RunError, TrainingError
from polyfuse.fit import FitOptions, Fitted, Kept, Notify, fit_member
from polyfuse.inference import has_length_head
from polyfuse.members import Member

Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Task:
    """What all members of a run share.

    Attributes:
        factory: makes a new, untrained model, under the member's seed; or several such functions,
            of which a job names one by its place.
        splits: the data.
        options: how a member is trained.

    Example:
        >>> from functools import partial
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((4, 2)), np.zeros(4, int))
        >>> Task(partial(nn.Linear, 2, 2), Splits(data, data, data)).options.epochs
        20
    """

    factory: Factory | Sequence[Factory]
    splits: Splits
    options: FitOptions = field(default_factory=FitOptions)

    @property
    def factories(self) -> Sequence[Factory]:
        """All functions that make a model."""
        return (self.factory,) if callable(self.factory) else tuple(self.factory)


class Made(NamedTuple):
    """One member that a job has made.

    Attributes:
        model: a net that the weights fit; what it holds itself does not matter.
        state: weights, on the CPU.
        facts: what `member.json` says of it besides the job's facts: best_epoch, history, ...
        averages: by name, averages that were tracked beside it.
        carried: arrays that later rounds need, kept in the member's folder by name.
    """

    model: nn.Module
    state: Mapping[str, Tensor]
    facts: Mapping[str, Any] = {}
    averages: Mapping[str, Kept] = {}
    carried: Mapping[str, NDArray[Any]] = {}


@dataclass(frozen=True)
class Work:
    """What a job is carried out with.

    Attributes:
        job: what is to be done.
        task: what all members share.
        root: the RUN folder, to read members of earlier rounds from.
        resume: file that keeps the progress of unfinished training.
        deadline: `time.time()` after which training stops at an epoch's end.
        notify: called with (epochs done, epochs, note).
    """

    job: "Job"
    task: Task
    root: Path
    resume: Path | None
    deadline: float | None
    notify: Notify

    @property
    def options(self) -> FitOptions:
        """How the job trains: as the task says, unless the job has options of its own."""
        return self.job.options or self.task.options

    def model(self, seed: int | None = None) -> nn.Module:
        """Return a new model with the initial weights that a seed gives; by default the job's."""
        with seeded(self.job.seed if seed is None else seed):
            return self.task.factories[self.job.factory]()

    def fit(self, model: nn.Module, split: Split | None = None, **given: Any) -> Fitted:
        """Train a model on the job's rows; `given` goes to `fit_member`.

        Args:
            model: trained in place.
            split: where the rows are; the training split by default.
            **given: what else `fit_member` takes, or takes instead.

        Raises:
            OutOfTime: the deadline has passed; progress is kept.
        """
        given = {"options": self.options, "weights": self.job.weights, **given}
        return fit_member(
            model,
            self.task.splits.train if split is None else split,
            self.job.learn,
            self.job.stop,
            seed=self.job.seed,
            resume=self.resume,
            deadline=self.deadline,
            notify=self.notify,
            log=self.root / "logs" / f"member {self.job.index}",
            **given,
        )


def one_member(work: Work) -> Iterable[Made]:
    """Train one member, as most strategies do.

    Example:
        >>> one_member.__name__
        'one_member'
    """
    model = work.model()
    fitted = work.fit(model)
    return [Made(model, fitted.state, facts_of(fitted), fitted.averages)]


def facts_of(fitted: Fitted) -> dict[str, Any]:
    """Return what `member.json` says of a training.

    Example:
        >>> facts_of(Fitted({}, 3, [], "ab", {}))
        {'fingerprint': 'ab', 'best_epoch': 3, 'history': []}
    """
    names = ("fingerprint", "best_epoch", "history")
    marked = () if fitted.diverged is None else ("diverged",)
    return {name: getattr(fitted, name) for name in (*names, *marked)}


@dataclass(frozen=True)
class Job:
    """One piece of training, that makes one member or several.

    Attributes:
        index: number of its first member in the population.
        seed: decides its initial weights, data order, dropout and augmentation.
        learn: rows of the training split that it learns from; a row that is there twice counts
            twice.
        stop: other rows of its own training part, that choose its epoch; where there are none, the
            last epoch is kept.
        held_out: rows that it never sees and predicts out of fold.
        facts: what `member.json` says of it: strategy, fold.
        count: how many members it makes; their numbers follow `index`.
        how: what is done; a function of a module, so that another process can do it.
        options: how it trains, where that differs from the task's options.
        factory: place of the function that makes its model, among those of the task.
        weights: one a learning row; None weighs all alike.
        given: what else `how` needs to know.
    """

    index: int
    seed: int
    learn: Rows
    stop: Rows
    held_out: Rows
    facts: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1
    how: Callable[[Work], Iterable[Made]] = one_member
    options: FitOptions | None = None
    factory: int = 0
    weights: NDArray[np.floating[Any]] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def indices(self) -> range:
        """The numbers of its members."""
        return range(self.index, self.index + self.count)


class Strategy(Protocol):
    """Which models to train, on what rows."""

    def size(self, done: Sequence[Member]) -> int:
        """Return how many members the finished population has, as far as can be told now."""
        ...

    def jobs(self, done: Sequence[Member]) -> Sequence[Job]:
        """Return the jobs that are due now; none when the population is complete.

        Raises:
            RunError: a member of another plan.
        """
        ...


@dataclass(frozen=True)
class Planned:
    """A strategy whose jobs are all known from the start, and may all run at once.

    Example:
        >>> rows = np.arange(4)
        >>> plan = Planned((Job(0, 7, rows[:2], rows[2:3], rows[3:]),))
        >>> plan.size([]), len(plan.jobs([]))
        (1, 1)
    """

    all_jobs: tuple[Job, ...]

    def size(self, done: Sequence[Member]) -> int:
        """Return how many members all jobs make."""
        return sum(job.count for job in self.all_jobs)

    def jobs(self, done: Sequence[Member]) -> Sequence[Job]:
        """Return the jobs that lack a member.

        Raises:
            RunError: a member of another plan.
        """
        refuse_another_plan(done, self.all_jobs)
        return due(self.all_jobs, done)


def due(jobs: Iterable[Job], done: Collection[Member]) -> list[Job]:
    """Return the jobs that lack a member.

    Example:
        >>> due([], [])
        []
    """
    there = {member.index for member in done}
    return [job for job in jobs if not there.issuperset(job.indices)]


def refuse_another_plan(done: Iterable[Member], jobs: Sequence[Job]) -> None:
    """Refuse members that none of these jobs would make.

    Raises:
        RunError: another strategy, other folds, or another seed.

    Example:
        >>> refuse_another_plan([], [])
    """
    planned = {n: _vouched(job) for job in jobs for n in job.indices}
    for member in done:
        wanted = planned.get(member.index)
        if wanted is None or wanted != {key: member.record.get(key) for key in wanted}:
            count = sum(job.count for job in jobs)
            raise RunError(
                f"'{member.path}' was trained by another plan than the {count} members that are "
                "asked for now, with this seed; name another folder, or train with the plan that "
                "it was begun with"
            )


def _vouched(job: Job) -> dict[str, Any]:
    factory = {"factory": job.factory} if job.factory else {}
    return {**job.facts, "seed": job.seed, **factory}


def refuse_length_head(model: nn.Module) -> None:
    """Refuse a model with a length head where members add up to one.

    Raises:
        TrainingError: it has one.

    Example:
        >>> refuse_length_head(nn.Linear(4, 2))
    """
    if has_length_head(model):
        raise TrainingError(
            "boosting adds up the members' logits of characters, and nothing adds up what their "
            "length heads say; take length_head: false, or another strategy"
        )


def member_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of so many members; more members have the same first seeds.

    Example:
        >>> member_seeds(0, 3)[:2] == member_seeds(0, 2)
        True
    """
    return [int(s) for s in np.random.SeedSequence([seed, 3]).generate_state(count)]

"""Which jobs of a round are done in lock-step: measured once, kept in the RUN folder, and said.

resume/together.json              what was chosen for which members
       group-000.safetensors      progress of the members that train in lock-step
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyfuse import durable
from polyfuse.determinism import seeded, threads
from polyfuse.errors import PolyfuseError, RunError, TrainingError, printable
from polyfuse.fit import FitOptions
from polyfuse.fit.lockstep import Lane, Lockstep, fit_together, refusals
from polyfuse.runners.base import Notify, Runner
from polyfuse.runners.local import LocalRunner
from polyfuse.training.base import Job, Made, Task, Work, facts_of, one_member

SCHEMA = 1
FEWEST_STEPS = 100  # of a member: below, a measurement costs more than it may save
LONGEST_STEP = 0.05  # seconds: above, a step's sums take far longer than the calls
STEPS, ROUNDS = 3, 2  # that are timed
GAIN = 1.1  # that is worth it
LARGEST = 32  # members of a group
CLOSE = 1e-3  # relative: the same first loss, computed otherwise


@dataclass(frozen=True)
class Group:
    """Jobs of one member each that are done in lock-step.

    Attributes:
        jobs: those that are due.
        name: number of the first member that the group ever had.
        size: how many members it ever had.
    """

    jobs: tuple[Job, ...]
    name: int
    size: int

    @property
    def index(self) -> int:
        """The number of its first member."""
        return self.jobs[0].index

    @property
    def indices(self) -> tuple[int, ...]:
        """The numbers of its members."""
        return tuple(job.index for job in self.jobs)

    @property
    def options(self) -> FitOptions | None:
        """How it trains."""
        return self.jobs[0].options


class Choice(NamedTuple):
    """What was chosen for a member.

    Attributes:
        group: number of the first member of its group; None for one that is trained alone.
        why: it is alone; where that was not asked for, member.json says so.
    """

    group: int | None
    why: str = ""


Unit = Job | Group
Said = Callable[[int, str], None]


def units_of(
    jobs: Sequence[Job], task: Task, root: Path, runner: Runner, said: Said = lambda *_: None
) -> list[Unit]:
    """Group the jobs that are to be done in lock-step.

    What was chosen once for a member goes on to hold for it, whatever a measurement would say now.

    Args:
        jobs: of one round.
        task: what they share.
        root: the RUN folder.
        runner: where they will run; each of its workers gets its part of the members.
        said: called with (member, what was chosen and why).

    Raises:
        RunError: what was chosen before cannot be read.

    Example:
        >>> units_of([], Task(list, None), Path("RUN"), LocalRunner())
        []
    """
    chosen = _chosen(root)
    new = [job for job in jobs if job.index not in chosen and not _begun(root, job)]
    for alike in _alike(new, task):
        chosen |= _choose(alike, task, runner, said)
    if set(chosen) - set(_chosen(root)):
        rows = [[index, *choice] for index, choice in sorted(chosen.items())]
        document = {"schema": SCHEMA, "members_groups_reasons": rows}
        durable.write_json(root / "resume" / "together.json", document)
    return _grouped(jobs, chosen)


def forget(root: Path) -> None:
    """Remove what was chosen, and progress of groups, once all members are there.

    Example:
        >>> forget(Path("/no/such/run"))
    """
    durable.remove(root / "resume" / "together.json")
    for file in (root / "resume").glob("group-*.safetensors"):
        durable.remove(file)


def jobs_of(unit: Unit) -> tuple[Job, ...]:
    """Return the jobs of a group, or the one that is none.

    Example:
        >>> jobs_of(Group((), 7, 3))
        ()
    """
    return unit.jobs if isinstance(unit, Group) else (unit,)


def member_file(root: Path, index: int) -> Path:
    """Return where the progress of a job by itself is kept, by its first member.

    Example:
        >>> member_file(Path("RUN"), 7).name
        '007.safetensors'
    """
    return root / "resume" / f"{index:03d}.safetensors"


def resume_file(root: Path, unit: Unit) -> Path:
    """Return where the progress of a job or group is kept.

    Example:
        >>> resume_file(Path("RUN"), Group((), 7, 3)).name
        'group-007.safetensors'
    """
    if isinstance(unit, Group):
        return root / "resume" / f"group-{unit.name:03d}.safetensors"
    return member_file(root, unit.index)


def made_together(
    group: Group, works: Sequence[Work]
) -> Iterable[tuple[Work, Made | TrainingError]]:
    """Train the members of a group; return each one, or why it failed.

    Raises:
        OutOfTime: the deadline has passed; progress is kept.

    Example:
        >>> made_together.__name__
        'made_together'
    """
    lanes, [first, *_] = [_lane(work) for work in works], works
    results = fit_together(
        lanes,
        first.task.splits.train,
        resume=first.resume,
        deadline=first.deadline,
        notify=first.notify,
    )
    for work, lane, result in zip(works, lanes, results, strict=True):
        if isinstance(result, TrainingError):
            yield work, result
        else:
            said = f"in lock-step with {group.size - 1} others"
            facts = {**facts_of(result), "trained": said}
            yield work, Made(lane.model, result.state, facts, result.averages)


# What was chosen --------------------------------------------------------------------------------


def _chosen(root: Path) -> dict[int, Choice]:
    """Return what was chosen before, by member."""
    file = root / "resume" / "together.json"
    if not file.exists():
        return {}
    document = durable.read_json(file)
    try:
        if document["schema"] != SCHEMA:
            raise ValueError
        return {
            int(index): Choice(None if group is None else int(group), str(why))
            for index, group, why in document["members_groups_reasons"]
        }
    except (TypeError, KeyError, ValueError):
        raise RunError(
            f"'{printable(file)}' is no record of schema {SCHEMA}; restore it, or delete the "
            "folder 'resume': members that are not done begin anew"
        ) from None


def _begun(root: Path, job: Job) -> bool:
    """Tell whether a job has begun by itself, as it then goes on."""
    return member_file(root, job.index).exists()


def _grouped(jobs: Sequence[Job], chosen: Mapping[int, Choice]) -> list[Unit]:
    """Return the jobs in their order, those of a group in the place of its first."""
    found: dict[tuple[str, int], Unit] = {}
    sizes = Counter(choice.group for choice in chosen.values())
    for job in jobs:
        group, why = chosen.get(job.index, Choice(None))
        if group is None:
            facts = {**job.facts, "trained": f"alone: {why}"} if why else job.facts
            found["job", job.index] = replace(job, facts=facts)
        else:
            begun = found.get(("group", group))
            before = begun.jobs if isinstance(begun, Group) else ()
            found["group", group] = Group((*before, job), group, sizes[group])
    return list(found.values())


def _alike(jobs: Sequence[Job], task: Task) -> list[list[Job]]:
    """Return the jobs that may be done in lock-step, those together that may be with each other."""
    kinds: dict[Any, list[Job]] = {}
    for job in jobs:
        options = job.options or task.options
        if job.how is not one_member or job.count != 1 or job.given or options.together == "never":
            continue
        same = replace(options, optimizer=task.options.optimizer)
        rows = len(job.learn) if options.sampler else _batches(job, options)
        key = (same.fingerprint(), options.together, job.factory, rows, job.weights is None)
        kinds.setdefault(key, []).append(job)
    return [alike for alike in kinds.values() if len(alike) > 1]


def _choose(jobs: Sequence[Job], task: Task, runner: Runner, said: Said) -> dict[int, Choice]:
    """Choose for jobs that are alike: return what is chosen for each."""
    options = jobs[0].options or task.options
    size = _size(len(jobs), runner)
    steps = options.epochs * math.ceil(_batches(jobs[0], options) / options.accumulate)
    if size < 2 or (options.together == "auto" and steps < FEWEST_STEPS):
        return {}
    reason = "; ".join(refusals(options)) or _tried(jobs[:size], task, runner)
    note = f"one after another: {reason}" if reason else f"in lock-step, {size} at a time"
    for job in jobs:
        said(job.index, note)
    if reason:
        why = reason if options.together == "always" else ""
        return {job.index: Choice(None, why) for job in jobs}
    parts = np.array_split(np.arange(len(jobs)), math.ceil(len(jobs) / size))
    return {jobs[i].index: Choice(jobs[part[0]].index) for part in parts for i in part.tolist()}


def _batches(job: Job, options: FitOptions) -> int:
    return math.ceil(len(job.learn) / options.batch_size)


def _size(count: int, runner: Runner) -> int:
    """Return how many members a group has where each worker has as many groups."""
    workers = getattr(runner, "workers", None) or len(getattr(runner, "devices", ()))
    workers = workers or (1 if isinstance(runner, LocalRunner) else count)
    share = math.ceil(count / workers)
    return math.ceil(share / math.ceil(share / LARGEST))


# The measurement --------------------------------------------------------------------------------


def _tried(jobs: Sequence[Job], task: Task, runner: Runner) -> str:
    """Try some steps where the jobs will run; return why they are better done alone, or nothing."""
    for result in runner.map(partial(_trial, task=task), [tuple(jobs)], lambda *_: None):
        return str(result.error or result.value)
    return "the trial gave no result"


def _trial(jobs: Sequence[Job], notify: Notify, *, task: Task) -> str:
    """Run a few steps of real batches both ways, on models of their own.

    A call that raises may have moved batch-norm statistics already, so nothing of this is used
    again.
    """
    options = jobs[0].options or task.options
    works = [Work(job, task, Path(), None, None, notify) for job in jobs]
    try:
        with threads(options.threads), seeded(jobs[-1].seed, 0):
            return _compared(works, must=options.together == "always")
    except PolyfuseError as error:
        return printable(error, 200)
    except RuntimeError as error:  # out of memory
        return f"{type(error).__name__}: {printable(error, 200)}"


def _compared(works: Sequence[Work], *, must: bool) -> str:
    split = works[0].task.splits.train
    [alone] = Lockstep([_lane(works[-1])], split).members  # not that whose parts all others use
    loss, first = _timed(partial(alone.take_steps, 0, 1))
    _, again = _timed(partial(alone.take_steps, 0, 1))
    if not must and min(first, again) > LONGEST_STEP:
        return "their steps are long"
    group = Lockstep([_lane(work) for work in works], split)
    [*_, stacked], _ = _timed(partial(group.take_steps, group.members, 0, 1))
    if not math.isclose(loss, stacked, rel_tol=CLOSE, abs_tol=CLOSE):
        return f"the first loss is {stacked:.4g} in lock-step, and {loss:.4g} alone"
    if must:
        return ""
    one = min(_timed(partial(alone.take_steps, 0, STEPS))[1] for _ in range(ROUNDS))
    many = min(_timed(partial(group.take_steps, group.members, 0, STEPS))[1] for _ in range(ROUNDS))
    return "" if many * GAIN < one * len(works) else "lock-step is not faster here"


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _lane(work: Work) -> Lane:
    job = work.job
    log = work.root / "logs" / f"member {job.index}"
    return Lane(work.model(), job.learn, job.stop, work.options, job.seed, job.weights, log)

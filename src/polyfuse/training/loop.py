"""Carry a strategy to its end: train what is missing, commit each member, resume anything."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse import durable, failures
from polyfuse.budget import STARTED, Budget
from polyfuse.data.base import Rows, Split, Splits, task_of, truth_of
from polyfuse.determinism import seeded, threads
from polyfuse.errors import RunError, TrainingError, printable
from polyfuse.failures import Failure
from polyfuse.fit import OutOfTime
from polyfuse.inference import check_labels, check_loss, lengths_of, predict, predict_heads
from polyfuse.labels import write_labels
from polyfuse.members import Floats, Member, write_member
from polyfuse.metrics import metrics_for
from polyfuse.population import Population
from polyfuse.runners.base import Notify, Runner, Watch
from polyfuse.runners.local import LocalRunner
from polyfuse.start import begin, digest_of
from polyfuse.tasks import mean_of
from polyfuse.training.base import Job, Made, Strategy, Task, Work
from polyfuse.training.together import (
    Group,
    Unit,
    forget,
    jobs_of,
    made_together,
    member_file,
    resume_file,
    units_of,
)

__all__ = ["Task", "train", "train_job"]


def train(
    strategy: Strategy,
    task: Task,
    out: str | Path,
    *,
    runner: Runner | None = None,
    deadline: float | None = None,
    watch: Watch = lambda number, done, total, note: None,
) -> Population:
    """Train every member that the folder does not have yet.

    Killed at any moment and called again, it goes on where it was and gives the same numbers.

    Args:
        strategy: which members.
        task: what they share.
        out: the RUN folder; made where missing.
        runner: where jobs run; in this process by default.
        deadline: `time.time()` after which members stop at an epoch's end, progress kept.
        watch: called with (member, epochs done, epochs, note).

    Returns:
        The population; with a deadline it may lack members.

    Raises:
        TrainingError: members that failed, each with the reason; the others are kept.
        RunError: the folder has other data or a half-written member.
        DataError: labels that do not fit the model.

    Example:
        >>> import tempfile
        >>> from polyfuse import Arrays, FitOptions, kfold
        >>> data = Arrays(np.eye(8), np.arange(8) % 2)
        >>> task = Task(partial(nn.Linear, 8, 2), Splits(data, data, data), FitOptions(epochs=1))
        >>> len(train(kfold(data, folds=2), task, tempfile.mkdtemp()).members)
        2
    """
    root = Path(out)
    durable.make_folder(root / "members")
    durable.make_folder(root / "resume")
    _check(task)
    _refuse_other_models(strategy, task)
    with durable.locked(root):
        durable.remove_leftovers(root)
        write_labels(root, task.splits)
        return _train_missing(strategy, task, root, runner or LocalRunner(), deadline, watch)


def _train_missing(
    strategy: Strategy,
    task: Task,
    root: Path,
    runner: Runner,
    deadline: float | None,
    watch: Watch,
) -> Population:
    done = _done(root)
    for member in done:
        _refuse_other_options(member, task)
    failures.forget(root)
    while jobs := strategy.jobs(done):
        _forget_progress(root, done, jobs)
        failed, finished = _carry_out(jobs, task, root, runner, deadline, watch)
        done = _done(root)
        if failed:
            raise failures.told(root, failed, len(done), strategy.size(done))
        _refuse_unseen(root, finished, done)
        if len(finished) < len(jobs):  # the deadline has passed
            break
    else:
        forget(root)
    _forget_progress(root, done, ())
    return Population.open(root)


def _carry_out(
    jobs: Sequence[Job],
    task: Task,
    root: Path,
    runner: Runner,
    deadline: float | None,
    watch: Watch,
) -> tuple[list[Failure], list[Job]]:
    """Run a round of jobs; return those that failed and those that are done."""
    # Absolute, because a worker's working folder may be another one.
    function = partial(train_job, task=task, root=root.absolute(), deadline=deadline)
    budget = Budget(deadline)
    epochs = task.options.epochs
    units = units_of(jobs, task, root, runner, lambda i, note: watch(i, 0, epochs, note))

    def seen(number: int, done: float, total: float, note: str) -> None:
        said = budget.begun(number) if note == STARTED else note
        if said is not None:
            for job in jobs_of(units[number]):
                watch(job.index, done, total, said)

    failed: list[Failure] = []
    finished: list[Job] = []
    for result in runner.map(function, units, seen):
        unit = units[result.number]
        budget.ended(result.number)
        if result.error:
            failed.append(Failure(unit.indices, result))
        elif result.value:
            finished += jobs_of(unit)
            epochs = (unit.options or task.options).epochs
            note = "done" if result.attempts == 1 else f"done, at attempt {result.attempts}"
            for index in unit.indices:
                watch(index, epochs, epochs, note)
    return failed, finished


def _refuse_unseen(root: Path, finished: Sequence[Job], done: Sequence[Member]) -> None:
    """Refuse members that a worker has committed and that are not to be seen from here."""
    there = {member.index for member in done}
    unseen = sorted({index for job in finished for index in job.indices} - there)
    if unseen:
        raise RunError(
            f"members {unseen} were trained, but are not in '{printable(root)}': all nodes need "
            "that folder under that path; name one on a file system that they share with --out"
        )


def _forget_progress(root: Path, done: Sequence[Member], jobs: Sequence[Job]) -> None:
    """Remove the progress of jobs that were killed after their members were committed."""
    for index in {member.index for member in done} - {job.index for job in jobs}:
        durable.remove(member_file(root, index))


def _done(root: Path) -> tuple[Member, ...]:
    """Return the members that were trained here; those that were added are nobody's job."""
    return Population.open(root).trained_here.members


def train_job(
    job: Unit, notify: Notify, *, task: Task, root: Path, deadline: float | None = None
) -> bool:
    """Do a job, or a group of them, and commit its members; return whether that is done.

    It is not when time ran out.

    Example:
        >>> train_job.__name__
        'train_job'
    """
    if Budget(deadline).is_up():
        return False
    options = job.options or task.options
    resume = resume_file(root, job)
    works = [Work(each, task, root, resume, deadline, notify) for each in jobs_of(job)]
    notify(0, options.epochs, STARTED)
    with seeded(works[0].job.seed), threads(options.threads):
        try:
            if isinstance(job, Group):
                _commit_group(job, works)
            else:
                [work] = works
                for index, made in zip(job.indices, job.how(work), strict=True):
                    _commit(index, made, work)
        except OutOfTime:
            return False
    durable.remove(resume)
    return True


def _commit_group(group: Group, works: Sequence[Work]) -> None:
    """Train members in lock-step and commit those that did not fail."""
    failed = []
    for work, made in made_together(group, works):
        if isinstance(made, Made):
            _commit(work.job.index, made, work)
        else:
            failed.append(f"member {work.job.index}: {made}")
    if failed:
        raise TrainingError("\n".join(failed))


def _refuse_other_options(member: Member, task: Task) -> None:
    if member.record.get("options") != task.options.fingerprint():
        raise RunError(
            f"'{member.path}' was trained with other options: "
            f"{printable(member.record.get('options'), 600)}; name another folder, or use those"
        )


def _commit(index: int, made: Made, work: Work) -> None:
    job, task = work.job, work.task
    start = work.options.start
    # The weights it started from may have seen any row, so nothing is out of its fold for sure.
    unseen = job.held_out[:0] if start else job.held_out
    logits, heads = _said(made.model, made.state, task.splits, unseen)
    averages: dict[str, tuple[Mapping[str, Tensor] | None, Mapping[str, Floats]]] = {}
    lengths: dict[str | None, Mapping[str, Floats]] = {None: heads} if heads else {}
    for name, average in made.averages.items():
        said, heads = _said(made.model, average.state, task.splits, unseen)
        averages[name] = (average.state, said)
        if heads:
            lengths[name] = heads
    record = {
        "index": index,
        **job.facts,
        "seed": job.seed,
        "options": task.options.fingerprint(),
        "parameters": sum(p.numel() for p in made.model.parameters()),
        **({"start": digest_of(start)} if start else {}),
        **({"factory": job.factory} if job.factory else {}),
        "scores": _scores(logits, task.splits),
        **made.facts,
    }
    if averages:
        record["averages"] = {
            name: {
                "best_epoch": made.averages[name].best_epoch,
                "scores": _scores(said, task.splits),
            }
            for name, (_, said) in averages.items()
        }
    rows: Mapping[str, Rows] = {
        "learned": job.learn,
        "stopped": job.stop,
        "held_out": job.held_out,
    }
    if "weights_of" in made.facts:  # that member keeps them for all samples of its net
        averages = {name: (None, said) for name, (_, said) in averages.items()}
    state = None if "weights_of" in made.facts else made.state
    write_member(work.root, record, state, logits, rows, averages, made.carried, lengths)


def _said(
    model: nn.Module, state: Mapping[str, Tensor], splits: Splits, unseen: Rows
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Return logits by split with these weights, and those of a length head where there is one.

    On train they are of the rows that are out of fold.
    """
    model.load_state_dict(state)
    heads = {name: predict_heads(model, getattr(splits, name)) for name in ("val", "test")}
    logits = {name: said.characters for name, said in heads.items()}
    logits["train"] = _out_of_fold(model, splits.train, unseen, logits["val"].shape[1:])
    return logits, lengths_of(heads)


def _scores(logits: Mapping[str, Floats], splits: Splits) -> dict[str, Any]:
    """Return the member's own scores by split; on train over the rows that it did not see."""
    found: dict[str, Any] = {}
    for name, split in splits._asdict().items():
        said = np.isfinite(logits[name]).all(tuple(range(1, logits[name].ndim)))
        truth, task = truth_of(split), task_of(split)
        if truth is None or not said.any():
            continue
        prediction = mean_of(task, logits[name][said][None])
        found["out_of_fold" if name == "train" else name] = {
            metric: score(prediction, truth[said]).value
            for metric, score in metrics_for(split.blank, task).items()
        }
    return found


def _out_of_fold(
    model: nn.Module, split: Split, unseen: Rows, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return logits, each of this shape, of every training row: NaN but where it is unseen."""
    everything = np.full((len(split), *shape), np.nan, np.float32)
    if len(unseen):
        everything[unseen] = predict(model, split, unseen)
    return everything


def _check(task: Task) -> None:
    """Refuse data that do not fit the models before any time is spent."""
    made = [_made_twice(factory) for factory in task.factories]
    _refuse_shared([model for both in made for model in both])
    for model, _ in made:
        begin(model, task.options.start)
        check_loss(model, task.options.loss)
        for name, split in task.splits._asdict().items():
            if split.labels is not None or name != "test":
                check_labels(model, split, np.arange(min(2, len(split))))


def _made_twice(factory: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    if isinstance(factory, nn.Module):
        raise TrainingError(
            f"the task's factory is a {type(factory).__name__}, a model; bring a function that "
            "builds a new one: lambda: Net()"
        )
    with seeded(0):
        return factory(), factory()


def _refuse_shared(models: Sequence[nn.Module]) -> None:
    """Refuse factories that hand out the same object, or parts of it, again: no member is its own.

    The models are all alive, so that no address is used twice. Modules without parameters and
    buffers, such as an activation, may be shared.
    """
    seen: set[int] = set()
    for model in models:
        held = [(name, m) for name, m in model.named_modules() if m is model or _holds(m)]
        parts: list[tuple[str, Any]] = [(name or "the model itself", m) for name, m in held]
        parts += model.named_parameters()
        shared = [name for name, part in parts if id(part) in seen]
        if shared:
            more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
            raise TrainingError(
                "a model factory returns the same object again, so that training one member would "
                f"change the others: {printable(', '.join(shared[:3]))}{more}; build the model "
                "inside the function: lambda: Net(), not lambda: net"
            )
        seen |= {id(part) for _, part in parts}


def _holds(module: nn.Module) -> bool:
    return any(True for _ in chain(module.parameters(recurse=False), module.buffers(recurse=False)))


def _refuse_other_models(strategy: Strategy, task: Task) -> None:
    """Refuse jobs that name a model which the task lacks, and models that no job trains."""
    jobs, count = strategy.jobs([]), len(task.factories)
    named = {job.factory for job in jobs}
    known = sum(job.count for job in jobs) == strategy.size([])  # else later rounds may name more
    if max(named, default=0) >= count or (known and jobs and len(named) < count):
        raise TrainingError(
            f"the task has {count} model factories, and the strategy trains {len(named)} of "
            f"{max(named, default=0) + 1}: tell it how many, as in heterogeneous(..., "
            f"factories={count})"
        )

"""Gradient boosting of nets: each member fits what the sum of those before it leaves to do."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse import boosting
from polyfuse.data.base import Rows, Split
from polyfuse.errors import DataError, TrainingError
from polyfuse.fit import FitOptions
from polyfuse.fit.sampling import row_weights
from polyfuse.inference import predict
from polyfuse.members import Member, open_member
from polyfuse.training.base import Job, Made, Work, facts_of, member_seeds, refuse_length_head
from polyfuse.training.rounds import Rounds, ended
from polyfuse.training.rows import fraction_faults, stopping

Loss = Callable[[Tensor], Tensor]


def gradient_boosting(
    split: Split,
    *,
    rounds: int = 10,
    shrinkage: float = 0.1,
    line_search: bool = True,
    largest_step: float = 10.0,
    stop_rounds: int | None = None,
    stop_fraction: float = 0.1,
    seed: int = 0,
    fit: FitOptions | None = None,
) -> Rounds:
    """Plan gradient boosting (Friedman 2001) of nets, for any differentiable loss.

    It begins with F = 0. A member fits, by its squared error, minus the derivative of the loss by F
    at every row; a step along what it says, times the shrinkage, is its weight in `member.json`,
    and is added: `F + weight * member`. F of every row lies in `carried/F.npy` of each member, so
    a round costs one pass over the rows, however many came before it. Fuse by `boosted_sum`.

    Members before it are files, which nothing changes: neither gradients nor batch-norm. F is of
    the rows as they are, whatever an augmentation makes of them in training.

    Args:
        split: the training split.
        rounds: at most so many members.
        shrinkage: above 0, to 1: the part of each step that is taken.
        line_search: whether the step has the least loss on the learning rows; else it is 1. Of a
            convex loss, such as cross-entropy, the loss then never rises.
        largest_step: of the search.
        stop_rounds: rounds without a lower loss on the stopping rows before it ends; the members
            up to the best round are kept. None trains all, and keeps all.
        stop_fraction: share of the rows that chooses each member's epoch, and the best round; 0:
            none does, and the last epoch is kept.
        seed: decides members' seeds and the stopping rows.
        fit: how the members are trained, to refuse what does not go together.

    Raises:
        DataError: a request that cannot be boosted; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> plan = gradient_boosting(Arrays(np.zeros((10, 2)), np.arange(10) % 2), rounds=3)
        >>> [len(job.learn) for job in plan.jobs([])], plan.size([])
        ([9], 3)
    """
    faults = [
        *_number_faults(rounds, shrinkage, largest_step, stop_rounds),
        *fraction_faults(stop_fraction),
        *_option_faults(stop_rounds, stop_fraction, fit),
    ]
    if split.labels is None:
        faults.append("the training split has no labels; bring one label a row")
    if faults:
        raise DataError("\n".join(faults))
    facts = {
        "strategy": "gradient_boosting",
        "rounds": rounds,
        "shrinkage": shrinkage,
        "line_search": line_search,
        "largest_step": largest_step,
        "stop_rounds": stop_rounds,
        "stop_fraction": stop_fraction,
    }
    rows = np.arange(len(split))
    learn, stop = stopping(rows, stop_fraction, seed=seed, groups=split.groups)
    plan = partial(_round, learn=learn, stop=stop)
    return Rounds(facts, tuple(member_seeds(seed, rounds)), plan)


def _round(job: Job, before: Sequence[Member], *, learn: Rows, stop: Rows) -> Job:
    losses = [member.record["boosted"].get("stopping_loss") for member in before]
    return replace(job, learn=learn, stop=stop, how=boosted_sum_member, given={"losses": losses})


def boosted_sum_member(work: Work) -> Iterable[Made]:
    """Train the member of a round on the residuals; find its step, and add it to F.

    Raises:
        TrainingError: no step along the first member lowers the loss.

    Example:
        >>> boosted_sum_member.__name__
        'boosted_sum_member'
    """
    job, train = work.job, work.task.splits.train
    model = work.model()
    refuse_length_head(model)
    before = _before(work, partial(predict, model, train, job.learn[:1]))
    learn, stop = _Part(work, job.learn, weighted=True), _Part(work, job.stop)
    # What weighs rows is in the residuals; it has no place in the fit of them.
    options = replace(work.options, loss=boosting.squared_error, class_weights=None)
    residuals = _Residuals(train, _residuals([learn, stop], before))
    fitted = work.fit(model, residuals, options=options, checked=True)
    model.load_state_dict(fitted.state)
    change = predict(model, train)
    step = _step(job, learn, before, change)
    after = before + np.float32(job.facts["shrinkage"] * step) * change
    if learn.loss_of(after) > learn.loss_of(before) and job.facts["line_search"]:
        step, after = 0.0, before  # the search ended within a hair of 0
    facts = facts_of(fitted) | {"weight": job.facts["shrinkage"] * step}
    facts["boosted"] = {"step": step, "loss": learn.loss_of(after)}
    if len(job.stop):
        facts["boosted"]["stopping_loss"] = stop.loss_of(after)
    return [Made(model, fitted.state, facts | _end(job, facts), fitted.averages, {"F": after})]


def _before(work: Work, predict_one: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return F of every training row, the sum of the members before this one."""
    if work.job.index:
        last = open_member(work.root / "members" / f"{work.job.index - 1:03d}")
        carried: NDArray[np.float32] = last.carried("F")
        return carried
    return np.zeros((len(work.task.splits.train), *predict_one().shape[1:]), np.float32)


class _Part:
    """Some rows of the training split, and the run's loss on them as a function of outputs."""

    def __init__(self, work: Work, rows: Rows, *, weighted: bool = False) -> None:
        labels = work.task.splits.train.labels
        assert labels is not None  # gradient_boosting has refused that
        weights = row_weights(work.options, labels[rows], None) if weighted else None
        given = {} if weights is None else {"weights": torch.from_numpy(weights)}
        self.rows = rows
        self.loss: Loss = partial(_loss, work.options, torch.from_numpy(labels[rows]), given)

    def of(self, outputs: NDArray[np.float32]) -> Tensor:
        """Return the outputs of these rows."""
        return torch.from_numpy(outputs[self.rows])

    def loss_of(self, outputs: NDArray[np.float32]) -> float:
        """Return the loss of these rows, given outputs of all."""
        with torch.no_grad():
            return float(self.loss(self.of(outputs)))


def _loss(options: FitOptions, labels: Tensor, given: dict[str, Tensor], outputs: Tensor) -> Tensor:
    return options.loss(outputs, labels, **given)


def _residuals(parts: Iterable[_Part], before: NDArray[np.float32]) -> NDArray[np.float32]:
    residuals = np.zeros_like(before)
    for part in parts:
        if len(part.rows):
            residuals[part.rows] = boosting.pseudo_residuals(part.loss, part.of(before)).numpy()
    return residuals


def _step(
    job: Job, learn: _Part, before: NDArray[np.float32], change: NDArray[np.float32]
) -> float:
    if not job.facts["line_search"]:
        return 1.0
    largest = job.facts["largest_step"]
    return boosting.line_search(learn.loss, learn.of(before), learn.of(change), largest=largest)


def _end(job: Job, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what the record says where boosting ends with this member, or before it."""
    losses, patience = list(job.given["losses"]), job.facts["stop_rounds"]
    if facts["weight"]:
        losses.append(facts["boosted"].get("stopping_loss"))
    best = len(losses) if patience is None else int(np.argmin(losses or [0])) + 1
    if not facts["weight"]:
        fact = "no step along it lowers the loss of the learning rows"
        if losses:
            return ended(best, fact)
        raise TrainingError(
            f"the first member cannot be boosted: {fact}; train it better, with more epochs or "
            "another learning rate"
        )
    waited, last = len(losses) - best, job.facts["round"] == job.facts["rounds"] - 1
    if waited and (waited >= patience or last):
        return ended(best, f"no lower loss on the stopping rows in the {waited} rounds before")
    return {}


@dataclass(frozen=True)
class _Residuals:
    """The training split with residuals for labels."""

    split: Split
    labels: NDArray[np.float32]
    task = "regression"
    blank = None

    @property
    def names(self) -> Sequence[str]:
        return self.split.names

    @property
    def groups(self) -> Rows | None:
        return self.split.groups

    def __len__(self) -> int:
        return len(self.split)

    def inputs(self, rows: Rows) -> Tensor:
        return self.split.inputs(rows)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.split.fingerprint().encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def _number_faults(
    rounds: int, shrinkage: float, largest_step: float, stop_rounds: int | None
) -> list[str]:
    faults = [f"rounds={rounds}; type 1 or more"] if rounds < 1 else []
    if not 0 < shrinkage <= 1:
        faults.append(f"shrinkage={shrinkage}; type a number above 0, to 1")
    if not 0 < largest_step < np.inf:
        faults.append(f"largest_step={largest_step}; type a number above 0, such as 10")
    if stop_rounds is not None and stop_rounds < 1:
        faults.append(f"stop_rounds={stop_rounds}; type 1 or more, or leave it out")
    return faults


def _option_faults(
    stop_rounds: int | None, stop_fraction: float, fit: FitOptions | None
) -> list[str]:
    faults = []
    if stop_rounds is not None and stop_fraction == 0:
        faults.append(
            f"stop_rounds={stop_rounds} looks at the loss of stopping rows, and stop_fraction=0 "
            "sets none aside; type stop_fraction=0.1, or leave stop_rounds out"
        )
    if fit is not None and fit.sampler is not None:
        faults.append(
            "a sampler draws by labels, and members of gradient boosting learn residuals; leave "
            "sampler out, or weigh the classes instead: class_weights"
        )
    return faults

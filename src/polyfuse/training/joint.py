"""Joint training: several members as one module, under one loss of all their outputs.

Two strategies: the loss of the members' mean, and negative correlation. What they share is
`jointly`, which trains under any loss of stacked outputs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from polyfuse.classical import inner_slice
from polyfuse.data.base import Split, task_of
from polyfuse.errors import TrainingError
from polyfuse.fit import Fitted
from polyfuse.losses import Loss, Mean, loss_of_mean, negative_correlation_loss
from polyfuse.training.base import Job, Made, Planned, Work, facts_of, member_seeds

JointLoss = Callable[..., Tensor]
"""`(each, outputs, labels, *, weights=None) -> scalar`: `each` is the run's loss of one member,
`outputs` have a first axis over members."""


class SideBySide(nn.Module):
    """Members side by side: one module, whose output is all of theirs.

    Args:
        members: of one kind of output.

    Example:
        >>> SideBySide([nn.Linear(4, 2), nn.Linear(4, 2)])(torch.zeros(3, 4)).shape
        torch.Size([2, 3, 2])
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        """Take them in; they are trained in place."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(n, ...)` inputs to `(member, n, ...)` outputs."""
        return torch.stack([member(inputs) for member in self.members])


def joint(
    split: Split,
    *,
    members: int = 5,
    mean: Mean | None = None,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan members that are trained as one model, whose answer is their mean.

    Nothing makes a member good by itself, so the ensemble is one large net with a wide end; it
    often generalises worse than members trained alone (Webb et al. 2020, arXiv 1902.04422;
    Jeffares et al. 2023, "Joint Training of Deep Ensembles Fails Due to Learner Collusion").

    Args:
        split: the training split.
        members: 2 or more.
        mean: of the members' "probability" (softmax over the last axis) or of their "output"; None
            is "probability" of classes, and "output" of any other task.
        stop_fraction: share of the rows that choose the epoch, by the loss of the mean.
        seed: decides rows, initial weights, data order.

    Raises:
        TrainingError: fewer than two members, or a mean that does not fit the task.

    Example:
        >>> from polyfuse import Arrays
        >>> joint(Arrays(np.zeros((10, 2)), np.zeros(10, int)), members=3).jobs([])[0].count
        3
    """
    mean = _mean(split, mean)
    loss = partial(loss_of_mean, mean=mean)
    facts = {"strategy": "joint", "mean": mean}
    return _plan(split, members, loss, loss, facts, stop_fraction, seed)


def negative_correlation(
    split: Split,
    *,
    members: int = 5,
    strength: float = 0.5,
    mean: Mean | None = None,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan members that learn together, each held to be unlike the others' mean.

    The loss is `losses.negative_correlation_loss`. With a squared error it is that of Liu and Yao
    (1999, Neural Networks 12); with the cross-entropy it is its generalisation by Webb et al.
    (2020, arXiv 1902.04422). The epoch is chosen by the loss of the mean.

    Args:
        split: the training split.
        members: 2 or more.
        strength: 0 trains each alone, 1 is joint training of the mean.
        mean: as for `joint`.
        stop_fraction: share of the rows that choose the epoch.
        seed: decides rows, initial weights, data order.

    Raises:
        TrainingError: fewer than two members, a strength outside 0 to 1, or a mean that does not
            fit the task.

    Example:
        >>> from polyfuse import Arrays
        >>> negative_correlation(Arrays(np.zeros((10, 2)), np.zeros(10, int))).size([])
        5
    """
    if not 0 <= strength <= 1:
        raise TrainingError(f"strength={strength}; it must be from 0 (each alone) to 1 (the mean)")
    mean = _mean(split, mean)
    loss = partial(negative_correlation_loss, strength=strength, mean=mean)
    facts = {"strategy": "negative_correlation", "strength": strength, "mean": mean}
    return _plan(split, members, loss, partial(loss_of_mean, mean=mean), facts, stop_fraction, seed)


def _mean(split: Split, mean: Mean | None) -> Mean:
    """Return what is averaged: only of classes is the softmax of outputs a probability."""
    task = task_of(split)
    if mean == "probability" and task != "classification":
        raise TrainingError(
            f"mean='probability' is of classes, by a softmax, and the task is {task}; type 'output'"
        )
    return mean or ("probability" if task == "classification" else "output")


def _plan(
    split: Split,
    members: int,
    loss: JointLoss,
    judge: JointLoss,
    facts: Mapping[str, object],
    stop_fraction: float,
    seed: int,
) -> Planned:
    """Plan one job that makes all members."""
    if members < 2:
        raise TrainingError(f"members={members}; joint training needs 2 or more")
    rows = np.arange(len(split))
    [first] = member_seeds(seed, 1)
    learn, stop = inner_slice(rows, stop_fraction, seed=first, groups=split.groups)
    facts = {**facts, "members": members}
    given = {"loss": loss, "judge": judge}
    job = Job(0, first, learn, stop, rows[:0], facts, members, jointly, given=given)
    return Planned((job,))


def jointly(work: Work) -> Iterable[Made]:
    """Train all members of a job as one module; `job.given` has its loss.

    `given["loss"]` is a `JointLoss`, learned from; `given["judge"]` another one, by which the
    stopping rows choose the epoch, or is left out where that is the same. Both are functions of a
    module, or `partial` of one.

    Raises:
        TrainingError: the factory gives one model twice, or the run starts from weights.
        OutOfTime: the deadline has passed; progress is kept.

    Example:
        >>> jointly.__name__
        'jointly'
    """
    options = work.options
    if options.start is not None:
        raise TrainingError(
            f"start={options.start!r} would begin all members of a joint training as one, and "
            "nothing sets them apart; leave start out"
        )
    members = [work.model(seed) for seed in member_seeds(work.job.seed, work.job.count)]
    if len({id(member) for member in members}) < len(members):
        raise TrainingError(
            "the model factory returned the same object twice; let it make a new model each time"
        )
    loss = work.job.given["loss"]
    judge = work.job.given.get("judge", loss)
    told = partial(_learned_or_judged, loss, judge, options.loss)
    fitted = work.fit(SideBySide(members), options=replace(options, loss=told), checked=True)
    return [_made(fitted, member, place) for place, member in enumerate(members)]


def _learned_or_judged(
    loss: JointLoss,
    judge: JointLoss,
    each: Loss,
    outputs: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss to learn from; the judge's on stopping rows, which need no gradients."""
    wanted = loss if torch.is_grad_enabled() else judge
    return wanted(each, outputs, labels, weights=weights)


def _made(fitted: Fitted, member: nn.Module, place: int) -> Made:
    """Take one member out of what was trained together."""
    averages = {
        name: kept._replace(state=_part(kept.state, place))
        for name, kept in fitted.averages.items()
    }
    return Made(member, _part(fitted.state, place), facts_of(fitted), averages)


def _part(state: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    """Return the weights of one member, under its own names."""
    prefix = f"members.{place}."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

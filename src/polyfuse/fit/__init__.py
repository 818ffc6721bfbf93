"""Train one member, on Lightning Fabric: early stopping, best epoch kept, resumed bit for bit."""

import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.data.base import Rows, Split
from polyfuse.determinism import threads
from polyfuse.fit.base import (
    Accelerator,
    Diverged,
    FitOptions,
    Fitted,
    Maker,
    Notify,
    OutOfTime,
    Precision,
    silent,
    timed,
)
from polyfuse.fit.devices import spread
from polyfuse.fit.fabric import fabric_of
from polyfuse.fit.logging import logged
from polyfuse.fit.tracked import Kept
from polyfuse.fit.training import Training
from polyfuse.inference import check_labels
from polyfuse.start import begin

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "Accelerator",
    "Diverged",
    "FitOptions",
    "Fitted",
    "Kept",
    "Maker",
    "Notify",
    "OutOfTime",
    "Precision",
    "fit_member",
    "silent",
    "timed",
]


def fit_member(
    model: nn.Module,
    split: Split,
    learn: Rows,
    stop: Rows,
    options: FitOptions,
    *,
    seed: int,
    weights: NDArray[np.floating[Any]] | None = None,
    collect: Collection[int] = (),
    checked: bool = False,
    resume: Path | None = None,
    deadline: float | None = None,
    notify: Notify = silent,
    log: Path | None = None,
) -> Fitted:
    """Train a model on the learning rows; the stopping rows choose the epoch that is kept.

    Every epoch draws its data order, dropout and augmentation from `(seed, epoch)` alone, so a run
    that is killed and resumed gives the same bits as an undisturbed one.

    Args:
        model: trained in place; maps `split.inputs(rows)` to logits.
        split: the data.
        learn: rows to learn from; one that is there twice counts twice.
        stop: other rows, evaluated in eval mode after each epoch; where there are none, the last
            epoch is kept, and patience has nothing to wait for.
        options: see `FitOptions`.
        seed: of this member.
        weights: one a learning row, 0 or more; scaled to a mean of 1. The loss must take them:
            `loss(outputs, labels, *, weights=None)`, `(n,)` float32. None weighs all alike.
        collect: epochs, from 1, after which the weights are kept beside the best ones.
        checked: the caller knows that the model's output fits the loss; it is not held against
            the labels.
        resume: file that keeps the progress of unfinished training; None keeps nothing.
        deadline: `time.time()` after which training stops at the end of the epoch.
        notify: called with (epochs done, epochs, note).
        log: the folder that the options' logger writes in, and in it the member's name.

    Raises:
        TrainingError: the loss became NaN or infinite, or an option does not fit the data.
        DataError: the model's output does not fit the labels.
        TrainingError: with several devices, what cannot be pickled, or a process that died.
        CheckpointError: the resume file is damaged or belongs to other training; or the weights
            to start from do not fit the model.
        OutOfTime: the deadline has passed.

    Example:
        >>> import torch
        >>> from polyfuse import Arrays
        >>> data = Arrays(torch.randn(64, 4), torch.arange(64) % 2)
        >>> rows = np.arange(64)
        >>> learn, stop, options = rows[:48], rows[48:], FitOptions(epochs=2)
        >>> fitted = fit_member(nn.Linear(4, 2), data, learn, stop, options, seed=0)
        >>> len(fitted.history)
        2
    """
    begin(model, options.start)
    if not checked:
        check_labels(model, split, learn)
    given = (split, learn, stop, options, seed, weights, collect, resume, deadline, log)
    if options.devices == 1:
        return _train(fabric_of(options), notify, model, *given)
    fitted: Fitted
    make, part = partial(fabric_of, options), partial(_train_a_part, model, given)
    fitted, last = spread(make, part, notify)
    model.load_state_dict(last)
    return fitted


def _train_a_part(
    model: nn.Module, given: tuple[Any, ...], fabric: "Fabric", notify: Notify
) -> tuple[Fitted, dict[str, Tensor]]:
    """Train on one of several devices; return the weights of the last epoch, too."""
    fitted = _train(fabric, notify, model, *given)
    return fitted, {name: value.cpu() for name, value in model.state_dict().items()}


def _train(
    fabric: "Fabric",
    notify: Notify,
    model: nn.Module,
    split: Split,
    learn: Rows,
    stop: Rows,
    options: FitOptions,
    seed: int,
    weights: NDArray[np.floating[Any]] | None,
    collect: Collection[int],
    resume: Path | None,
    deadline: float | None,
    log: Path | None,
) -> Fitted:
    """Train a model on a device, epoch by epoch."""
    logger = options.logger if fabric.global_rank == 0 else None
    with threads(options.threads), logged(logger, log) as told:
        run = Training(model, split, learn, stop, options, seed, weights, collect, fabric)
        run.restore(resume)
        told.tell(run.history)
        while run.unfinished():
            if run.part.agreed(deadline is not None and time.time() > deadline):
                raise OutOfTime
            try:
                run.epoch()
            except Diverged as fault:
                return run.ended(fault)
            run.save(resume)
            told.tell(run.history[-1:])
            last = run.history[-1]
            shown = last.get("stopping_loss", last["loss"])
            notify(len(run.history), options.epochs, f"loss {shown:.3f}")
    return run.fitted()

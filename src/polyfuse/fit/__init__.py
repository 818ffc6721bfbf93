"""Train one member, on Lightning Fabric: early stopping, best epoch kept, resumed bit for bit."""

import hashlib
import inspect
import math
import time
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.checkpoints import safetensors
from polyfuse.data.base import Rows, Split
from polyfuse.determinism import seeded, threads
from polyfuse.errors import CheckpointError, TrainingError
from polyfuse.fit.base import Accelerator, FitOptions, Maker, Notify, Precision, silent, timed
from polyfuse.fit.tracked import STATISTICS_ROWS, Inputs, Kept, Tracked
from polyfuse.inference import PREDICT_BATCH, check_labels, evaluating
from polyfuse.start import begin
from polyfuse.statedict import flatten, unflatten

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "Accelerator",
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


class Fitted(NamedTuple):
    """A trained member.

    Attributes:
        state: weights of the best epoch, on the CPU.
        best_epoch: from 1.
        history: one dict an epoch: epoch, rate, loss, stopping_loss, and NAME_stopping_loss of
            each average that has begun.
        fingerprint: a SHA-256 over all that decides the weights: data, rows, options, seed.
        averages: by name, each as it was in its own best epoch.
        collected: weights at the end of the epochs that were asked for, by epoch from 1.
    """

    state: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, float]]
    fingerprint: str
    averages: Mapping[str, Kept]
    collected: Mapping[int, dict[str, Tensor]] = {}


class OutOfTime(Exception):
    """The time budget ended; progress is kept in the resume file."""


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

    Raises:
        TrainingError: the loss became NaN or infinite.
        DataError: the model's output does not fit the labels.
        CheckpointError: the resume file is damaged or belongs to other training; or the weights
            to start from do not fit the model.
        OutOfTime: the deadline has passed.

    Example:
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
    with threads(options.threads):
        run = _Training(model, split, learn, stop, options, seed, weights, collect)
        run.restore(resume)
        while run.unfinished():
            if deadline is not None and time.time() > deadline:
                raise OutOfTime
            run.epoch()
            run.save(resume)
            last = run.history[-1]
            shown = last.get("stopping_loss", last["loss"])
            notify(len(run.history), options.epochs, f"loss {shown:.3f}")
    kept = run.tracked.kept() if run.tracked else {}
    return Fitted(run.best, run.best_epoch, run.history, run.key, kept, run.collected)


class _Training:
    """The state of one member's training between epochs."""

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        learn: Rows,
        stop: Rows,
        options: FitOptions,
        seed: int,
        weights: NDArray[np.floating[Any]] | None,
        collect: Collection[int],
    ) -> None:
        self.split, self.learn, self.stop = split, learn, stop
        self.options, self.seed = options, seed
        self.weights = None if weights is None else _scaled(weights, learn, options)
        self.collect = frozenset(collect)
        self.collected: dict[int, dict[str, Tensor]] = {}
        _check_batches(model, len(learn), options.batch_size)
        self.fabric = _fabric(options)
        self.bare = model
        self.optimizer = options.optimizer(model.parameters())
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.model, self.stepper = self.fabric.setup(model, self.optimizer)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf
        self.best_epoch = 0
        self.tracked = self._tracked() if options.averaging else None

    def _tracked(self) -> Tracked:
        steps = math.ceil(self._batches() / self.options.accumulate) * self.options.epochs
        rules, inputs = self.options.rules(), self._some_inputs()
        return Tracked(self.bare, rules, steps, inputs, self.fabric.autocast)

    def _some_inputs(self) -> Inputs:
        rows = self.learn
        if len(rows) > STATISTICS_ROWS:
            rows = np.sort(np.random.default_rng(self.seed).choice(rows, STATISTICS_ROWS, False))
        convert = self.fabric.strategy.precision.convert_input
        return Inputs(self.split, rows, lambda batch: convert(self.fabric.to_device(batch)))

    def _batches(self) -> int:
        return math.ceil(len(self.learn) / self.options.batch_size)

    def unfinished(self) -> bool:
        """Tell whether another epoch is due; patience ends only once all averages have begun."""
        done = len(self.history)
        waited = done - self.best_epoch
        patience = self.options.patience
        waits = patience is None or waited < patience or done == 0 or not len(self.stop)
        return done < self.options.epochs and (
            waits or (self.tracked is not None and not self.tracked.begun())
        )

    def epoch(self) -> None:
        """Train for one epoch, evaluate, and keep the weights if they are the best so far."""
        number = len(self.history)
        with seeded(self.seed, number):
            loss = self._learn(number)
        stopping = self._evaluate() if len(self.stop) else loss
        if stopping < self.best_loss or not len(self.stop):
            self.best_loss, self.best_epoch = stopping, number + 1
            self.best = self._weights()
        if number + 1 in self.collect:
            self.collected[number + 1] = self._weights()
        rate = self.optimizer.param_groups[0]["lr"]
        facts = {"epoch": number + 1, "rate": rate, "loss": loss}
        if len(self.stop):
            facts["stopping_loss"] = stopping
        if self.tracked:
            facts |= self.tracked.epoch(self._evaluate)
        self.history.append(facts)

    def _weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights of now, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.bare.state_dict().items()}

    def _learn(self, number: int) -> float:
        """Take the steps of one epoch; return the mean training loss."""
        options = self.options
        order = np.random.default_rng([self.seed, number]).permutation(len(self.learn))
        batches = np.array_split(order, self._batches())
        generator = torch.Generator().manual_seed(torch.initial_seed())
        steps = math.ceil(len(batches) / options.accumulate)
        self.model.train()
        total = 0.0
        for i, places in enumerate(batches):
            last = i + 1 == len(batches) or (i + 1) % options.accumulate == 0
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                loss = self._loss(places, generator)
                self.fabric.backward(loss / self._share(i, len(batches)))
            total += self._finite(float(loss.detach()), number) * len(places)
            if last:
                self._step(number * steps + i // options.accumulate, steps * options.epochs)
                if self.tracked:
                    first = i - i % options.accumulate
                    self.tracked.step(sum(map(len, batches[first : i + 1])))
        return total / len(order)

    def _share(self, i: int, batches: int) -> int:
        """Return how many batches this one's step accumulates; the last step may have fewer."""
        first = i - i % self.options.accumulate
        return min(self.options.accumulate, batches - first)

    def _loss(self, places: Rows, generator: torch.Generator) -> Tensor:
        """Return the loss of some learning rows, named by their places among them."""
        rows = self.learn[places]
        inputs = self.split.inputs(rows)
        if self.options.augmentation is not None:
            inputs = self.options.augmentation(inputs, generator)
        outputs = self.model(self.fabric.to_device(inputs))
        if self.weights is None:
            return self.options.loss(outputs, self._labels(rows))
        weights = self.fabric.to_device(torch.from_numpy(self.weights[places]))
        return self.options.loss(outputs, self._labels(rows), weights=weights)  # type: ignore[call-arg]  # _scaled has looked

    def _labels(self, rows: Rows) -> Tensor:
        assert self.split.labels is not None  # check_labels has refused that
        labels: Tensor = self.fabric.to_device(torch.from_numpy(self.split.labels[rows]))
        return labels

    def _step(self, step: int, total: int) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.options.schedule(step, total)
        if self.options.clip is not None:
            self.fabric.clip_gradients(self.model, self.stepper, max_norm=self.options.clip)
        self.stepper.step()
        self.optimizer.zero_grad()

    def _evaluate(self) -> float:
        """Return the mean loss over the stopping rows, in eval mode and without augmentation."""
        total = 0.0
        with evaluating(self.model):
            for rows in np.array_split(self.stop, math.ceil(len(self.stop) / PREDICT_BATCH)):
                outputs = self.model(self.fabric.to_device(self.split.inputs(rows)))
                total += float(self.options.loss(outputs, self._labels(rows))) * len(rows)
        return self._finite(total / len(self.stop), len(self.history))

    def _finite(self, loss: float, epoch: int) -> float:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {epoch + 1}; lower the learning rate "
                f"(now {self.rates[0]:g}) or set clip: 1.0"
            )
        return loss

    @cached_property
    def key(self) -> str:
        """A digest of all that decides the numbers, to refuse foreign progress."""
        shapes = {name: list(value.shape) for name, value in self.bare.state_dict().items()}
        rows = [hashlib.sha256(part.tobytes()).hexdigest() for part in (self.learn, self.stop)]
        facts: tuple[Any, ...] = (
            self.seed,
            shapes,
            rows,
            self.options.fingerprint(),
            self.split.fingerprint(),
        )
        if self.weights is not None or self.collect:
            digest = hashlib.sha256(b"" if self.weights is None else self.weights.tobytes())
            facts += (digest.hexdigest(), sorted(self.collect))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def save(self, path: Path | None) -> None:
        """Keep the progress in one file."""
        if path is None:
            return
        tree = {
            "model": self.bare.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "history": self.history,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
        }
        if self.collected:
            tree["collected"] = self.collected
        if self.tracked:
            tree["averages"] = self.tracked.state()
        tensors, skeleton = flatten(tree)
        safetensors.write(path, tensors, note={"key": self.key, "skeleton": skeleton})

    def restore(self, path: Path | None) -> None:
        """Continue from the file, where there is one."""
        if path is None or not path.exists():
            return
        tensors, note = safetensors.read(path)
        if not isinstance(note, dict) or note.get("key") != self.key:
            raise CheckpointError(
                f"'{path}' keeps the progress of other training (another model, data, option, or "
                "number of threads); delete it and run the same command again"
            )
        tree = unflatten(tensors, note["skeleton"])
        self.bare.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        self._match_layout()
        self.fabric.strategy.precision.load_state_dict(tree["scaler"])
        self.best, self.history = tree["best"], tree["history"]
        self.best_loss, self.best_epoch = tree["best_loss"], tree["best_epoch"]
        self.collected = tree.get("collected", {})
        if self.tracked:
            self.tracked.restore(tree["averages"])

    def _match_layout(self) -> None:
        """Lay the optimiser's tensors out as their parameters: other strides round differently."""
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _scaled(
    weights: NDArray[np.floating[Any]], learn: Rows, options: FitOptions
) -> NDArray[np.float32]:
    """Return weights of a mean of 1; refuse those that are none, and a loss that takes none."""
    if weights.shape != learn.shape or not np.isfinite(weights).all() or weights.min() < 0:
        raise TrainingError(
            f"weights must be {len(learn)} finite numbers of 0 and more, one a learning row; got "
            f"{weights.dtype} of shape {weights.shape}"
        )
    if not weights.sum() > 0:
        raise TrainingError("all weights of the learning rows are 0; there is nothing to learn")
    if "weights" not in inspect.signature(options.loss).parameters:
        raise TrainingError(
            "rows are weighted here, and the loss takes no weights; give it a parameter: "
            "loss(outputs, labels, *, weights=None) -> mean of the samples' losses times weights"
        )
    scaled: NDArray[np.float32] = (weights / weights.mean(dtype=np.float64)).astype(np.float32)
    return scaled


def _check_batches(model: nn.Module, rows: int, size: int) -> None:
    """Refuse batches of one row for batch-norm, which has no deviation of one."""
    smallest = rows // max(1, math.ceil(rows / size))
    kind = nn.modules.batchnorm._BatchNorm
    if smallest < 2 and any(isinstance(module, kind) for module in model.modules()):
        raise TrainingError(
            f"batch-norm needs 2 or more rows a batch, but {rows} learning rows in batches of "
            f"{size} leave one alone; type a larger batch_size, or bring more rows"
        )


def _fabric(options: FitOptions) -> "Fabric":
    """Make a Fabric for one device; Lightning loads only here."""
    from lightning_fabric import Fabric

    try:
        return Fabric(accelerator=options.accelerator, devices=1, precision=options.precision)
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"Lightning Fabric refuses accelerator={options.accelerator!r}, "
            f"precision={options.precision!r}: {error}"
        ) from error

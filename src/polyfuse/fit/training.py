"""The training of one member, epoch by epoch: its state, its steps, the weights that are kept."""

import hashlib
import math
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.data import ahead
from polyfuse.data.base import Rows, Split
from polyfuse.determinism import seed_of, seeded
from polyfuse.errors import TrainingError
from polyfuse.fit import progress
from polyfuse.fit.adversarial import attackable, attacked, statistics_kept
from polyfuse.fit.base import Diverged, FitOptions, Fitted
from polyfuse.fit.devices import Part
from polyfuse.fit.sampling import Order, row_weights
from polyfuse.fit.tracked import STATISTICS_ROWS, Inputs, Tracked
from polyfuse.inference import PREDICT_BATCH, evaluating

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Training:
    """The state of one member's training between epochs.

    Args:
        model: trained in place.
        split: the data, with labels.
        learn: rows to learn from.
        stop: rows that choose the epoch.
        options: see `FitOptions`.
        seed: of the member.
        weights: one a learning row, or None.
        collect: epochs, from 1, whose weights are kept.
        fabric: device and precision; one of several devices takes its part of every batch.
    """

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
        fabric: "Fabric",
    ) -> None:
        """Set up model and optimiser; nothing is trained yet."""
        assert split.labels is not None  # check_labels has refused that
        self.split, self.learn, self.stop = split, learn, stop
        self.options, self.seed, self.fabric = options, seed, fabric
        self.part = Part(fabric)
        self.weights = row_weights(options, split.labels[learn], weights)
        self.order = Order(learn, split.labels[learn], options, seed)
        self.collect = frozenset(collect)
        self.collected: dict[int, dict[str, Tensor]] = {}
        _check_batches(model, self.order)
        self.bare = model
        self.optimizer = options.optimizer(model.parameters())
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.model, self.stepper = fabric.setup(model, self.optimizer)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf
        self.best_epoch = 0
        self.tracked = self._tracked() if options.averaging else None

    def _tracked(self) -> Tracked:
        steps = self.order.steps * self.options.epochs
        rules, inputs = self.options.rules(), self._some_inputs()
        return Tracked(self.bare, rules, steps, inputs, self.fabric.autocast)

    def _some_inputs(self) -> Inputs:
        rows = self.learn
        if len(rows) > STATISTICS_ROWS:
            rows = np.sort(np.random.default_rng(self.seed).choice(rows, STATISTICS_ROWS, False))
        rows = self.part.rows(rows)  # the statistics are those of all parts
        convert = self.fabric.strategy.precision.convert_input
        return Inputs(self.split, rows, lambda batch: convert(self.fabric.to_device(batch)))

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
        """Train for one epoch, evaluate, and keep the weights if they are the best so far.

        Raises:
            Diverged: the loss became NaN or infinite; the history ends before this epoch.
        """
        number = len(self.history)
        with seeded(*self.part.seed(self.seed, number)):
            loss = self.take_steps(number)
        self.part.match_buffers(self.bare)
        self.end_epoch(loss)

    def end_epoch(self, loss: float) -> None:
        """Evaluate after an epoch of this mean loss, and keep what is to be kept."""
        number = len(self.history)
        self._finite(loss, number)
        stopping = self._evaluate() if len(self.stop) else loss
        rate = self.optimizer.param_groups[0]["lr"]
        facts = {"epoch": number + 1, "rate": rate, "loss": loss}
        if len(self.stop):
            facts["stopping_loss"] = stopping
        if self.tracked:
            facts |= self.tracked.epoch(self._evaluate if len(self.stop) else None)
        if stopping < self.best_loss or not len(self.stop):
            self._keep(stopping, number + 1)
        if number + 1 in self.collect:
            self.collected[number + 1] = self._weights()
        self.history.append(facts)

    def _keep(self, loss: float, epoch: int) -> None:
        """Keep the weights of now; where no stopping rows have seen them, they are looked at."""
        weights = self._weights()
        if not len(self.stop) and not all(bool(w.isfinite().all()) for w in weights.values()):
            raise self._diverged("a weight became NaN or infinite", epoch)
        self.best_loss, self.best_epoch, self.best = loss, epoch, weights

    def _weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights of now, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.bare.state_dict().items()}

    def take_steps(self, number: int, batches: int | None = None) -> float:
        """Take the steps of one epoch, or its first batches; return the mean training loss."""
        parts = self.order.batches(number)[:batches]
        shared = self.options.order_seed
        seed = torch.initial_seed() if shared is None else seed_of(shared, number)
        generator = torch.Generator().manual_seed(seed)
        self.model.train()
        total, since = 0.0, 0
        own = [self.part.rows(places) for places in parts]
        read = ahead.batches(self.split, [self.learn[mine] for mine in own])
        for i, (places, mine, inputs) in enumerate(zip(parts, own, read, strict=True)):
            last = self.order.ends_step(i)
            share = self.part.share(places) * self.order.share(i)
            loss = self._gradients(mine, inputs, generator, share, last=last)
            if self.part.of > 1:
                loss = self.part.total(loss * len(mine)) / len(places)
            total += self._finite(loss, number) * len(places)
            since += len(places)
            if last:
                self._step(self.order.step(number, i))
                if self.tracked:
                    self.tracked.step(since)
                since = 0
        return total / sum(map(len, parts))

    def _gradients(
        self, places: Rows, inputs: Tensor, generator: torch.Generator, share: float, *, last: bool
    ) -> float:
        """Add a batch's gradients to the parameters'; return its loss."""
        rows = self.learn[places]
        if self.options.augmentation is not None:
            inputs = self.options.augmentation(inputs, generator)
        inputs, labels, given = self.fabric.to_device(inputs), self._labels(rows), {}
        if self.weights is not None:
            given["weights"] = self.fabric.to_device(torch.from_numpy(self.weights[places]))
        if self.options.adversary is None:
            return self._pass(inputs, labels, given, share, sync=last)
        inputs = attackable(inputs)
        true = self._pass(inputs, labels, given, 2 * share, sync=False)
        changed = attacked(self.options.adversary, inputs, inputs.grad)
        with statistics_kept(self.bare):
            return (true + self._pass(changed, labels, given, 2 * share, sync=last)) / 2

    def _pass(
        self,
        inputs: Tensor,
        labels: Tensor,
        given: Mapping[str, Tensor],
        share: float,
        *,
        sync: bool,
    ) -> float:
        """Run the model forth and back; its gradients count as one of `share` parts of a step.

        With several devices the last pass of a step averages the gradients over them.
        """
        with self.fabric.no_backward_sync(self.model, enabled=not sync):
            loss = self.options.loss(self.model(inputs), labels, **given)
            if loss.shape != ():
                raise TrainingError(
                    f"the loss has shape {tuple(loss.shape)}; return one number, the mean over "
                    "the samples"
                )
            self.fabric.backward(loss / share)
        return float(loss.detach())

    def _labels(self, rows: Rows) -> Tensor:
        assert self.split.labels is not None
        labels: Tensor = self.fabric.to_device(torch.from_numpy(self.split.labels[rows]))
        return labels

    def _step(self, step: int) -> None:
        total = self.order.steps * self.options.epochs
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.options.schedule(step, total)
        if self.options.clip is not None:
            self.fabric.clip_gradients(self.model, self.stepper, max_norm=self.options.clip)
        self.stepper.step()
        self.optimizer.zero_grad()

    def _evaluate(self) -> float:
        """Return the mean loss over the stopping rows, in eval mode and without augmentation."""
        total, mine = 0.0, self.part.rows(self.stop)
        run = self.model if self.part.of == 1 else self._alone
        with evaluating(self.model):
            split = np.array_split(mine, math.ceil(len(mine) / PREDICT_BATCH) or 1)
            parts = [rows for rows in split if len(rows)]
            for rows, inputs in zip(parts, ahead.batches(self.split, parts), strict=True):
                outputs = run(self.fabric.to_device(inputs))
                total += float(self.options.loss(outputs, self._labels(rows))) * len(rows)
        return self._finite(self.part.total(total) / len(self.stop), len(self.history))

    def _alone(self, inputs: Tensor) -> Any:
        """Run the model without a word to the other devices, which have other batches, or none."""
        precision = self.fabric.strategy.precision
        with precision.forward_context():
            return precision.convert_output(self.bare(precision.convert_input(inputs)))

    def _finite(self, loss: float, epoch: int) -> float:
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}", epoch + 1)
        return loss

    def _diverged(self, fact: str, epoch: int) -> Diverged:
        return Diverged(
            f"{fact} in epoch {epoch}; lower the learning rate (now {self.rates[0]:g}) or set "
            "clip: 1.0; with on_nan: keep a member ends with the best weights it had before"
        )

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
        if path is not None and self.part.first:
            progress.save(path, self.key, self.state())

    def state(self) -> dict[str, Any]:
        """Return all that goes on, as `progress.save` takes it."""
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
        return tree

    def restore(self, path: Path | None) -> None:
        """Continue from the file, where there is one."""
        tree = progress.load(path, self.key)
        if tree is not None:
            self.load(tree)

    def load(self, tree: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.bare.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        progress.match_layout(self.optimizer)
        self.fabric.strategy.precision.load_state_dict(tree["scaler"])
        self.best, self.history = tree["best"], tree["history"]
        self.best_loss, self.best_epoch = tree["best_loss"], tree["best_epoch"]
        self.collected = tree.get("collected", {})
        if self.tracked:
            self.tracked.restore(tree["averages"])

    def ended(self, fault: Diverged) -> Fitted:
        """Return the best weights before the loss became NaN, where that is asked for.

        Raises:
            TrainingError: it is not, or there are none.
        """
        if self.options.on_nan == "stop":
            raise fault
        if not self.best:
            raise TrainingError(f"{fault}; none were there yet") from None
        return self.fitted(len(self.history) + 1)

    def fitted(self, diverged: int | None = None) -> Fitted:
        """Return what has been trained."""
        kept = self.tracked.kept() if self.tracked else {}
        return Fitted(
            self.best, self.best_epoch, self.history, self.key, kept, self.collected, diverged
        )


def _check_batches(model: nn.Module, order: Order) -> None:
    """Refuse batches of one row for batch-norm, which has no deviation of one; or of none."""
    options, kind = order.options, nn.modules.batchnorm._BatchNorm
    smallest = order.rows // order.count // options.devices
    normed = any(isinstance(module, kind) for module in model.modules())
    if smallest < (2 if normed else 1):
        where = f" on {options.devices} devices" if options.devices > 1 else ""
        what = "batch-norm needs 2 or more rows a batch" if normed else "a device needs a row"
        raise TrainingError(
            f"{what}, but {order.rows} learning rows in batches of {options.batch_size}{where} "
            f"leave {'one alone' if smallest else 'none'}; type a larger batch_size, or bring "
            "more rows"
        )

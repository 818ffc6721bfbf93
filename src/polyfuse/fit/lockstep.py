"""Train members of one architecture in lock-step: one step of all of them at a time, stacked.

Each member has its own rows, weights, initial weights, order of the data, dropout masks, rate,
clipping, best epoch and patience, as if `fit_member` trained it alone; the numbers are the same to
rounding. It pays where a step of one member is so small that calling torch costs more than its
sums.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.data.base import Rows, Split
from polyfuse.determinism import seed_of, seeded, threads
from polyfuse.errors import TrainingError
from polyfuse.fit import progress
from polyfuse.fit.base import Diverged, FitOptions, Fitted, Notify, OutOfTime, silent
from polyfuse.fit.fabric import fabric_of
from polyfuse.fit.logging import logged
from polyfuse.fit.stacked import Stack, Unstackable
from polyfuse.fit.stacked_optimizer import StackedOptimizer
from polyfuse.fit.training import Training
from polyfuse.inference import check_labels
from polyfuse.start import begin

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRELOADED = 256 << 20  # bytes: inputs that take no more are loaded once, for all epochs
SAVING = 0.05  # share of the time that keeping progress takes, at most
_KEY = "members in lock-step"
Draw = torch.Generator


class Lane(NamedTuple):
    """What one member is trained with; as for `fit_member`.

    Attributes:
        model: trained in place.
        learn: rows to learn from.
        stop: rows that choose its epoch.
        options: of all lanes the same, but for the optimiser's rate.
        seed: of this member.
        weights: one a learning row, or None.
        log: where its logger writes.
    """

    model: nn.Module
    learn: Rows
    stop: Rows
    options: FitOptions
    seed: int
    weights: NDArray[np.floating[Any]] | None = None
    log: Path | None = None


def fit_together(
    lanes: Sequence[Lane],
    split: Split,
    *,
    resume: Path | None = None,
    deadline: float | None = None,
    notify: Notify = silent,
) -> list[Fitted | TrainingError]:
    """Train members in lock-step; each as `fit_member` would, to rounding.

    Args:
        lanes: one a member.
        split: the data.
        resume: file that keeps the progress of unfinished training, of all members.
        deadline: `time.time()` after which training stops at the end of the epoch.
        notify: called with (epochs done, epochs, note).

    Returns:
        For each lane what was trained, or why that failed; one that fails does not stop the others.

    Raises:
        Unstackable: they cannot be trained as one; nothing has been trained.
        DataError: the models' output does not fit the labels.
        CheckpointError: the resume file is damaged or belongs to other training.
        OutOfTime: the deadline has passed.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(torch.randn(64, 4), torch.arange(64) % 2)
        >>> rows, options = np.arange(64), FitOptions(epochs=2, accelerator="cpu")
        >>> nets = [nn.Linear(4, 2) for _ in range(3)]
        >>> lanes = [Lane(net, rows[:48], rows[48:], options, n) for n, net in enumerate(nets)]
        >>> [len(fitted.history) for fitted in fit_together(lanes, data)]
        [2, 2, 2]
    """
    options = lanes[0].options
    with threads(options.threads), contextlib.ExitStack() as open_:
        run = Lockstep(lanes, split)
        run.restore(resume)
        logs = [open_.enter_context(logged(options.logger, lane.log)) for lane in lanes]
        for log, member in zip(logs, run.members, strict=True):
            log.tell(member.history)
        keeper = _Keeper(run, resume)
        while active := run.active():
            if deadline is not None and time.time() > deadline:
                keeper.keep()
                raise OutOfTime
            run.epoch(active)
            keeper.keep_now_and_then()
            for log, member in zip(logs, run.members, strict=True):
                if member in active and member not in run.faults:
                    log.tell(member.history[-1:])
            done = max(len(member.history) for member in active)
            notify(done, options.epochs, _note(active))
    return run.fitted()


class _Keeper:
    """Keeps progress after an epoch, but where epochs are short not after every one."""

    def __init__(self, run: "Lockstep", path: Path | None) -> None:
        self.run, self.path = run, path
        self.since, self.took, self.kept = time.monotonic(), 0.0, True

    def keep_now_and_then(self) -> None:
        """Keep it if that takes a small share of the time, or was the last time."""
        self.kept = False
        waited = time.monotonic() - self.since
        if waited >= self.took / SAVING or not self.run.active():
            self.keep()

    def keep(self) -> None:
        """Keep it, unless that is done."""
        if self.kept:
            return
        start = time.monotonic()
        self.run.save(self.path)
        self.since = time.monotonic()
        self.took, self.kept = self.since - start, True


def _note(active: Sequence[Training]) -> str:
    last = [member.history[-1] for member in active if member.history]
    losses = [epoch.get("stopping_loss", epoch["loss"]) for epoch in last]
    shown = f"loss {min(losses):.3f} to {max(losses):.3f}, " if losses else ""
    return f"{shown}{len(active)} members in lock-step"


class Lockstep:
    """The state of several members' training between epochs.

    Args:
        lanes: one a member.
        split: the data.

    Raises:
        Unstackable: they cannot be trained as one.
    """

    def __init__(self, lanes: Sequence[Lane], split: Split) -> None:
        """Set up models and optimisers; nothing is trained yet."""
        options = lanes[0].options
        _refuse_unlike(lanes)
        self.fabric = fabric_of(options)
        self.options = options
        self.members = [_member(lane, split, self.fabric) for lane in lanes]
        if len({(member.order.count, member.weights is None) for member in self.members}) > 1:
            raise Unstackable("they have different numbers of batches, or only some have weights")
        self.feed = Feed(split, self.fabric, options)
        self.faults: dict[Training, Diverged] = {}
        self.stacked: list[Training] = []

    def active(self) -> list[Training]:
        """Return the members that another epoch is due for."""
        return [m for m in self.members if m not in self.faults and m.unfinished()]

    def epoch(self, active: Sequence[Training]) -> None:
        """Train these members for one epoch, evaluate each, and keep what is its best so far."""
        number = len(active[0].history)
        with seeded(active[0].seed, number):
            losses = self.take_steps(active, number)
        self.optimizer.show()
        for member, loss in zip(active, losses, strict=True):
            try:
                member.end_epoch(loss)
            except Diverged as fault:
                self.faults[member] = fault

    def take_steps(
        self, active: Sequence[Training], number: int, batches: int | None = None
    ) -> list[float]:
        """Take the steps of one epoch, or its first batches; return the mean training losses."""
        self._stack(active)
        order, options = active[0].order, self.options
        places = [member.order.batches(number) for member in active]
        self.stack.generators = self._generators(active, number)
        augments = [torch.Generator().manual_seed(self._augments(m, number)) for m in active]
        seen: list[tuple[list[int], int, Tensor]] = []
        for i in range(order.count)[:batches]:
            for size, who in _by_size([len(each[i]) for each in places]).items():
                given = [(active[p], places[p][i], augments[p]) for p in who]
                losses = self._losses(who, given)
                (losses.sum() / order.share(i)).backward()  # type: ignore[no-untyped-call]
                seen.append((who, size, losses.detach()))
            if order.ends_step(i):
                if options.clip is not None:
                    self.stack.clip(options.clip)
                total = order.steps * options.epochs
                self.optimizer.step(options.schedule(order.step(number, i), total))
        return _means(seen, len(active))

    def _losses(self, who: list[int], given: Sequence[tuple[Training, Rows, Draw]]) -> Tensor:
        """Return the losses of some members; of a batch that they share, it is loaded once."""
        first, *others = [member.learn for member, _, _ in given]
        shared = self.options.order_seed is not None and all(
            other is first or np.array_equal(other, first) for other in others
        )
        inputs, labels = self.feed(given[:1] if shared else given)
        weights = self.feed.weights(given)
        if shared:
            return self.stack.losses(who, inputs[0], labels[0], weights, shared=True)
        return self.stack.losses(who, inputs, labels, weights)

    def _augments(self, member: Training, number: int) -> int:
        """Return the seed of a member's augmentation, as it would be alone."""
        shared = self.options.order_seed
        return seed_of(member.seed if shared is None else shared, number)

    def _stack(self, active: Sequence[Training]) -> None:
        """Stack the members that go on; one that is done keeps the weights that it has."""
        if list(active) == self.stacked:
            return
        self.stack = Stack([member.bare for member in active], self.options.loss)
        own, rates = [m.optimizer for m in active], [m.rates for m in active]
        self.optimizer = StackedOptimizer(self.stack, own, rates)
        self.stacked = list(active)

    def _generators(self, active: Sequence[Training], number: int) -> list[torch.Generator]:
        """Return what draws each member's dropout, as `seeded` seeds it for the member alone."""
        device = self.fabric.device
        return [
            torch.Generator(device).manual_seed(seed_of(member.seed, number)) for member in active
        ]

    def save(self, path: Path | None) -> None:
        """Keep the progress of all members in one file."""
        if path is not None:
            progress.save(path, _KEY, {member.key: self._state(member) for member in self.members})

    def _state(self, member: Training) -> dict[str, Any]:
        fault = self.faults.get(member)
        state = member.state() if member.history else None
        return {"state": state, "fault": None if fault is None else str(fault)}

    def restore(self, path: Path | None) -> None:
        """Continue from the file, where there is one; it may have more members than these."""
        tree = progress.load(path, _KEY)
        if path is None or tree is None:
            return
        if any(member.key not in tree for member in self.members):
            raise progress.foreign(path)
        for member in self.members:
            kept = tree[member.key]
            if kept["state"] is not None:
                member.load(kept["state"])
            if kept["fault"] is not None:
                self.faults[member] = Diverged(kept["fault"])

    def fitted(self) -> list[Fitted | TrainingError]:
        """Return what has been trained, or why not, for each member."""
        return [self._outcome(member) for member in self.members]

    def _outcome(self, member: Training) -> Fitted | TrainingError:
        if member not in self.faults:
            return member.fitted()
        try:
            return member.ended(self.faults[member])
        except TrainingError as error:
            return error


class Feed:
    """Batches of several members at once; what is small enough is loaded only once.

    Args:
        split: the data.
        fabric: where batches go.
        options: the augmentation.
    """

    def __init__(self, split: Split, fabric: "Fabric", options: FitOptions) -> None:
        """Load the inputs, if they are small."""
        assert split.labels is not None  # check_labels has refused that
        self.split, self.fabric, self.augmentation = split, fabric, options.augmentation
        self.labels = fabric.to_device(torch.from_numpy(split.labels))
        one = split.inputs(np.arange(min(1, len(split))))
        self.loaded: Tensor | None = None
        if one.nbytes * len(split) <= PRELOADED:
            self.loaded = split.inputs(np.arange(len(split)))
            if self.augmentation is None:
                self.loaded = fabric.to_device(self.loaded)

    def __call__(self, given: Sequence[tuple[Training, Rows, Draw]]) -> tuple[Tensor, Tensor]:
        """Return inputs and labels, `(member, n, ...)`, of as many places of each member."""
        rows = np.stack([member.learn[places] for member, places, _ in given])
        inputs = self._inputs(rows)
        if self.augmentation is not None:
            draws = (draw for _, _, draw in given)
            augmented = zip(inputs, draws, strict=True)
            inputs = torch.stack([self.augmentation(each, draw) for each, draw in augmented])
        index = torch.from_numpy(rows).to(self.labels.device)
        return self.fabric.to_device(inputs), self.labels[index]

    def weights(self, given: Sequence[tuple[Training, Rows, Draw]]) -> Tensor | None:
        """Return the rows' weights, `(member, n)`, or None."""
        own = [member.weights[places] for member, places, _ in given if member.weights is not None]
        if not own:
            return None
        weights: Tensor = self.fabric.to_device(torch.from_numpy(np.stack(own)))
        return weights

    def _inputs(self, rows: NDArray[np.int64]) -> Tensor:
        flat = rows.reshape(-1)
        if self.loaded is None:
            inputs = self.split.inputs(flat)
        else:
            index = torch.from_numpy(flat).to(self.loaded.device)
            inputs = self.loaded.index_select(0, index)
        return inputs.view(*rows.shape, *inputs.shape[1:])


def refusals(options: FitOptions) -> list[str]:
    """Say what in the options keeps members from being trained in lock-step.

    Example:
        >>> refusals(FitOptions(precision="16-mixed"))
        ['precision is 16-mixed, and only 32-true is trained so']
    """
    faults = []
    if options.averaging:
        faults.append("averages follow a member step by step")
    if options.adversary is not None:
        faults.append("an adversary changes each member's inputs by its own gradients")
    if options.precision != "32-true":
        faults.append(f"precision is {options.precision}, and only 32-true is trained so")
    if options.devices != 1:
        faults.append(f"each member has {options.devices} devices")
    return faults


def _refuse_unlike(lanes: Sequence[Lane]) -> None:
    """Refuse lanes whose options are not the same, or are none for lock-step."""
    first = lanes[0].options
    faults = refusals(first)
    # The optimisers themselves are compared once they are made.
    others = [replace(lane.options, optimizer=first.optimizer) for lane in lanes]
    if len({(other.fingerprint(), other.on_nan) for other in others}) > 1:
        faults.append("their options differ in more than the optimiser")
    if faults:
        raise Unstackable("; ".join(faults))


def _member(lane: Lane, split: Split, fabric: "Fabric") -> Training:
    begin(lane.model, lane.options.start)
    check_labels(lane.model, split, lane.learn)
    rows = (lane.learn, lane.stop, lane.options, lane.seed, lane.weights)
    return Training(lane.model, split, *rows, (), fabric)


def _by_size(sizes: Sequence[int]) -> dict[int, list[int]]:
    """Return the places of those that have as many rows; folds may differ by one."""
    return {size: [p for p, s in enumerate(sizes) if s == size] for size in sorted({*sizes})}


def _means(seen: Sequence[tuple[list[int], int, Tensor]], count: int) -> list[float]:
    """Return each member's mean loss a row."""
    totals, rows = [0.0] * count, [0] * count
    for who, size, losses in seen:
        for place, loss in zip(who, losses.tolist(), strict=True):
            totals[place] += loss * size
            rows[place] += size
    return [total / n if n else math.nan for total, n in zip(totals, rows, strict=True)]

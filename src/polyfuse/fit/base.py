"""How a member is trained: the options, checked, and told apart by a fingerprint."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.averaging import AveragingRule
from polyfuse.data.base import Rows
from polyfuse.errors import PolyfuseError, TrainingError, printable
from polyfuse.fit.tracked import Kept
from polyfuse.losses import cross_entropy
from polyfuse.optimizers import adamw
from polyfuse.schedules import cosine
from polyfuse.start import digest_of

Notify = Callable[[float, float, str], None]
Maker = Callable[[], AveragingRule]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
Sampler = Callable[[Rows, NDArray[Any], np.random.Generator], Rows]


def silent(done: float, total: float, note: str = "") -> None:
    """Report progress to nobody.

    Example:
        >>> silent(1, 2)
    """


def timed(make: Maker, **times: Any) -> AveragingRule:
    """Return the rule that a function makes, with these times of its updates.

    Example:
        >>> from polyfuse.averaging import swa
        >>> timed(swa, start_epoch=5).timing.start_epoch
        5
    """
    return make().timed(**times)


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
        diverged: the epoch, from 1, in which the loss became NaN or infinite; None where none did.
    """

    state: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, float]]
    fingerprint: str
    averages: Mapping[str, Kept]
    collected: Mapping[int, dict[str, Tensor]] = {}
    diverged: int | None = None


class OutOfTime(Exception):
    """The time budget ended; progress is kept in the resume file."""


class Diverged(TrainingError):
    """The loss, or a weight, of a member became NaN or infinite."""


@dataclass(frozen=True)
class FitOptions:
    """How a member is trained.

    Attributes:
        epochs: at most so many passes over the learning rows.
        batch_size: rows a step (epochs are divided evenly, so no batch is tiny).
        optimizer: maps parameters to a torch optimiser.
        schedule: `(step, total steps) -> factor` of the optimiser's learning rate.
        loss: `(outputs, labels) -> scalar`; where rows are weighted, also `weights=`, `(n,)`
            float32 of a mean of 1.
        class_weights: of the rows' classes in the loss: "balanced", so that every class weighs the
            same in all, or a number a class. They multiply weights that rows have anyway, and all
            are scaled to a mean of 1. The stopping loss is never weighted.
        sampler: `(rows, labels, generator) -> places` among the learning rows, in the order of
            one epoch, as many in every epoch; None draws a permutation.
        order_seed: decides the order of the rows and the augmentation, for all members alike; in
            lock-step, a batch of members with the same rows is then loaded and augmented once.
            None: each member's own seed does.
        augmentation: `(inputs, generator) -> inputs` on a training batch, or None.
        adversary: `(inputs, gradient of the loss) -> inputs` that the model is trained on, too:
            the loss is the mean of that of the true inputs and that of the changed ones, and takes
            two passes. Batch-norm's running statistics are those of the true inputs alone.
        patience: epochs without a lower stopping loss before training ends; None trains all.
        accumulate: batches a step of the optimiser.
        clip: largest gradient norm, or None.
        precision: Lightning Fabric's, for example "32-true", "bf16-mixed", "16-mixed".
        accelerator: Lightning Fabric's: "auto", "cpu", "cuda", "mps".
        devices: of one member, each with its part of every batch (DDP); batch-norm normalises by
            a part, and dropout draws for each.
        threads: CPU threads of one member, on each device; the same numbers need the same threads.
        on_nan: what follows when the loss becomes NaN or infinite: "stop", an error; or "keep",
            the member ends there with the best weights it had, and is marked. It is an error
            before the first epoch has ended.
        start: checkpoint whose weights every member begins with; None keeps those it is made with.
        averaging: rules by the names of their averages, tracked beside the member; or functions
            that make them, as several worker processes need: `partial(ema, 0.999)`.
        together: whether members of one round are trained in lock-step, where they can be: "auto",
            where a measurement says that it is faster; "never"; "always". The numbers are the same
            to rounding. The run keeps what was chosen, and each member says so.
        logger: makes what is told of every epoch, as `polyfuse.fit.logging` describes; it changes
            no number.

    Raises:
        TrainingError: a number that cannot train anything, or an average that cannot begin.

    Example:
        >>> from polyfuse.averaging import ema
        >>> FitOptions(epochs=3, averaging={"ema": ema(0.99)}).batch_size
        64
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adamw
    schedule: Callable[[int, int], float] = cosine
    loss: Callable[..., Tensor] = cross_entropy
    class_weights: Literal["balanced"] | Sequence[float] | None = None
    sampler: Sampler | None = None
    order_seed: int | None = None
    augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None
    adversary: Callable[[Tensor, Tensor], Tensor] | None = None
    patience: int | None = None
    accumulate: int = 1
    clip: float | None = None
    precision: Precision = "32-true"
    accelerator: Accelerator = "auto"
    devices: int = 1
    threads: int = 1
    on_nan: Literal["stop", "keep"] = "stop"
    start: str | None = None
    averaging: Mapping[str, AveragingRule | Maker] = field(default_factory=dict)
    together: Literal["auto", "never", "always"] = "auto"
    logger: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train anything."""
        for name in ("epochs", "batch_size", "patience", "accumulate", "devices", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name}={value}; it must be 1 or more")
        if self.clip is not None and not self.clip > 0:
            raise TrainingError(f"clip={self.clip}; it must be more than 0, or null")
        if self.on_nan not in ("stop", "keep"):
            raise TrainingError(f"on_nan={printable(self.on_nan)!r}; type 'stop' or 'keep'")
        if self.together not in ("auto", "never", "always"):
            raise TrainingError(
                f"together={printable(self.together)!r}; type 'auto', 'never' or 'always'"
            )
        if self.class_weights is not None:
            _refuse_no_weights(self.class_weights)
        _refuse_late(self.rules(), self.epochs)

    def rules(self) -> dict[str, AveragingRule]:
        """Return the rules of the averages by name."""
        return {name: _rule(name, given) for name, given in self.averaging.items()}

    def fingerprint(self) -> str:
        """Return text that differs where the options would train differently."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        # Runs that were begun before there were these options have the same text as without them.
        left_out = {name for name, without in _NEWER.items() if given[name] == without}
        shown = {k: _describe(v) for k, v in given.items() if k not in left_out | _NO_NUMBER}
        if self.start is not None:  # told by its contents
            shown["start"] = digest_of(self.start)
        return ", ".join(f"{name}={value}" for name, value in shown.items())


MAY_CHANGE = frozenset({"on_nan", "logger"})  # while a run is under way
_NO_NUMBER = frozenset({"start", "together", *MAY_CHANGE})
_NEWER: dict[str, Any] = {
    "averaging": {},
    "class_weights": None,
    "sampler": None,
    "order_seed": None,
    "adversary": None,
    "devices": 1,
}


def _refuse_no_weights(given: Any) -> None:
    """Refuse class weights that are neither a rule nor numbers that weigh something."""
    if isinstance(given, str):
        if given != "balanced":
            raise TrainingError(
                f"class_weights='{printable(given)}'; type balanced, or a list of a number a class"
            )
    elif not all(math.isfinite(w) and w >= 0 for w in given) or not sum(given) > 0:
        raise TrainingError(
            f"class_weights={printable(given)}; type a number of 0 and more for each class, not "
            "all of them 0"
        )


def _rule(name: str, given: AveragingRule | Maker) -> AveragingRule:
    """Return a rule that was given, or is made by what was given."""
    if not re.fullmatch(r"[\w-]+", name):
        fact = "names a folder, so it has letters, digits, - and _ only"
        raise TrainingError(f"averaging: '{printable(name)}' {fact}")
    try:
        rule = given if isinstance(given, AveragingRule) else given()
    except PolyfuseError as error:
        raise TrainingError(f"averaging: {name}: {error}") from None
    if not isinstance(rule, AveragingRule):
        raise TrainingError(
            f"averaging: {name}: expected a rule, such as ema(0.999), or a function that makes "
            f"one; got a {type(rule).__name__}"
        )
    return rule


def _refuse_late(rules: Mapping[str, AveragingRule], epochs: int) -> None:
    """Refuse averages that would begin after training has ended."""
    late = {name: rule.timing.start_epoch or 0 for name, rule in rules.items()}
    if faults := [f"{name}: start_epoch={n}" for name, n in late.items() if n >= epochs]:
        raise TrainingError(
            f"averaging: {'; '.join(faults)}; training has {epochs} epochs, so it must be less"
        )


def _describe(value: Any) -> str:
    """Describe an option by what it is, not where it lies in memory."""
    if isinstance(value, AveragingRule):
        times = {k: v for k, v in value.timing._asdict().items() if v is not None}
        return f"{value.name}({sorted({**value.options, **times}.items())})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_describe(each)}" for key, each in value.items()) + "}"
    if hasattr(value, "func"):  # functools.partial
        given = ", ".join(map(_describe, value.args)) + ("," if len(value.args) == 1 else "")
        return f"{_describe(value.func)}({sorted(value.keywords.items())}, ({given}))"
    if isinstance(value, np.ndarray | list):  # the same numbers are the same text
        return repr(tuple(np.asarray(value).tolist()))
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)

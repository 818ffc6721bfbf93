"""How a member is trained: the options, checked, and told apart by a fingerprint."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyfuse.averaging import AveragingRule
from polyfuse.errors import PolyfuseError, TrainingError, printable
from polyfuse.losses import cross_entropy
from polyfuse.optimizers import adamw
from polyfuse.schedules import cosine
from polyfuse.start import digest_of

Notify = Callable[[float, float, str], None]
Maker = Callable[[], AveragingRule]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]


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


@dataclass(frozen=True)
class FitOptions:
    """How a member is trained.

    Attributes:
        epochs: at most so many passes over the learning rows.
        batch_size: rows a step (epochs are divided evenly, so no batch is tiny).
        optimizer: maps parameters to a torch optimiser.
        schedule: `(step, total steps) -> factor` of the optimiser's learning rate.
        loss: `(logits, labels) -> scalar`.
        augmentation: `(inputs, generator) -> inputs` on a training batch, or None.
        patience: epochs without a lower stopping loss before training ends; None trains all.
        accumulate: batches a step of the optimiser.
        clip: largest gradient norm, or None.
        precision: Lightning Fabric's, for example "32-true", "bf16-mixed", "16-mixed".
        accelerator: Lightning Fabric's: "auto", "cpu", "cuda", "mps".
        threads: CPU threads of one member; the same numbers need the same threads.
        start: checkpoint whose weights every member begins with; None keeps those it is made with.
        averaging: rules by the names of their averages, tracked beside the member; or functions
            that make them, as several worker processes need: `partial(ema, 0.999)`.

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
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None
    patience: int | None = None
    accumulate: int = 1
    clip: float | None = None
    precision: Precision = "32-true"
    accelerator: Accelerator = "auto"
    threads: int = 1
    start: str | None = None
    averaging: Mapping[str, AveragingRule | Maker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train anything."""
        for name in ("epochs", "batch_size", "patience", "accumulate", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name}={value}; it must be 1 or more")
        if self.clip is not None and not self.clip > 0:
            raise TrainingError(f"clip={self.clip}; it must be more than 0, or null")
        _refuse_late(self.rules(), self.epochs)

    def rules(self) -> dict[str, AveragingRule]:
        """Return the rules of the averages by name."""
        return {name: _rule(name, given) for name, given in self.averaging.items()}

    def fingerprint(self) -> str:
        """Return text that differs where the options would train differently."""
        shown = {f.name: _describe(getattr(self, f.name)) for f in fields(self)}
        del shown["start"]  # told by its contents, and only where there is one
        if not self.averaging:
            del shown["averaging"]
        if self.start is not None:
            shown["start"] = digest_of(self.start)
        return ", ".join(f"{name}={value}" for name, value in shown.items())


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
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)

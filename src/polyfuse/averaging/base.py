"""What a running average is: a rule, the moment of an update, and when updates are due.

A rule is a pair of pure functions: `init` makes the first average of a tensor, `update` brings an
average up to date with the tensor's next value. Most rules move the average towards the newcomer,
`average + weight * (current - average)`; they give that weight, a number for the whole model, and
need nothing else. The first update that is due is the initial copy; the next one has n = 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyfuse.errors import PolyfuseError, did_you_mean, printable

POLICIES = ("error", "warn", "ignore")  # about NaN and infinity in the weights


class Moment(NamedTuple):
    """When an update happens, counted from where the averaging began.

    Attributes:
        n: number of this update; the initial copy has 0.
        step: optimiser steps so far, this one included.
        since: optimiser steps since the previous update.
        copied: the step of the initial copy.
        epoch: the epoch that this step belongs to, from 1.
        samples: seen since the previous update, where they are counted.
        tokens: likewise.
    """

    n: int
    step: int
    since: int = 1
    copied: int = 1
    epoch: int = 1
    samples: int | None = None
    tokens: int | None = None

    @property
    def age(self) -> range:
        """Steps that this update stands for, numbered from 1 after the initial copy."""
        last = self.step - self.copied
        return range(last - self.since + 1, last + 1)


class Timing(NamedTuple):
    """When a rule's updates are due; None leaves it to `Averages`.

    Attributes:
        update_every: steps between updates, or "epoch": one at the end of each.
        start_step: steps before the averaging begins.
        start_epoch: epochs before the averaging begins.
    """

    update_every: int | str | None = None
    start_step: int | None = None
    start_epoch: int | None = None


class AveragingRule(NamedTuple):
    """How an average follows a tensor; made by `ema`, `swa`, ... or `custom`.

    Attributes:
        name: in `RULES`, or "custom".
        options: what it was made with; plain JSON.
        init: the first average, of a tensor; never the tensor itself.
        update: `(average, current, moment) -> average`; pure.
        weight: the newcomer's share at a moment, where the rule is
            `average + weight * (current - average)`.
        value: `(average, n) -> tensor`, where a rule keeps more than the average: what it comes
            to after update n. By default `average` itself.
        window: how many updates a rule keeps that averages the last ones.
        timing: when updates are due.
    """

    name: str
    options: Mapping[str, Any]
    init: Callable[[Tensor], Tensor]
    update: Callable[[Tensor, Tensor, Moment], Tensor]
    weight: Callable[[Moment], float] | None = None
    value: Callable[[Tensor, int], Tensor] | None = None
    window: int = 0
    timing: Timing = Timing()

    def timed(self, **timing: Any) -> "AveragingRule":
        """Return this rule with other times: `update_every`, `start_step`, `start_epoch`.

        Raises:
            PolyfuseError: a number that is none, or too small.

        Example:
            >>> from polyfuse.averaging import swa
            >>> swa().timed(start_epoch=5).timing.start_epoch
            5
        """
        return self._replace(timing=checked(self.timing._replace(**timing)))


def linear(
    name: str, options: Mapping[str, Any], weight: Callable[[Moment], float]
) -> AveragingRule:
    """Return the rule that moves the average by `weight` towards each newcomer.

    Args:
        name: of the rule.
        options: plain JSON.
        weight: the newcomer's share at a moment, 0 to 1.

    Example:
        >>> halfway = linear("halfway", {}, lambda moment: 0.5)
        >>> halfway.update(torch.zeros(1), torch.ones(1), Moment(1, 2))
        tensor([0.5000])
    """

    def update(average: Tensor, current: Tensor, moment: Moment) -> Tensor:
        return torch.lerp(average, current.to(average), weight(moment))

    return AveragingRule(name, dict(options), torch.clone, update, weight)


def checked(timing: Timing) -> Timing:
    """Return a timing, or say what is wrong with it.

    Raises:
        PolyfuseError: a number that is none, or too small.

    Example:
        >>> checked(Timing(update_every=0))
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: update_every=0; type a whole number from 1, or 'epoch'
    """
    every = timing.update_every
    if every not in (None, "epoch") and not _whole(every, 1):
        raise PolyfuseError(f"update_every={every!r}; type a whole number from 1, or 'epoch'")
    for name in ("start_step", "start_epoch"):
        if (number := getattr(timing, name)) is not None and not _whole(number, 0):
            raise PolyfuseError(f"{name}={number!r}; type a whole number from 0")
    return timing


def number(name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> float:
    """Return an option as a float, or say what it must be.

    Raises:
        PolyfuseError: no finite number, or one that does not fit.

    Example:
        >>> number("decay", 1.5, "0 <= decay < 1", lambda d: 0 <= d < 1)
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: decay=1.5; type 0 <= decay < 1
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and fits(value)):
        raise PolyfuseError(f"{name}={value!r}; type {expected}")
    return float(value)


def check_options(
    rules: Mapping[str, AveragingRule], dtype: Any, nonfinite: str, looks: int
) -> None:
    """Refuse options of `Averages` that make no sense, all at once.

    Raises:
        PolyfuseError: it lists them.

    Example:
        >>> check_options({}, None, "error", 1)
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: no rules; give at least one, as {'ema': ema(0.999)}
    """
    faults = [] if rules else ["no rules; give at least one, as {'ema': ema(0.999)}"]
    faults += [
        f"'{printable(name)}' is a {type(rule).__name__}; give a rule, as ema(0.999)"
        for name, rule in rules.items()
        if not isinstance(rule, AveragingRule)
    ]
    if dtype not in (None, torch.float32, torch.float64):
        faults.append(f"dtype={dtype} is too coarse for an average; type float32 or float64")
    if nonfinite not in POLICIES:
        near = did_you_mean(str(nonfinite), POLICIES)
        faults.append(f"nonfinite={printable(nonfinite)!r}{near}; known: {', '.join(POLICIES)}")
    if not isinstance(looks, int) or looks < 1:
        faults.append(f"looks={looks!r}; type a whole number from 1")
    if faults:
        raise PolyfuseError("; ".join(faults))


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

"""Learning rate as a function of the step: `(step, total) -> factor` of the optimiser's rate."""

import math
from collections.abc import Callable
from typing import Literal

from polyfuse.errors import PolyfuseError


def constant(step: int, total: int, *, warmup: float = 0.0) -> float:
    """Keep the rate, after a linear warm-up.

    Args:
        step: from 0.
        total: steps of the whole run.
        warmup: share of the run, 0 to 1.

    Example:
        >>> constant(50, 100)
        1.0
    """
    return _warmed(step, total, warmup)


def linear(step: int, total: int, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Fall in a straight line from 1 to `floor`, after a linear warm-up.

    Args:
        step: from 0.
        total: steps of the whole run.
        warmup: share of the run, 0 to 1.
        floor: the last factor.

    Example:
        >>> linear(50, 100)
        0.5
    """
    return _warmed(step, total, warmup) * (floor + (1 - floor) * (1 - _after(step, total, warmup)))


def cosine(step: int, total: int, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Fall along half a cosine from 1 to `floor` (Loshchilov and Hutter 2017), after a warm-up.

    Args:
        step: from 0.
        total: steps of the whole run.
        warmup: share of the run, 0 to 1.
        floor: the last factor.

    Example:
        >>> cosine(0, 100), round(cosine(50, 100), 6)
        (1.0, 0.5)
    """
    half = (1 + math.cos(math.pi * _after(step, total, warmup))) / 2
    return _warmed(step, total, warmup) * (floor + (1 - floor) * half)


def swa(
    step: int,
    total: int,
    *,
    warmup: float = 0.0,
    start: float = 0.5,
    anneal: float = 0.25,
    floor: float = 0.5,
    shape: Literal["cosine", "linear"] = "cosine",
) -> float:
    """Keep the rate, anneal it to a constant one, and stay there (Izmailov et al. 2018).

    Weights are averaged while the rate is constant, by default over the last quarter of the run:
    `averaging: {swa: {start_epoch: ...}}`. From `start` on it is `torch.optim.swa_utils.SWALR`.

    Args:
        step: from 0.
        total: steps of the whole run.
        warmup: share of the run, 0 to 1.
        start: share of what is left after it, before the rate falls.
        anneal: share of the same, in which the rate falls; 0 drops it at once.
        floor: the constant factor.
        shape: of the fall: "cosine" (torch's "cos") or "linear".

    Raises:
        PolyfuseError: shares that are none, or another shape.

    Example:
        >>> [swa(step, 100, floor=0.2) for step in (0, 50, 75, 99)]
        [1.0, 1.0, 0.2, 0.2]
    """
    if not (0 <= start <= 1 and 0 <= anneal <= 1):
        raise PolyfuseError(f"start={start}, anneal={anneal}; type shares of the run, 0 to 1")
    if shape not in ("cosine", "linear"):
        raise PolyfuseError(f"shape={shape!r}; type 'cosine' or 'linear'")
    into = _after(step, total, warmup) - start
    fallen = min(1.0, max(0.0, into / anneal)) if anneal else float(into >= 0)
    if shape == "cosine":
        fallen = (1 - math.cos(math.pi * fallen)) / 2
    return _warmed(step, total, warmup) * (floor + (1 - floor) * (1 - fallen))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "swa": swa,
}


def _warmed(step: int, total: int, warmup: float) -> float:
    """Rise from near 0 to 1 over the first `warmup` of the run."""
    if not 0 <= warmup < 1:
        raise PolyfuseError(f"warmup={warmup} is not a share of the run; type 0 <= warmup < 1")
    steps = warmup * total
    return min(1.0, (step + 1) / steps) if steps else 1.0


def _after(step: int, total: int, warmup: float) -> float:
    """Return how much of the run after the warm-up has passed, 0 to 1."""
    steps = warmup * total
    return min(1.0, max(0.0, (step - steps) / max(total - steps, 1)))

"""Learning rate as a function of the step: `(step, total) -> factor` of the optimiser's rate."""

import math
from collections.abc import Callable

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


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
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

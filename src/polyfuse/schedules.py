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


def cyclic_cosine(
    step: int, total: int, *, cycles: int = 5, last_step: Literal["eq2", "zero"] = "eq2"
) -> float:
    """Fall along half a cosine, from 1 anew in each cycle (Huang et al. 2017, equation 2).

    Args:
        step: from 0.
        total: steps of the whole run.
        cycles: falls; all have `ceil(total / cycles)` steps but the last, which may have fewer.
        last_step: "eq2" ends a cycle one step above 0, as the paper's equation has it; "zero" is a
            step ahead and ends at 0, as the authors' own code does.

    Raises:
        PolyfuseError: no cycle, or another convention.

    Example:
        >>> [round(cyclic_cosine(step, 8, cycles=2), 3) for step in range(8)]
        [1.0, 0.854, 0.5, 0.146, 1.0, 0.854, 0.5, 0.146]
    """
    if last_step not in ("eq2", "zero"):
        raise PolyfuseError(f"last_step={last_step!r}; type 'eq2' or 'zero'")
    length = _cycle(total, cycles)
    into = step % length + (last_step == "zero")
    return (1 + math.cos(math.pi * into / length)) / 2


def triangle(
    step: int, total: int, *, cycles: float = 5, high: float = 1.0, low: float = 0.01
) -> float:
    """Fall in a straight line from `high` to `low` and rise again, in each cycle (Garipov 2018).

    The formula of fast geometric ensembling; the rate is lowest in the middle of a cycle.

    Args:
        step: from 0.
        total: steps of the whole run.
        cycles: falls and rises, of `ceil(total / cycles)` steps each; 2.5 end at the lowest rate.
        high: factor at the ends of a cycle.
        low: factor in its middle.

    Raises:
        PolyfuseError: no cycle, or factors that are not 0 <= low <= high.

    Example:
        >>> [triangle(step, 8, cycles=2, low=0.5) for step in range(8)]
        [1.0, 0.75, 0.5, 0.75, 1.0, 0.75, 0.5, 0.75]
    """
    if not 0 <= low <= high < math.inf:
        raise PolyfuseError(f"high={high}, low={low}; type factors of the rate, 0 <= low <= high")
    length = _cycle(total, cycles)
    t = step % length / length
    return (1 - 2 * t) * high + 2 * t * low if t <= 0.5 else (2 - 2 * t) * low + (2 * t - 1) * high


def joined(
    first: Callable[[int, int], float],
    then: Callable[[int, int], float],
    step: int,
    total: int,
    *,
    start: float,
) -> float:
    """Follow one schedule of the whole run, and from a share of it on another one of the rest.

    Args:
        first: as if it went on to the end.
        then: begins at `start`, at its step 0.
        step: from 0.
        total: steps of the whole run.
        start: share of the run, 0 to 1.

    Example:
        >>> [joined(linear, constant, step, 4, start=0.5) for step in range(4)]
        [1.0, 0.75, 1.0, 1.0]
    """
    begin = round(start * total)
    return first(step, total) if step < begin else then(step - begin, total - begin)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "cyclic_cosine": cyclic_cosine,
    "swa": swa,
    "triangle": triangle,
}


def _cycle(total: int, cycles: float) -> int:
    """Return how many steps a cycle has."""
    if not 0 < cycles < math.inf:
        raise PolyfuseError(f"cycles={cycles}; type a number above 0")
    return max(1, math.ceil(total / cycles))


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

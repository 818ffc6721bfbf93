"""The rules of averaging by name: EMA with warm-ups, SWA, T-ADEMA, power-EMA, LAWA, half-life."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.averaging.base import AveragingRule, Moment, Timing, linear, number
from polyfuse.errors import PolyfuseError, did_you_mean, printable, refuse_unknown

Decay = Callable[[int], float]  # of the step after the initial copy, from 1


def ema(
    decay: float = 0.999,
    *,
    warmup: str | None = None,
    gamma: float = 1.0,
    power: float = 2 / 3,
    min_decay: float = 0.0,
    tau: float = 2000.0,
) -> AveragingRule:
    """Average exponentially: `decay * average + (1 - decay) * current` at each step.

    Where updates are rarer than steps, an update takes the product of the decays of all steps that
    it stands for, `decay ** k`; so the horizon stays as many steps.

    A warm-up lets a young average follow faster; with s the number of the step, from 1 after the
    initial copy, the decay of a step is

    | warmup          | decay of step s                                                         |
    |-----------------|-------------------------------------------------------------------------|
    | `"power"`       | `1 - (1 + s / gamma) ** -power`, from `min_decay` to `decay` (timm)     |
    | `"tf"`          | `min(decay, (1 + s) / (10 + s))` (TensorFlow)                           |
    | `"exponential"` | `decay * (1 - exp(-s / tau))` (YOLO)                                    |
    | `"cumulative"`  | the plain mean of all updates until the EMA would move slower           |

    Args:
        decay: 0 <= decay < 1.
        warmup: one of the table, or None.
        gamma: of `"power"`, above 0.
        power: of `"power"`, above 0.
        min_decay: of `"power"`, 0 to `decay`.
        tau: of `"exponential"`, steps, above 0.

    Raises:
        PolyfuseError: an option out of its range.

    Example:
        >>> rule = ema(0.9)
        >>> rule.update(torch.tensor([1.0]), torch.tensor([2.0]), Moment(n=1, step=2))
        tensor([1.1000])
    """
    limit = number("decay", decay, "0 <= decay < 1", lambda d: 0 <= d < 1)
    number("gamma", gamma, "a number above 0", lambda g: g > 0)
    number("power", power, "a number above 0", lambda p: p > 0)
    number("tau", tau, "a number of steps above 0", lambda t: t > 0)
    number("min_decay", min_decay, "0 <= min_decay <= decay", lambda d: 0 <= d <= limit)
    options: dict[str, Any] = {"decay": decay}
    if warmup is None:
        return linear("ema", options, lambda moment: 1 - limit**moment.since)
    options["warmup"] = warmup
    if warmup == "cumulative":
        return linear("ema", options, lambda m: 1 - min(limit**m.since, m.n / (m.n + 1)))
    if warmup == "power":
        options |= {"gamma": gamma, "power": power, "min_decay": min_decay}
    if warmup == "exponential":
        options |= {"tau": tau}
    decays: dict[str, Decay] = {
        "power": lambda s: min(limit, max(min_decay, 1 - (1 + s / gamma) ** -power)),
        "tf": lambda s: min(limit, (1 + s) / (10 + s)),
        "exponential": lambda s: limit * (1 - math.exp(-s / tau)),
    }
    if warmup not in decays:
        known = ", ".join([*decays, "cumulative"])
        near = did_you_mean(str(warmup), [*decays, "cumulative"])
        raise PolyfuseError(f"warmup={printable(warmup)!r}{near}; known: {known}")
    of_step = decays[warmup]
    return linear("ema", options, lambda moment: 1 - math.prod(map(of_step, moment.age)))


def swa() -> AveragingRule:
    """Average all updates alike: `average + (current - average) / (n + 1)`.

    Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407) counts the weights at the
    end of an epoch: `swa().timed(update_every="epoch", start_epoch=...)`.

    Example:
        >>> swa().weight(Moment(n=3, step=4))
        0.25
    """
    return linear("swa", {}, lambda moment: 1 / (moment.n + 1))


def tanh_ema(alpha: float = 0.9, *, scale: float = 1.0, unit: str = "updates") -> AveragingRule:
    """Average with a decay that rises to alpha: `alpha * tanh(n / scale)`, known as T-ADEMA.

    n is the number of the update, from 1 at the first one after the initial copy, or of the epoch.
    With scale 1 it saturates within four updates, and is a plain EMA from then on:

    | n                   |    1 |    2 |    3 |    4 |    5 |
    |---------------------|-----:|-----:|-----:|-----:|-----:|
    | decay, alpha = 0.9  | .685 | .868 | .896 | .899 | .900 |

    A larger scale stretches the curve: it is at 76 % of alpha when n = scale.

    Args:
        alpha: 0 <= alpha < 1.
        scale: above 0.
        unit: what n counts, "updates" or "epochs".

    Raises:
        PolyfuseError: an option out of its range.

    Example:
        >>> [round(1 - tanh_ema().weight(Moment(n=n, step=n + 1)), 3) for n in (1, 2, 3, 4)]
        [0.685, 0.868, 0.896, 0.899]
    """
    limit = number("alpha", alpha, "0 <= alpha < 1", lambda a: 0 <= a < 1)
    width = number("scale", scale, "a number above 0", lambda s: s > 0)
    if unit not in ("updates", "epochs"):
        raise PolyfuseError(f"unit={printable(unit)!r}; known: updates, epochs")

    def weight(moment: Moment) -> float:
        n = moment.n if unit == "updates" else moment.epoch
        decay = limit * math.tanh(n / width)
        return 1 - float(decay**moment.since)

    return linear("tanh_ema", {"alpha": alpha, "scale": scale, "unit": unit}, weight)


def power_ema(sigma_rel: float | None = None, *, gamma: float | None = None) -> AveragingRule:
    """Average with weights that grow as a power of time, so the horizon is a share of the run.

    Karras et al. 2023 (arXiv 2312.02696): `decay = (1 - dt / t) ** (gamma + 1)`, with t the steps
    so far and dt those since the previous update.

    Args:
        sigma_rel: width of the profile as a share of the run, above 0 and below 0.288; 0.1 unless
            `gamma` is given.
        gamma: the exponent instead, from 0, which is the plain mean.

    Raises:
        PolyfuseError: both, or one out of its range.

    Example:
        >>> round(power_ema(0.1).options["gamma"], 3)
        6.937
    """
    if sigma_rel is not None and gamma is not None:
        raise PolyfuseError("power_ema takes sigma_rel or gamma, not both")
    if gamma is None:
        sigma_rel = 0.1 if sigma_rel is None else sigma_rel
        gamma = exponent(sigma_rel)
    power = 1 + number("gamma", gamma, "a number from 0", lambda g: g >= 0)

    def weight(moment: Moment) -> float:
        return 1 - float((1 - moment.since / moment.step) ** power)

    return linear("power_ema", {"gamma": gamma}, weight)


def exponent(sigma_rel: float) -> float:
    """Return gamma of a power-EMA whose profile has this relative width.

    Raises:
        PolyfuseError: a width that no profile has.

    Example:
        >>> round(exponent(0.05), 2)
        16.97
    """
    widest = 12**-0.5  # of gamma 0, the plain mean
    number("sigma_rel", sigma_rel, "0 < sigma_rel < 0.288", lambda s: 0 < s < widest)
    t = float(sigma_rel) ** -2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def half_life(
    *, steps: float | None = None, samples: float | None = None, tokens: float | None = None
) -> AveragingRule:
    """Average exponentially; a value's share halves after so many steps, samples or tokens.

    Samples and tokens make the horizon independent of the batch size; they are counted by
    `Averages.update(samples=..., tokens=...)`.

    Args:
        steps: this,
        samples: or this,
        tokens: or this; above 0.

    Raises:
        PolyfuseError: none of them, several, or one out of its range.

    Example:
        >>> half_life(steps=10).weight(Moment(n=1, step=20, since=10))
        0.5
    """
    given = {"steps": steps, "samples": samples, "tokens": tokens}
    given = {unit: value for unit, value in given.items() if value is not None}
    if len(given) != 1:
        raise PolyfuseError("half_life takes one of steps, samples and tokens")
    [(unit, half)] = given.items()
    life = number(unit, half, "a number above 0", lambda h: h > 0)

    def weight(moment: Moment) -> float:
        seen = {"steps": moment.since, "samples": moment.samples, "tokens": moment.tokens}[unit]
        if seen is None:
            raise PolyfuseError(f"half_life({unit}=...) needs update({unit}=...) at every step")
        return 1 - float(0.5 ** (seen / life))

    return linear("half_life", given, weight)


def lawa(k: int = 6) -> AveragingRule:
    """Average the last k updates alike (LAWA; Kaddour 2022, arXiv 2209.14981).

    It keeps them all, k times the memory of another average; a running sum would drift.

    Args:
        k: from 1.

    Raises:
        PolyfuseError: no whole number from 1.

    Example:
        >>> rule = lawa(2)
        >>> kept = rule.init(torch.tensor([1.0]))
        >>> for n in (1, 2):
        ...     kept = rule.update(kept, torch.tensor([1.0 + n]), Moment(n=n, step=n + 1))
        >>> rule.value(kept, 2)
        tensor([2.5000])
    """
    number("k", k, "a whole number from 1", lambda k: k >= 1 and k == int(k))
    count = int(k)

    def init(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape).clone()

    def update(kept: Tensor, current: Tensor, moment: Moment) -> Tensor:
        kept = kept.clone()
        kept[moment.n % count] = current.to(kept)
        return kept

    def value(kept: Tensor, n: int) -> Tensor:
        return kept[: n + 1].double().mean(0).to(kept)

    return AveragingRule("lawa", {"k": count}, init, update, value=value, window=count)


def custom(
    init: Callable[[Tensor], Tensor], update: Callable[[Tensor, Tensor, int], Tensor]
) -> AveragingRule:
    """Average by functions of your own.

    Args:
        init: the first average, of a tensor.
        update: `(average, current, n) -> average`, n from 1; called for each tensor.

    Example:
        >>> largest = custom(torch.clone, lambda average, current, n: average.maximum(current))
        >>> largest.update(torch.zeros(1), torch.ones(1), Moment(n=1, step=2))
        tensor([1.])
    """
    return AveragingRule("custom", {}, init, lambda a, c, moment: update(a, c, moment.n))


def from_avg_fn(avg_fn: Callable[[Tensor, Tensor, Any], Tensor]) -> AveragingRule:
    """Average by an `avg_fn` of `torch.optim.swa_utils`: `(averaged, current, num_averaged)`.

    Example:
        >>> from torch.optim.swa_utils import get_ema_avg_fn
        >>> from_avg_fn(get_ema_avg_fn(0.9)).name
        'custom'
    """
    return custom(torch.clone, lambda average, current, n: avg_fn(average, current, n))


RULES: dict[str, Callable[..., AveragingRule]] = {
    "ema": ema,
    "swa": swa,
    "tanh_ema": tanh_ema,
    "t_adema": tanh_ema,
    "power_ema": power_ema,
    "half_life": half_life,
    "lawa": lawa,
}


def rule_weights(rule: AveragingRule, count: int, update_every: int = 1) -> list[float]:
    """Return the share that each of `count` snapshots has in the average, the initial copy first.

    Args:
        rule: one that is linear in the snapshots; `custom` ones are asked, too.
        count: snapshots, from 1.
        update_every: steps between two.

    Raises:
        PolyfuseError: no snapshot.

    Example:
        >>> rule_weights(ema(0.5), 3)
        [0.25, 0.25, 0.5]
    """
    k = update_every
    return shares(rule, [Moment(n, (n + 1) * k, k, copied=k) for n in range(count)])


def shares(rule: AveragingRule, moments: Sequence[Moment]) -> list[float]:
    """Return the share of each snapshot, at moments of your own; the first is the initial copy's.

    Raises:
        PolyfuseError: no moment.

    Example:
        >>> shares(ema(0.5), [Moment(n=0, step=1), Moment(n=1, step=3, since=2)])
        [0.25, 0.75]
    """
    if not moments:
        raise PolyfuseError("no snapshots; the shares of at least one can be told")
    units = torch.eye(len(moments), dtype=torch.float64)
    kept = rule.init(units[0])
    for unit, moment in zip(units[1:], moments[1:], strict=True):
        kept = rule.update(kept, unit, moment)
    value = rule.value(kept, len(moments) - 1) if rule.value else kept
    return [float(share) for share in value]


def make_rule(name: str, options: Mapping[str, Any]) -> AveragingRule:
    """Return a rule by its name and options, times included: what a recipe says.

    Raises:
        PolyfuseError: an unknown name, or an option that the rule does not take.

    Example:
        >>> make_rule("swa", {"start_epoch": 5}).timing.start_epoch
        5
    """
    if name not in RULES:
        raise PolyfuseError(
            f"no rule is called {printable(name)!r}{did_you_mean(name, RULES)}; "
            f"known: {', '.join(RULES)}"
        )
    times = {key: value for key, value in options.items() if key in Timing._fields}
    rest = {key: value for key, value in options.items() if key not in times}
    refuse_unknown(name, rest, [*inspect.signature(RULES[name]).parameters, *Timing._fields])
    return RULES[name](**rest).timed(**times)

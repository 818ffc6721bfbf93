"""Temperature and vector scaling: logits made softer, sharper, or shifted by class."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from polyfuse.calibration.base import check_classes, chunks, logits_and_labels, softmax, to_logits
from polyfuse.errors import DataError
from polyfuse.fitting import TINY, Floats
from polyfuse.parameters import Parameters
from polyfuse.solvers import minimise


@dataclass(kw_only=True, eq=False)
class Temperature(Parameters):
    """One temperature: `softmax(z / T)` with the least NLL (Guo et al. 2017).

    The NLL is convex in 1/T; Newton steps inside a bracket find the one minimum. Logits of -inf
    stand for the smallest probability float32 tells from zero, as the NLL on a scoreboard does; a
    minimum at 0 or infinity (labels that are always, or never, the best guess) gives a bound.

    Args:
        space: "logit" (log-probabilities are logits, too), or "prob".
        bounds: of T.
        uncovered: "error", or "leave_out" for NaN rows.

    Attributes:
        temperature_: above 1 for over-confident predictions. The NLL on the fitting rows is never
            worse than before (where 1 is within the bounds).

    Example:
        >>> z = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> labels = np.array([0, 0, 1, 1])
        >>> round(Temperature().fit(z, labels).temperature_, 3)  # right in 3 of 4: logit 1.1
        3.641
    """

    space: str = "logit"
    bounds: tuple[float, float] = (0.01, 100.0)
    uncovered: str = "error"
    temperature_: float = field(init=False, repr=False)

    def fit(self, scores: Any, labels: Any) -> Self:
        """Fit on `(sample, ..., class)` scores and `(sample, ...)` integers that no member saw.

        Raises:
            DataError: what does not fit, all at once; see `fitting.held_out`.
        """
        low, high = self.bounds
        if not 0 < low < high < np.inf:
            raise DataError(f"bounds={self.bounds} must be 0 < low < high, both finite")
        logits, truth = logits_and_labels(self, scores, labels)

        def slope_and_curve(beta: float) -> tuple[float, float]:
            slope = curve = 0.0
            for z, y in chunks(logits, truth):
                p = softmax(z * beta)
                mean = (p * z).sum(-1)
                slope += float((mean - z[np.arange(len(y)), y]).sum())
                curve += float((p * (z - mean[:, None]) ** 2).sum())
            return slope, curve

        self.temperature_ = 1 / _root(slope_and_curve, 1 / high, 1 / low)
        return self

    def predict_proba(self, scores: Any) -> Floats:
        """Return calibrated probabilities, `(sample, ..., class)` float64; NaN rows stay NaN."""
        temperature = self.fitted("temperature_")
        return softmax(to_logits(scores, self.space) / temperature)


@dataclass(kw_only=True, eq=False)
class Vector(Parameters):
    """A factor and an offset a class: `softmax(a * z + b)` with the least NLL (Guo et al. 2017).

    Args:
        space: "logit" (log-probabilities are logits, too), or "prob".
        l2: adds `l2 * (sum (a - 1)^2 + sum b^2)`, so that there is a minimum always.
        uncovered: "error", or "leave_out" for NaN rows.

    Attributes:
        factors_: `(class,)`.
        offsets_: `(class,)`. The NLL on the fitting rows is never worse than before.

    Example:
        >>> z = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        >>> fitted = Vector().fit(z, np.array([0, 1, 1, 1]))
        >>> fitted.predict_proba(z).mean(0).round(2).tolist()
        [0.25, 0.75]
    """

    space: str = "logit"
    l2: float = 1e-6
    uncovered: str = "error"
    factors_: Floats = field(init=False, repr=False)
    offsets_: Floats = field(init=False, repr=False)

    def fit(self, scores: Any, labels: Any) -> Self:
        """Fit on `(sample, ..., class)` scores and `(sample, ...)` integers that no member saw.

        Raises:
            DataError: what does not fit, all at once; see `fitting.held_out`.
        """
        if not 0 <= self.l2 < np.inf:
            raise DataError(f"l2={self.l2} must be finite and not negative")
        logits, truth = logits_and_labels(self, scores, labels)
        start = np.repeat([1.0, 0.0], logits.shape[-1])

        def loss(x: Floats) -> tuple[float, Floats]:
            factors, offsets = x.reshape(2, -1)
            value, gradient = 0.0, np.zeros((2, len(factors)))
            for z, y in chunks(logits, truth):
                p = softmax(z * factors + offsets)
                own = p[np.arange(len(y)), y]
                value -= float(np.log(np.maximum(own, TINY)).sum())
                p[np.arange(len(y)), y] -= 1
                gradient += np.stack([(p * z).sum(0), p.sum(0)])
            away = x - start
            value = value / len(truth) + self.l2 * float(away @ away)
            return value, gradient.ravel() / len(truth) + 2 * self.l2 * away

        self.factors_, self.offsets_ = minimise(loss, start).reshape(2, -1)
        return self

    def predict_proba(self, scores: Any) -> Floats:
        """Return calibrated probabilities, `(sample, ..., class)` float64; NaN rows stay NaN."""
        factors = self.fitted("factors_")
        logits = to_logits(scores, self.space)
        check_classes(logits, len(factors))
        return softmax(logits * factors + self.offsets_)


def _root(
    slope_and_curve: Callable[[float], tuple[float, float]], low: float, high: float
) -> float:
    """Return where a rising slope crosses zero, or the bound that it crosses beyond."""
    if slope_and_curve(low)[0] >= 0:
        return low
    if slope_and_curve(high)[0] <= 0:
        return high
    at = min(max(1.0, low), high)
    for _ in range(100):
        slope, curve = slope_and_curve(at)
        low, high = (at, high) if slope < 0 else (low, at)
        newton = at - slope / curve if curve > 0 else np.nan
        # A step out of the bracket, or NaN, is replaced by halving it.
        step = newton if low <= newton <= high else (low + high) / 2
        close = abs(step - at) <= 1e-12 * at
        at = step
        if close:
            break
    return float(at)

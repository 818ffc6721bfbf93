"""Members pooled and then calibrated, or on request calibrated one by one and then pooled."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.calibration.curves import Beta, Isotonic
from polyfuse.calibration.scaling import Temperature, Vector
from polyfuse.errors import DataError
from polyfuse.fitting import Floats, check_count, held_out, pooled, stacked
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import Parameters, one_of

Calibrator = Temperature | Vector | Beta | Isotonic
CALIBRATORS: dict[str, Callable[..., Calibrator]] = {
    "temperature": Temperature,
    "vector": Vector,
    "beta": Beta,
    "isotonic": Isotonic,
}


@dataclass(kw_only=True, eq=False)
class CalibratedPool(Parameters):
    """The weighted mean of members' probabilities, calibrated.

    Args:
        method: a name in `CALIBRATORS`.
        weights: `(member,)` or `(member, class)`, not negative; None for equal ones.
        per_member: calibrate each member by itself and pool then, not the other way round.
        uncovered: "error", or "leave_out" for rows that some member has no say on.

    Attributes:
        calibrators_: one, or with `per_member` one a member; None for a member of weight zero.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 3, 300)
        >>> z = 2 * np.eye(3)[labels] + 2 * rng.standard_normal((4, 300, 3))
        >>> p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        >>> bool(CalibratedPool().fit(p, labels).calibrators_[0].temperature_ < 1)
        True
    """

    method: str = "temperature"
    weights: Any = None
    per_member: bool = False
    uncovered: str = "error"
    calibrators_: tuple[Calibrator | None, ...] = field(init=False, repr=False)

    def fit(self, predictions: Any, labels: Any, *, trained: Any = None) -> Self:
        """Fit on rows that no member trained on.

        Args:
            predictions: `(member, sample, ..., class)` probabilities, or a sequence of members.
            labels: `(sample, ...)` integers.
            trained: `(member, sample)` booleans, see `leaks.refuse_trained`.

        Raises:
            DataError: what does not fit, all at once; see `fitting.held_out`.
        """
        one_of("method", self.method, list(CALIBRATORS))
        refuse_trained(predictions, trained, "this calibration")
        rows = held_out(predictions, labels, uncovered=self.uncovered)
        make, weights = CALIBRATORS[self.method], self._weights(rows.predictions)
        if self.per_member:
            used = [bool(weight.any()) for weight in weights]
            self.calibrators_ = tuple(
                make(space="prob").fit(member, rows.labels) if weighty else None
                for member, weighty in zip(rows.normal(), used, strict=True)
            )
        else:
            mean = pooled(rows.predictions, weights)
            self.calibrators_ = (make(space="prob").fit(mean, rows.labels),)
        return self

    def predict_proba(self, predictions: Any) -> Floats:
        """Return calibrated probabilities of the pool, `(sample, ..., class)` float64.

        Args:
            predictions: of the same members; NaN where a member has no say (see `fitting.pooled`).

        Raises:
            DataError: not fitted, other members, or no probabilities.
        """
        calibrators = self.fitted("calibrators_")
        array = stacked(predictions)
        weights = self._weights(array)
        if not self.per_member:
            shares: Floats = calibrators[0].predict_proba(pooled(array, weights))
            return shares
        check_count(array, np.ones(len(calibrators)))
        each = [
            member if calibrator is None else calibrator.predict_proba(member)
            for calibrator, member in zip(calibrators, array, strict=True)
        ]
        return pooled(np.stack(each), weights)

    def _weights(self, predictions: NDArray[Any]) -> Floats:
        if self.weights is None:
            return np.ones(len(predictions))
        weights = np.asarray(self.weights, dtype=np.float64)
        if not (weights.ndim in (1, 2) and (weights >= 0).all() and weights.any()):
            raise DataError("weights must be (member,) or (member, class), not negative, not all 0")
        check_count(predictions, weights)
        return weights

"""A combination and a calibration of what it says, fitted on predictions that flatter nobody."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from polyfuse.cross_fitting import cross_fitted
from polyfuse.fitting import Floats, array_of
from polyfuse.parameters import Parameters


@dataclass(kw_only=True, eq=False)
class Calibrated(Parameters):
    """A combination whose probabilities are calibrated (pooled first, then calibrated).

    Args:
        make: returns the combination, not fitted.
        calibrator: one of `polyfuse.calibration`, for probabilities.
        cross: options of `cross_fitted`, by which the calibration sees what the combination says
            of rows that it was not fitted on; None where it has nothing to fit.

    Attributes:
        combination_: fitted on all rows.
        calibrator_: fitted.
    """

    make: Callable[[], Any] | None = None
    calibrator: Any = None
    cross: Mapping[str, Any] | None = None
    combination_: Any = field(init=False, repr=False)
    calibrator_: Any = field(init=False, repr=False)

    def fit(
        self, predictions: Any, labels: Any, *, groups: Any = None, trained: Any = None
    ) -> Self:
        """Fit both on rows that no member trained on.

        Args:
            predictions: `(member, sample, ..., class)` probabilities.
            labels: `(sample, ...)` integers.
            groups: `(sample,)`; a group is never cut.
            trained: `(member, sample)` booleans, see `leaks.refuse_trained`.

        Raises:
            DataError: what the combination or the calibration refuses.
        """
        assert self.make is not None
        truth = array_of(labels)
        combination = self.make()
        self.combination_ = combination.fit(predictions, truth, trained=trained)
        if self.cross is None:
            said = self.combination_.predict_proba(predictions)
        else:
            said = cross_fitted(
                self.make, predictions, truth, groups=groups, trained=trained, **self.cross
            )
        fresh = type(self.calibrator)(**self.calibrator.get_params())
        self.calibrator_ = fresh.fit(said, truth)
        return self

    def predict_proba(self, predictions: Any) -> Floats:
        """Return calibrated probabilities, `(sample, ..., class)` float64.

        Raises:
            DataError: not fitted, or what the combination refuses.
        """
        calibrator = self.fitted("calibrator_")
        shares: Floats = calibrator.predict_proba(self.combination_.predict_proba(predictions))
        return shares

"""Combinations of two plain kinds: a rule that has nothing to fit, and one weight a member."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.combine import COMBINERS
from polyfuse.errors import DataError
from polyfuse.fitting import Floats, array_of, mean_of_numbers, pooled, stacked
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import Parameters, one_of
from polyfuse.sequences import SEQUENCE_COMBINERS

_NOTHING = 1e-9  # of the largest weight


def way(fitted: Any) -> str:
    """Return the method by which something fitted is asked: of numbers `predict`.

    Example:
        >>> way(Fixed(combiner="median"))
        'predict_proba'
    """
    return "predict" if getattr(fitted, "target", None) == "numbers" else "predict_proba"


def say(fitted: Any, predictions: NDArray[Any]) -> NDArray[Any]:
    """Return what something fitted says of `(member, sample, ...)`."""
    return np.asarray(getattr(fitted, way(fitted))(predictions))


@dataclass(kw_only=True, eq=False)
class Fixed(Parameters):
    """A combiner that has nothing to fit.

    Args:
        combiner: name in `COMBINERS` or `SEQUENCE_COMBINERS`.
        options: of the combiner.

    Example:
        >>> p = np.array([[[0.9, 0.1]], [[0.5, 0.5]]])
        >>> Fixed(combiner="mean_probability", options={"space": "prob"}).predict_proba(p).tolist()
        [[0.7, 0.3]]
    """

    combiner: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def fit(self, predictions: Any, labels: Any, *, trained: Any = None) -> Self:
        """Return this object: there is nothing to fit."""
        return self

    def predict_proba(self, predictions: Any) -> NDArray[Any]:
        """Return probabilities, numbers, or for a vote the decided classes.

        Args:
            predictions: `(member, sample, ...)`.

        Raises:
            DataError: what the combiner says it refuses.
        """
        array = stacked(predictions, 2)
        return np.asarray(_combiner(self.combiner)(array, **self.options))

    def document(self) -> dict[str, Any]:
        """Return what `from_document` of this class makes an equal object of."""
        return {"combiner": self.combiner, "options": dict(self.options)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the object that a document describes.

        Raises:
            DataError: an unknown combiner.
        """
        _combiner(str(document["combiner"]))
        return cls(combiner=document["combiner"], options=document["options"])


def _combiner(name: str) -> Callable[..., Any]:
    known = {**COMBINERS, **SEQUENCE_COMBINERS}
    if name not in known:
        raise DataError(f"there is no combiner '{name}'; there are {', '.join(known)}")
    return known[name]


@dataclass(kw_only=True, eq=False)
class Alone(Parameters):
    """One member, as it is.

    Args:
        member: its number.

    Example:
        >>> Alone(member=1).predict_proba(np.array([[[0.9, 0.1]], [[0.5, 0.5]]])).tolist()
        [[0.5, 0.5]]
    """

    member: int

    def predict_proba(self, predictions: Any) -> NDArray[Any]:
        """Return what the member says."""
        return np.asarray(stacked(predictions, 2)[self.member])

    def document(self) -> dict[str, Any]:
        """Return what `from_document` of this class makes an equal object of."""
        return {"member": self.member}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the object that a document describes.

        Raises:
            DataError: no number of a member.
        """
        member = document["member"]
        if type(member) is not int or member < 0:
            raise DataError("member must be a whole number, of a member")
        return cls(member=member)


Find = Callable[[NDArray[Any], NDArray[Any]], Floats]


def _mean(name: str, predictions: Any, weights: Floats) -> NDArray[Any]:
    return np.asarray(COMBINERS[name](stacked(predictions, 2), weights=weights))


MEANS: dict[str, Callable[[Any, Floats], NDArray[Any]]] = {
    "probability": pooled,
    "value": mean_of_numbers,
    "mixture_moments": partial(_mean, "mixture_moments"),
    "quantile_average": partial(_mean, "quantile_average"),
}


@dataclass(kw_only=True, eq=False)
class Weighted(Parameters):
    """One weight a member, found on held-out rows and applied by the mean that fits the task.

    Args:
        mean: name in `MEANS`.
        find: returns `(member,)` or `(member, class)` weights, given the members' predictions
            `(member, sample, ...)` and the labels.

    Attributes:
        weights_: what was found, float64; 0 where it was below 1e-9 of the largest.

    Example:
        >>> first = Weighted(mean="value", find=lambda predictions, labels: np.array([1.0, 0.0]))
        >>> said = np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> first.fit(said, np.zeros(2)).predict_proba(said).tolist()
        [1.0, 2.0]
    """

    mean: str
    find: Find | None = None
    weights_: Floats = field(init=False, repr=False)

    def fit(self, predictions: Any, labels: Any, *, trained: Any = None) -> Self:
        """Find the weights on rows that no member trained on.

        Raises:
            DataError: what does not fit, rows that a member trained on, or nothing to find with.
        """
        if self.find is None:
            raise DataError("these weights were read from a file: nothing finds them anew")
        array = stacked(predictions, 2)
        refuse_trained(array, trained)
        found = np.asarray(self.find(array, array_of(labels)), np.float64)
        # Weights of rounding errors would make a member cost without any say.
        self.weights_ = np.where(found < _NOTHING * found.max(), 0.0, found)
        return self

    def predict_proba(self, predictions: Any) -> NDArray[Any]:
        """Return the weighted mean of `(member, sample, ...)`; members without weight are not read.

        Raises:
            DataError: not fitted, or predictions that do not fit.
        """
        return np.asarray(MEANS[self.mean](predictions, self.fitted("weights_")))

    def document(self) -> dict[str, Any]:
        """Return the weights and what applies them."""
        return {"mean": self.mean, "weights": self.fitted("weights_").tolist()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the fitted object that a document describes.

        Raises:
            DataError: an unknown mean, or weights that are none.
        """
        one_of("mean", document["mean"], list(MEANS))
        made, weights = cls(mean=document["mean"]), np.asarray(document["weights"], np.float64)
        if weights.ndim not in (1, 2) or not (weights >= 0).all() or not weights.any():
            raise DataError("weights must be numbers of 0 or more, one a member, not all 0")
        made.weights_ = weights
        return made

"""Weights of members that are not negative and sum to one, fitted on held-out predictions.

All losses here are convex in the weights, so what is found is the best there is; `gap_` bounds by
how much it is not.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import (
    TINY,
    Floats,
    HeldOut,
    error_products,
    held_out,
    held_out_values,
    mean_of_numbers,
    pooled,
)
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import Parameters, one_of
from polyfuse.solvers import ValueAndGradient, gap, minimise, minimise_on_simplex

LOSSES = ("nll", "brier", "mse")


@dataclass(kw_only=True, eq=False)
class SimplexWeights(Parameters):
    """The weighted mean of members' predictions that has the least loss on held-out rows.

    Args:
        loss: "nll" or "brier" of class probabilities, "mse" of numbers.
        l2: adds `l2 * sum (w - 1/M)^2`: pulls towards equal weights.
        entropy: adds `entropy * KL(w || equal weights)`: pulls so that no weight is zero.
        per_class: weights `(member, class)`, each class's on the simplex, fitted one class against
            the rest; the weighted sums are then divided by their sum over classes.
        uncovered: "error", or "leave_out" for rows that some member has no say on.

    Attributes:
        weights_: `(member,)` or `(member, class)` float64.
        loss_: of the weights on the fitting rows, without what `l2` and `entropy` add; a mean over
            rows (and heads), Brier summed over classes; of `per_class` the sum over classes of one
            against the rest.
        gap_: no weights are better than these by more than this.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 3, 90)
        >>> good = np.full((90, 3), 0.1) + 0.7 * np.eye(3)[labels]
        >>> fitted = SimplexWeights().fit([good, rng.dirichlet([1, 1, 1], 90)], labels)
        >>> fitted.weights_.round(3).tolist()
        [1.0, 0.0]
    """

    loss: str = "nll"
    l2: float = 0.0
    entropy: float = 0.0
    per_class: bool = False
    uncovered: str = "error"
    weights_: Floats = field(init=False, repr=False)
    loss_: float = field(init=False, repr=False)
    gap_: float = field(init=False, repr=False)

    def fit(self, predictions: Any, labels: Any, *, trained: Any = None) -> Self:
        """Fit the weights on rows that no member trained on.

        Args:
            predictions: `(member, sample, ..., class)` probabilities, or a sequence of members;
                for "mse" `(member, sample, ...)` numbers.
            labels: `(sample, ...)` integers, or numbers.
            trained: `(member, sample)` booleans, see `leaks.refuse_trained`.

        Raises:
            DataError: what does not fit, all at once; see `fitting.held_out`.
        """
        self._check()
        refuse_trained(predictions, trained)
        rows = _rows(predictions, labels, self.loss, self.uncovered)
        columns = [self._solve(loss) for loss in _losses(rows, self.loss, self.per_class)]
        weights, values, gaps = zip(*columns, strict=True)
        self.weights_ = np.stack(weights, -1) if self.per_class else weights[0]
        self.loss_, self.gap_ = float(sum(values)), float(sum(gaps))
        return self

    def predict_proba(self, predictions: Any) -> Floats:
        """Return the weighted mean probabilities, `(sample, ..., class)` float64.

        Args:
            predictions: of the same members; NaN where a member has no say (see `fitting.pooled`).

        Raises:
            DataError: not fitted, fitted on numbers, other members, or no probabilities.
        """
        weights = self.fitted("weights_")
        if self.loss == "mse":
            raise DataError('loss="mse" fits numbers, which are no probabilities: call predict()')
        return pooled(predictions, weights)

    def predict(self, predictions: Any) -> NDArray[Any]:
        """Return the classes, or for "mse" the weighted mean.

        Raises:
            DataError: see `predict_proba`.
        """
        if self.loss != "mse":
            return np.asarray(self.predict_proba(predictions).argmax(-1))
        return mean_of_numbers(predictions, self.fitted("weights_"))

    def _check(self) -> None:
        one_of("loss", self.loss, LOSSES)
        if not (0 <= self.l2 < np.inf and 0 <= self.entropy < np.inf):
            raise DataError(
                f"l2={self.l2} and entropy={self.entropy} must be finite and not negative"
            )
        if self.per_class and self.loss == "mse":
            raise DataError('per_class=True weighs classes, and loss="mse" has none: leave it out')

    def _solve(self, loss: tuple[int, ValueAndGradient]) -> tuple[Floats, float, float]:
        """Return weights, their loss, and how far from the best they can be."""
        count, of_loss = loss
        equal = np.full(count, 1 / count)

        def whole(w: Floats) -> tuple[float, Floats]:
            value, gradient = of_loss(w)
            away, logs = w - equal, np.log(np.maximum(w * count, TINY))
            value += self.l2 * float(away @ away) + self.entropy * float(w @ logs)
            return value, gradient + 2 * self.l2 * away + self.entropy * (logs + 1)

        solve = _inside if self.entropy else minimise_on_simplex
        weights = solve(whole, equal)
        return weights, of_loss(weights)[0], gap(whole(weights)[1], weights)


def score_weights(
    scores: Any,
    *,
    temperature: float | None = None,
    power: float | None = None,
    higher_is_better: bool = True,
) -> Floats:
    """Return weights from cross-validated scores: their softmax, or in proportion to them.

    Args:
        scores: `(member,)`, or `(fold, member)`, of which the mean over folds is taken.
        temperature: weights are the softmax of `score / temperature`: a difference in score that is
            worth a factor e; infinite gives equal weights.
        power: in its place: weights are in proportion to `score ** power`, of a loss to
            `loss ** -power`; 1 is plain proportion, 0 gives equal weights.
        higher_is_better: False for a loss.

    Returns:
        `(member,)` weights that sum to one.

    Raises:
        DataError: no finite scores, not one of temperature and power, or one out of range; for
            `power`, scores that are not positive.

    Example:
        >>> score_weights([0.9, 0.9, 0.8], temperature=0.05).round(3).tolist()
        [0.468, 0.468, 0.063]
        >>> score_weights([0.1, 0.2], power=1, higher_is_better=False).round(3).tolist()
        [0.667, 0.333]
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim not in (1, 2) or not array.size or not np.isfinite(array).all():
        raise DataError(
            f"expected finite scores (member,) or (fold, member), got shape {array.shape} with "
            f"{int((~np.isfinite(array)).sum())} that are not finite; leave that member out"
        )
    means = array.mean(0) if array.ndim == 2 else array
    sign = 1 if higher_is_better else -1
    return _softmax(sign * _proportions(means, temperature, power))


def _proportions(means: Floats, temperature: float | None, power: float | None) -> Floats:
    """Return the logarithms that weights are in proportion to, of scores of which more is better.

    Raises:
        DataError: not one of temperature and power, out of range, or scores that are not positive.
    """
    if (temperature is None) == (power is None):
        raise DataError("bring either temperature= or power=: the softmax, or a proportion")
    if temperature is not None:
        if not temperature > 0:
            raise DataError(f"temperature={temperature} must be greater than 0; 0.01 is one point")
        return means / temperature
    assert power is not None
    if not 0 <= power < np.inf:
        raise DataError(f"power={power} must be finite and not negative")
    if means.min() <= 0:
        raise DataError(
            f"the lowest score is {means.min():.3g}, and power= needs scores above 0; use "
            "temperature="
        )
    return power * np.log(means)


def _rows(predictions: Any, labels: Any, loss: str, uncovered: str) -> HeldOut:
    check = held_out_values if loss == "mse" else held_out
    return check(predictions, labels, uncovered=uncovered)


def _losses(rows: HeldOut, loss: str, per_class: bool) -> list[tuple[int, ValueAndGradient]]:
    """Return the number of members and the loss: one, or one a class."""
    count = len(rows.predictions)
    if loss == "nll" and not per_class:
        return [(count, _nll(rows.gathered()))]
    if loss == "mse":
        errors = rows.predictions.reshape(count, -1), rows.labels.reshape(-1)
        return [(count, _squares(*errors))]
    p, labels = rows.flat()
    truth = np.eye(p.shape[-1], dtype=p.dtype)[labels]
    if loss == "brier" and not per_class:
        mean_of_classes = _squares(p.reshape(count, -1), truth.reshape(-1), len(labels))
        return [(count, mean_of_classes)]
    columns = range(p.shape[-1])
    if loss == "brier":
        return [(count, _squares(p[..., k], truth[:, k])) for k in columns]
    own = [np.where(labels == k, p[..., k], 1 - p[..., k]).astype(np.float64) for k in columns]
    return [(count, _nll(column)) for column in own]


def _nll(own: Floats) -> ValueAndGradient:
    """Return the mean of `-log(w @ own)`; `own` is `(member, row)`."""

    def loss(w: Floats) -> tuple[float, Floats]:
        mixed = np.maximum(w @ own, TINY)
        return -float(np.log(mixed).mean()), -(own @ (1 / mixed)) / len(mixed)

    return loss


def _squares(
    values: NDArray[Any], truth: NDArray[Any], rows: int | None = None
) -> ValueAndGradient:
    """Return the squared error of `w @ values` over `rows`, as `w @ G @ w` of the errors."""
    gram = error_products(values, truth) / (rows or len(truth))
    return lambda w: (float(w @ gram @ w), 2 * (gram @ w))


def _inside(function: ValueAndGradient, start: Floats) -> Floats:
    """Minimise where the best weights are all positive, over their logarithms."""

    def of_logs(logs: Floats) -> tuple[float, Floats]:
        w = _softmax(logs)
        value, gradient = function(w)
        return value, w * (gradient - w @ gradient)

    return _softmax(minimise(of_logs, np.log(start)))


def _softmax(values: Floats) -> Floats:
    raised = np.exp(values - values.max())
    share: Floats = raised / raised.sum()
    return share

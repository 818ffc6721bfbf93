"""Beta and isotonic calibration: a rising curve of the probability, one class against the rest."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from polyfuse.calibration.base import check_classes, logits_and_labels, softmax, to_logits
from polyfuse.classical import isotonic_steps
from polyfuse.fitting import TINY, Floats
from polyfuse.parameters import Parameters
from polyfuse.solvers import minimise


@dataclass(kw_only=True, eq=False)
class Beta(Parameters):
    """Beta calibration (Kull et al. 2017): `a ln p - b ln(1 - p) + c` is the new logit; a, b >= 0.

    Two classes are one problem; more are one class against the rest each, then divided by their
    sum. With two classes the NLL on the fitting rows is never worse than before.

    Args:
        space: "prob", or "logit".
        uncovered: "error", or "leave_out" for NaN rows.

    Attributes:
        coefficients_: `(problem, 3)`: a, b, c.

    Example:
        >>> p = np.repeat([[0.1, 0.9], [0.6, 0.4]], 50, axis=0)
        >>> labels = np.repeat([1, 0, 1, 0], [40, 10, 20, 30])
        >>> Beta().fit(p, labels).predict_proba(p)[[0, 99], 1].round(2).tolist()
        [0.8, 0.4]
    """

    space: str = "prob"
    uncovered: str = "error"
    coefficients_: Floats = field(init=False, repr=False)

    def fit(self, scores: Any, labels: Any) -> Self:
        """Fit on `(sample, ..., class)` scores and `(sample, ...)` integers that no member saw.

        Raises:
            DataError: what does not fit, all at once; see `fitting.held_out`.
        """
        columns, targets = _problems(self, scores, labels)
        self.coefficients_ = np.stack(
            [
                _beta(_beta_features(column), is_it)
                for column, is_it in zip(columns, targets, strict=True)
            ]
        )
        return self

    def predict_proba(self, scores: Any) -> Floats:
        """Return calibrated probabilities, `(sample, ..., class)` float64; NaN rows stay NaN."""
        coefficients = self.fitted("coefficients_")

        def one(number: int, column: Floats) -> Floats:
            return _sigmoid(_beta_features(column) @ coefficients[number])

        return _against_the_rest(scores, self.space, len(coefficients), one)


@dataclass(kw_only=True, eq=False)
class Isotonic(Parameters):
    """The rising step function of the probability that fits best (Zadrozny and Elkan 2002).

    Two classes are one problem; more are one class against the rest each, then divided by their
    sum (equal where all are zero), as scikit-learn has it. It needs many rows, and it says exactly
    0 and 1: where NLL counts, `Beta` is safer.

    Args:
        space: "prob", or "logit".
        uncovered: "error", or "leave_out" for NaN rows.

    Attributes:
        steps_: (ascending probabilities, values there) a problem.

    Example:
        >>> p = np.repeat([[0.1, 0.9], [0.6, 0.4]], 50, axis=0)
        >>> labels = np.repeat([1, 0, 1, 0], [40, 10, 20, 30])
        >>> Isotonic().fit(p, labels).predict_proba(p)[[0, 99], 1].round(2).tolist()
        [0.8, 0.4]
    """

    space: str = "prob"
    uncovered: str = "error"
    steps_: tuple[tuple[Floats, Floats], ...] = field(init=False, repr=False)

    def fit(self, scores: Any, labels: Any) -> Self:
        """Fit on `(sample, ..., class)` scores and `(sample, ...)` integers that no member saw.

        Raises:
            DataError: what does not fit, all at once; see `fitting.held_out`.
        """
        columns, targets = _problems(self, scores, labels)
        self.steps_ = tuple(isotonic_steps(*pair) for pair in zip(columns, targets, strict=True))
        return self

    def predict_proba(self, scores: Any) -> Floats:
        """Return calibrated probabilities, `(sample, ..., class)` float64; NaN rows stay NaN."""
        steps = self.fitted("steps_")

        def one(number: int, column: Floats) -> Floats:
            return np.asarray(np.interp(column, *steps[number]))

        return _against_the_rest(scores, self.space, len(steps), one)


def _problems(asked: Any, scores: Any, labels: Any) -> tuple[list[Floats], list[Floats]]:
    """Return the probability of a class and whether it is the true one: one pair a problem."""
    logits, truth = logits_and_labels(asked, scores, labels)
    p = softmax(logits)
    classes = [1] if p.shape[-1] == 2 else range(p.shape[-1])
    return [p[:, k] for k in classes], [(truth == k).astype(np.float64) for k in classes]


def _against_the_rest(
    scores: Any, space: str, problems: int, one: Callable[[int, Floats], Floats]
) -> Floats:
    """Apply a problem's own function to each class, and divide by the sum."""
    p = softmax(to_logits(scores, space))
    check_classes(p, 2 if problems == 1 else problems)
    if problems == 1:
        second = one(0, p[..., 1])
        return np.stack([1 - second, second], -1)
    each = np.stack([one(k, p[..., k]) for k in range(problems)], -1)
    total = each.sum(-1, keepdims=True)
    return np.where(total == 0, 1 / problems, each / np.where(total == 0, 1, total))


def _beta(features: Floats, targets: Floats) -> Floats:
    """Fit a logistic regression whose first two coefficients are not negative."""

    def loss(x: Floats) -> tuple[float, Floats]:
        logit = features @ x
        value = float((np.logaddexp(0, logit) - targets * logit).mean())
        return value, features.T @ (_sigmoid(logit) - targets) / len(targets)

    return minimise(loss, np.array([1.0, 1.0, 0.0]), lower=[0.0, 0.0, -np.inf])


def _beta_features(p: Floats) -> Floats:
    return np.stack(
        [np.log(np.maximum(p, TINY)), -np.log(np.maximum(1 - p, TINY)), np.ones_like(p)], -1
    )


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # NaN rows stay NaN
        return np.exp(-np.logaddexp(0, -logits))

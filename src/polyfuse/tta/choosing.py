"""Which views to keep, and at what weight, fitted on held-out rows; and merging by such weights.

Greedily from the first view, which is the input as it is, or by weights on the simplex (Shanmugam
et al. 2021, arXiv:2011.11156).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.calibration import Temperature
from polyfuse.errors import DataError
from polyfuse.fitting import Floats, array_of, stacked
from polyfuse.leaks import refuse_trained
from polyfuse.metrics import nll, rmse
from polyfuse.parameters import Parameters, one_of
from polyfuse.selection import Scores, greedy
from polyfuse.simplex import SimplexWeights
from polyfuse.tasks import meant
from polyfuse.tta.merging import merge_views

CHOICES = ("greedy", "weights", "class_weights", "all")
LEARNED = ("weights", "class_weights")
LOSSES = {  # by name, what a report calls it
    "calibrated_nll": "calibrated NLL",
    "nll": "NLL",
    "rmse": "RMSE",
}
_REFUSED = -1e300  # the score of views with which the metric is worse than with the first alone
_ANSWERS = 1 << 14  # by which a temperature is known to a per cent
Array = NDArray[Any]


class Figures(NamedTuple):
    """How good answers are on the held-out rows.

    Attributes:
        loss: NLL, summed over heads, by default at its best temperature; of numbers the RMSE.
        score: by the metric; None where there is none.
    """

    loss: float
    score: float | None


class Trial(NamedTuple):
    """One view that was tried.

    Attributes:
        view: its place.
        before: without it: by "greedy" the views that were kept so far, else the first view alone.
        after: the same views and this one, in equal parts.
        kept: whether it is one of those that were chosen.
    """

    view: int
    before: Figures
    after: Figures
    kept: bool


@dataclass(kw_only=True, eq=False)
class ViewChoice(Parameters):
    """Views that are kept, and their weights, fitted on held-out rows; the first is the plain one.

    Args:
        choose: "greedy" tries the views in the order of what they give beside the first one, and
            keeps each that makes the loss of the merged answer less and its score by `metric` no
            worse than that of the first view alone; "weights" are the best on the simplex by NLL;
            "class_weights" likewise, a set for each class; "all" keeps all in equal parts.
        loss: by which views are judged: "calibrated_nll", the NLL at its best temperature, since a
            mean of views is less sure of everything, and that is not what makes it worse (Ashukha
            et al. 2020); "nll" as it is; "rmse" of numbers. Weights are learned by the NLL as it
            is, or by the squared error.
        combiner: merges views, `(view, ...)` outputs to answers; see `polyfuse.combine`. The mean
            of probabilities, or of numbers, where None; learned weights are always of that mean.
        metric: a function of (answers, labels) that must not get worse: a number, or an object
            with a `value`.
        higher_is_better: of the metric.
        members: the third axis is that of members, whose merged answers are averaged.
        least: views of less weight are left out, and the weights fitted again.

    Attributes:
        kept_: places of the views that are kept, the first view included where it is.
        weights_: `(view,)` or `(view, class)` float64; 0 where a view is left out.
        trials_: what each view did.

    Example:
        >>> draw = np.random.default_rng(0)
        >>> labels = draw.integers(0, 3, 90)
        >>> plain = 2 * np.eye(3)[labels] + draw.normal(size=(90, 3))
        >>> alike = 2 * np.eye(3)[labels] + draw.normal(size=(90, 3))
        >>> ViewChoice().fit([plain, alike, draw.normal(size=(90, 3))], labels).kept_
        (0, 1)
    """

    choose: str = "greedy"
    loss: str = "calibrated_nll"
    combiner: Callable[..., Any] | None = None
    metric: Callable[..., Any] | None = None
    higher_is_better: bool = True
    members: bool = False
    least: float = 0.01
    kept_: tuple[int, ...] = field(init=False, repr=False)
    weights_: Floats = field(init=False, repr=False)
    trials_: tuple[Trial, ...] = field(init=False, repr=False)

    @property
    def of_numbers(self) -> bool:
        """Whether numbers are merged, and no classes."""
        return self.loss == "rmse"

    def fit(self, outputs: Any, labels: Any, *, trained: Any = None) -> Self:
        """Choose views on rows that no model trained on.

        Args:
            outputs: `(view, sample, ..., class)` logits or log-probabilities, or numbers; with
                `members` `(view, sample, member, ..., class)`.
            labels: `(sample, ...)` integers, or numbers.
            trained: `(view, sample)` booleans, see `leaks.refuse_trained`.

        Raises:
            DataError: options or outputs that do not fit.
        """
        self._check()
        array, truth = stacked(outputs, 2), array_of(labels)
        refuse_trained(array, trained, "a choice of views")
        if self.choose in LEARNED:
            self.weights_ = self._learned(array, truth)
            self.kept_ = _used(self.weights_)
        else:
            self.kept_ = self._greedy(array, truth) if self.choose == "greedy" else _all(array)
            self.weights_ = equal_weights(len(array), self.kept_)
        if self.choose != "greedy":
            self.trials_ = self._pairs(array, truth)
        return self

    def predict_proba(self, outputs: Any) -> Array:
        """Merge the views that were kept, as `merged` does.

        Raises:
            DataError: not fitted, or other views.
        """
        return merged(outputs, self.fitted("weights_"), self)

    def figures(self, answers: Array, labels: Array) -> Figures:
        """Return how good merged answers are; those of members are averaged first."""
        mean = answers.mean(1) if self.members else answers
        loss = _LOSSES[self.loss](mean, labels)
        if self.metric is None:
            return Figures(loss, None)
        said = self.metric(mean, labels)
        return Figures(loss, float(getattr(said, "value", said)))

    def no_worse(self, figures: Figures, than: Figures) -> bool:
        """Tell whether a score is as good as another one, or there is none."""
        if figures.score is None or than.score is None:
            return True
        sign = 1 if self.higher_is_better else -1
        return sign * (figures.score - than.score) >= 0

    def _check(self) -> None:
        one_of("choose", self.choose, CHOICES)
        one_of("loss", self.loss, tuple(LOSSES))
        if not 0 <= self.least < 1:
            raise DataError(f"least={self.least} is a share of the weights; give 0 to 1, as 0.01")
        if self.choose == "class_weights" and self.of_numbers:
            raise DataError(f'choose="class_weights" weighs classes; loss={self.loss!r} has none')

    def _of(self, array: Array, labels: Array, views: Sequence[int]) -> Figures:
        return self.figures(merged(array[list(views)], equal_weights(len(views)), self), labels)

    def _greedy(self, array: Array, labels: Array) -> tuple[int, ...]:
        """Choose views from the first one on, and keep what each of them did."""
        known: dict[tuple[int, ...], Figures] = {}

        def score(views: tuple[int, ...]) -> float:
            known[views] = self._of(array, labels, views)
            return -known[views].loss if self.no_worse(known[views], known[0,]) else _REFUSED

        scores = Scores(score)
        scores.of([(0,)])  # first: all others are compared with it
        beside = dict(
            zip(_others(array), scores.of([(0, view) for view in _others(array)]), strict=True)
        )
        order = [0, *sorted(beside, key=lambda view: -beside[view])]
        found = greedy(order, scores)
        trials, so_far = [], known[0,]
        for trial in found.trials[1:]:
            after = known[trial.members]
            trials.append(Trial(trial.members[-1], so_far, after, trial.kept))
            so_far = after if trial.kept else so_far
        self.trials_ = tuple(trials)
        return tuple(sorted(found.members))

    def _pairs(self, array: Array, labels: Array) -> tuple[Trial, ...]:
        """Return what each view gives beside the first one, in equal parts."""
        alone = self._of(array, labels, [0])
        return tuple(
            Trial(view, alone, self._of(array, labels, [0, view]), view in self.kept_)
            for view in _others(array)
        )

    def _learned(self, array: Array, labels: Array) -> Floats:
        """Fit weights; views of hardly any are left out, and the rest is fitted again."""
        said = self._said(array)
        by_class = self.choose == "class_weights"
        loss = "mse" if self.of_numbers else "nll"
        places = np.arange(len(array))
        while True:
            fitted = SimplexWeights(loss=loss, per_class=by_class).fit(said[places], labels)
            share = fitted.weights_.reshape(len(places), -1).max(1)
            if (share >= self.least).all():
                break
            places = places[share >= self.least]
        weights = np.zeros((len(array), *fitted.weights_.shape[1:]))
        weights[places] = fitted.weights_
        return weights

    def _said(self, array: Array) -> Array:
        """Return what the views mean: probabilities, or numbers; of members their mean."""
        said = meant("regression" if self.of_numbers else "classification", array)
        return said.mean(2) if self.members else said


def merged(outputs: Any, weights: Floats, choice: ViewChoice, *, returns: str = "prob") -> Array:
    """Merge views by weights.

    Args:
        outputs: `(view, sample, ..., class)` logits, log-probabilities or numbers; what stands in
            the place of a view without weight is not read.
        weights: `(view,)`, or `(view, class)`.
        choice: how they are merged.
        returns: "prob", or "log_prob": its logarithm, without the detour.

    Returns:
        `(sample, ..., class)` probabilities or their logarithms, or numbers.

    Raises:
        DataError: other views than there are weights; a combiner that decides classes.

    Example:
        >>> merged(np.zeros((2, 1, 2)), np.array([0.5, 0.5]), ViewChoice()).tolist()
        [[0.5, 0.5]]
    """
    array = stacked(outputs, 2)
    if len(array) != len(weights):
        raise DataError(f"outputs of {len(array)} views do not fit weights of {len(weights)}")
    used = list(_used(weights))
    learned = weights[used] if choice.choose in LEARNED else None
    combiner = None if choice.choose in LEARNED else choice.combiner
    answers = np.asarray(
        merge_views(
            array[used],
            learned,
            combiner=combiner or ("mean_value" if choice.of_numbers else "mean_probability"),
            returns="prob" if choice.of_numbers else returns,
        )
    )
    if answers.dtype.kind != "f":
        raise DataError("views are merged to probabilities, and this combiner decides classes")
    return answers


def merged_by_row(
    outputs: Any, weights: Floats, choice: ViewChoice, *, returns: str = "prob"
) -> Array:
    """Merge views by the weights of each row; see `merged`.

    Args:
        outputs: `(view, sample, ...)`.
        weights: `(sample, view)` or `(sample, view, class)`.
        choice: how they are merged.
        returns: see `merged`.

    Example:
        >>> each = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> merged_by_row(np.log([[[0.9, 0.1]] * 2, [[0.2, 0.8]] * 2]), each, ViewChoice()).round(
        ...     1).tolist()
        [[0.9, 0.1], [0.2, 0.8]]
    """
    array = stacked(outputs, 2)
    flat = weights.reshape(len(weights), -1)
    sets, which = np.unique(flat, axis=0, return_inverse=True)  # as many as there are folds
    parts = [np.flatnonzero(which.reshape(-1) == number) for number in range(len(sets))]
    answers = [merged(array[:, rows], weights[rows[0]], choice, returns=returns) for rows in parts]
    out = np.empty((len(weights), *answers[0].shape[1:]), np.result_type(*answers))
    for rows, answer in zip(parts, answers, strict=True):
        out[rows] = answer
    return out


def equal_weights(count: int, kept: Sequence[int] | None = None) -> Floats:
    """Return equal weights of the views that are kept, all where None, and 0 of the others.

    Example:
        >>> equal_weights(3, [0, 2]).tolist()
        [0.5, 0.0, 0.5]
    """
    weights, places = np.zeros(count), range(count) if kept is None else kept
    weights[list(places)] = 1 / len(places)
    return weights


def _calibrated(mean: Array, labels: Array) -> float:
    """Return the NLL at its best temperature, which a part of very many answers tells as well."""
    flat, truth = mean.reshape(-1, mean.shape[-1]), labels.reshape(-1)
    if len(truth) > _ANSWERS:
        rows = np.sort(np.random.default_rng(0).choice(len(truth), _ANSWERS, replace=False))
        flat, truth = flat[rows], truth[rows]
    scaled = Temperature(space="prob").fit(flat, truth).predict_proba(mean)
    return float(nll(scaled, labels).value)


_LOSSES: Mapping[str, Callable[[Array, Array], float]] = {
    "calibrated_nll": _calibrated,
    "nll": lambda mean, labels: float(nll(mean, labels).value),
    "rmse": lambda mean, labels: float(rmse(mean, labels).value),
}


def _used(weights: Floats) -> tuple[int, ...]:
    return tuple(np.flatnonzero(weights.reshape(len(weights), -1).any(1)).tolist())


def _all(array: Array) -> tuple[int, ...]:
    return tuple(range(len(array)))


def _others(array: Array) -> range:
    return range(1, len(array))

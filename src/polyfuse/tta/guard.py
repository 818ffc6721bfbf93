"""The guard of test-time augmentation: on held-out rows, it keeps only views that help.

A view that the net was not trained for can double its error, so views are chosen on validation. The
choice is then judged on rows that it did not see; where it does not help there, nothing is kept but
the first view, which is the input as it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.cross_fitting import cross_fitted
from polyfuse.errors import printable
from polyfuse.fitting import Floats, array_of, stacked
from polyfuse.tta.choosing import LEARNED, LOSSES, Figures, ViewChoice, merged, merged_by_row

Array = NDArray[Any]


class Guarded(NamedTuple):
    """What the guard lets through.

    Attributes:
        choice: fitted on all rows; where it was refused, of the first view alone.
        row_weights: `(sample, view)` or `(sample, view, class)`: of each held-out row, the weights
            of a choice that did not see it.
        before: how good the first view is alone.
        after: what was chosen, on the rows that it was chosen on.
        outside: what was chosen without the row, on each row.
        refused: it did not help on rows that it had not seen, so nothing is kept of it.
    """

    choice: ViewChoice
    row_weights: Floats
    before: Figures
    after: Figures
    outside: Figures
    refused: bool

    @property
    def kept(self) -> tuple[int, ...]:
        """Places of the views that are kept; `(0,)` where no view helps."""
        return self.choice.kept_

    def merge_held_out(self, outputs: Any) -> Array:
        """Merge outputs of the held-out rows, each by the weights that did not see it."""
        return merged_by_row(outputs, self.row_weights, self.choice)

    def merge(self, outputs: Any) -> Array:
        """Merge outputs of any other rows, `(view, sample, ..., class)`."""
        return self.choice.predict_proba(outputs)

    def report(self, names: Sequence[str], *, metric: str = "score") -> list[str]:
        """Return what was kept and what was not, with figures, a sentence each."""
        return _report(self, names, metric)


def guard_views(
    outputs: Any,
    labels: Any,
    choice: ViewChoice | None = None,
    *,
    folds: int = 5,
    groups: Any = None,
    seed: int = 0,
    trained: Any = None,
) -> Guarded:
    """Choose views on held-out rows, and keep none where that does not help on unseen ones.

    So what is kept is never worse on these rows than the first view alone, neither by its loss nor
    by the metric, where each row is answered by a choice that did not see it. Only "all" is a wish
    and no choice: it is reported, and not refused.

    Args:
        outputs: `(view, sample, ..., class)`, as `ViewChoice.fit` takes them; the first view is the
            input as it is.
        labels: `(sample, ...)`.
        choice: how views are chosen and merged; greedily, by the mean of probabilities, where None.
        folds: of cross-fitting.
        groups: `(sample,)`; a group is never cut.
        seed: deals rows into folds.
        trained: `(view, sample)` booleans, see `leaks.refuse_trained`.

    Raises:
        DataError: what does not fit; see `ViewChoice.fit` and `cross_fitting.cross_fitted`.

    Example:
        >>> draw = np.random.default_rng(0)
        >>> labels = draw.integers(0, 3, 90)
        >>> plain = 2 * np.eye(3)[labels] + draw.normal(size=(90, 3))
        >>> guarded = guard_views([plain, draw.normal(size=(90, 3))], labels)
        >>> guarded.kept, guarded.report(["identity", "noise"])[-1]
        ((0,), 'Left out: noise (calibrated NLL 0.4195 -> 0.6801).')
    """
    wanted = choice or ViewChoice()
    array, truth = stacked(outputs, 2), array_of(labels)
    fitted = _copy(wanted).fit(array, truth, trained=trained)
    rows = _row_weights(array, truth, fitted, folds, groups, seed)
    before = fitted.figures(merged(array, _plain(fitted), fitted), truth)
    after = fitted.figures(fitted.predict_proba(array), truth)
    outside = fitted.figures(merged_by_row(array, rows, fitted), truth)
    helps = outside.loss < before.loss and all(fitted.no_worse(f, before) for f in (after, outside))
    if fitted.choose == "all" or helps:
        return Guarded(fitted, rows, before, after, outside, False)
    refused = fitted.kept_ != (0,)
    fitted.kept_, fitted.weights_ = (0,), _plain(fitted)
    fitted.trials_ = tuple(trial._replace(kept=False) for trial in fitted.trials_)
    plain_rows = np.broadcast_to(fitted.weights_, rows.shape).copy()
    return Guarded(fitted, plain_rows, before, after, outside, refused)


class _Weights:
    """A choice whose answer is its weights, once a row: what cross-fitting is asked for."""

    def __init__(self, choice: ViewChoice) -> None:
        self.choice = _copy(choice)

    def fit(self, outputs: Array, labels: Array) -> Self:
        self.choice.fit(outputs, labels)
        return self

    def predict_proba(self, outputs: Array) -> Floats:
        weights = self.choice.weights_
        return np.broadcast_to(weights, (outputs.shape[1], *weights.shape))


def _row_weights(
    array: Array, labels: Array, choice: ViewChoice, folds: int, groups: Any, seed: int
) -> Floats:
    """Return each row's weights of a choice that did not see it."""
    if choice.choose == "all":
        return np.broadcast_to(choice.weights_, (array.shape[1], len(array))).copy()
    return cross_fitted(
        lambda: _Weights(choice), array, labels, folds=folds, groups=groups, seed=seed
    )


def _copy(choice: ViewChoice) -> ViewChoice:
    return ViewChoice(**choice.get_params())


def _plain(choice: ViewChoice) -> Floats:
    """Return the weights of the first view alone, in the shape of those that were fitted."""
    weights = np.zeros_like(choice.weights_)
    weights[0] = 1
    return weights


def _report(guarded: Guarded, names: Sequence[str], metric: str) -> list[str]:
    choice = guarded.choice

    def change(before: Figures, after: Figures) -> str:
        told = f"{LOSSES[choice.loss]} {before.loss:.4f} -> {after.loss:.4f}"
        if before.score is None or after.score is None:
            return told
        return f"{told}, {metric} {before.score:.4g} -> {after.score:.4g}"

    told = ", ".join(_weighed(choice, names, view) for view in choice.kept_)
    said = [f"Kept: {printable(told, 1000)}."]
    if choice.choose == "all":
        said.append(f"With all {change(guarded.before, guarded.after)} on validation.")
    elif choice.kept_ != (0,):
        chosen, unseen = (change(guarded.before, f) for f in (guarded.after, guarded.outside))
        said.append(
            f"With them {chosen} on validation, where they were chosen; {unseen} by choices that "
            "did not see the row."
        )
    if guarded.refused:
        said.append(
            "What was chosen did not help on rows that the choice had not seen "
            f"({change(guarded.before, guarded.outside)}), so nothing is kept of it."
        )
    out = [trial for trial in choice.trials_ if trial.view not in choice.kept_]
    if out:
        each = [f"{names[t.view]} ({change(t.before, t.after)})" for t in out]
        said.append(f"Left out: {printable(', '.join(each), 2000)}.")
    return said


def _weighed(choice: ViewChoice, names: Sequence[str], view: int) -> str:
    if choice.choose not in LEARNED:
        return names[view]
    weights = np.atleast_1d(choice.weights_[view])
    low, high = weights.min(), weights.max()
    return f"{names[view]} ({low:.2f}" + (f" to {high:.2f})" if high > low else ")")

"""Nested evaluation: each row is predicted by a combination that was fitted without it."""

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.classical import fold_rows
from polyfuse.errors import DataError
from polyfuse.fitting import Floats, array_of, stacked
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import one_of

Make = Callable[[], Any]
METHODS = ("predict_proba", "predict")


def cross_fitted(
    make: Any,
    predictions: Any,
    labels: Any,
    *,
    folds: int = 5,
    groups: Any = None,
    ordered: bool = False,
    seed: int = 0,
    trained: Any = None,
    inputs: Any = None,
    fit_options: Mapping[str, Any] | None = None,
    method: str = "predict_proba",
) -> Floats:
    """Return what a fitted combination says of each row when it was fitted without that row.

    A score on these is of rows that neither the members nor the fit saw, so it does not flatter.
    It is the score of the procedure on `(folds - 1) / folds` of the rows: the combination that is
    fitted on all of them is, if anything, a little better.

    Args:
        make: returns a combination to be fitted, anew for each fold; or a combination with
            `get_params`, which is copied and stays as it is.
        predictions: `(member, sample, ...)`, or a sequence of members. NaN where a member has no
            say: what is fitted decides about such rows (`uncovered="leave_out"`).
        labels: `(sample, ...)`.
        folds: number of parts that are held out in turn, balanced over classes where labels are.
        groups: `(sample,)`; a group is never cut. Handed on to a fit that takes `groups`.
        ordered: rows come in the order of time; each part is predicted by a fit on earlier rows.
        seed: shuffles rows into folds.
        trained: `(member, sample)` booleans: who trained on what. Such rows are refused here, and
            the mask is handed on to a fit that takes `trained`.
        inputs: `(sample, ...)`, handed to fit and predict where they are given.
        fit_options: handed to every fit as they are.
        method: "predict_proba", or "predict" for numbers.

    Returns:
        `(sample, ..., class)` float64, or `(sample, ...)`; NaN where no fold predicts.

    Raises:
        DataError: lengths that do not fit, rows that members trained on, more folds than rows or
            groups; what a fit refuses, with its fold.

    Example:
        >>> from polyfuse.simplex import SimplexWeights
        >>> draw = np.random.default_rng(0)
        >>> p, labels = draw.dirichlet(np.ones(3), (4, 90)), draw.integers(0, 3, 90)
        >>> outside = cross_fitted(SimplexWeights(), p, labels, folds=3)
        >>> outside.shape, bool(np.isnan(outside).any())
        ((90, 3), False)
    """
    one_of("method", method, METHODS)
    array, truth = stacked(predictions, 2), array_of(labels)
    given = {"groups": groups, "trained": trained, "inputs": inputs}
    known = {name: array_of(value) for name, value in given.items() if value is not None}
    _check_rows(array.shape[1], truth, known)
    refuse_trained(array, trained, "cross-fitting")
    rows, new = _Rows(array, truth, known), _factory(make)
    said: Floats | None = None
    for number, (fit_rows, held) in enumerate(rows.parts(folds, ordered, seed)):
        try:
            fitted = rows.fitted(new, fit_rows, fit_options or {})
        except DataError as error:
            title = f"fold {number} of {folds}, fitted on {len(fit_rows)} rows"
            raise DataError(f"{title}: {error}") from error
        answer = rows.predicted(getattr(fitted, method), held)
        said = np.full((len(truth), *answer.shape[1:]), np.nan) if said is None else said
        said[held] = answer
    if said is None:
        raise DataError(
            "no fold has rows to fit on, since the groups leave none; bring more groups"
        )
    return said


class _Rows(NamedTuple):
    """All rows, and what else is known of each: groups, inputs, who trained on it."""

    predictions: NDArray[Any]
    labels: NDArray[Any]
    known: Mapping[str, NDArray[Any]]

    def parts(
        self, folds: int, ordered: bool, seed: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the rows to fit on and those to predict."""
        classes = self.labels if self.labels.ndim == 1 and self.labels.dtype.kind in "iub" else None
        groups, count = self.known.get("groups"), len(self.labels)
        return fold_rows(count, folds, seed=seed, classes=classes, groups=groups, ordered=ordered)

    def fitted(self, new: Make, rows: NDArray[np.int64], options: Mapping[str, Any]) -> Any:
        """Return a new combination, fitted on these rows and what is known of them."""
        combination, own = new(), dict(options)
        takes = signature(combination.fit).parameters
        if "inputs" in self.known:
            own["inputs"] = self.known["inputs"][rows]
        if "groups" in self.known and "groups" in takes:
            own["groups"] = self.known["groups"][rows]
        if "trained" in self.known and "trained" in takes:
            own["trained"] = self.known["trained"][:, rows]
        return combination.fit(self.predictions[:, rows], self.labels[rows], **own)

    def predicted(self, predict: Callable[..., Any], rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return what is said of these rows."""
        beside = {"inputs": self.known["inputs"][rows]} if "inputs" in self.known else {}
        return np.asarray(predict(self.predictions[:, rows], **beside))


def _factory(make: Any) -> Make:
    """Return what makes a combination that nothing has fitted yet."""
    if hasattr(make, "get_params") and not isinstance(make, type):
        parameters = make.get_params(deep=False)
        return lambda: type(make)(**parameters)
    if not callable(make):
        raise DataError(
            f"expected a combination with get_params, or a function that makes one; got "
            f"{type(make).__name__}"
        )
    made: Make = make
    return made


def _check_rows(count: int, truth: NDArray[Any], known: Mapping[str, NDArray[Any]]) -> None:
    """Refuse labels, groups or inputs of another number of rows, all at once."""
    lengths = {"labels": truth.shape[:1]}
    lengths |= {name: known[name].shape[:1] for name in ("groups", "inputs") if name in known}
    faults = [
        f"{name} of {length[0] if length else 'no'} rows do not fit predictions of {count} rows; "
        "all need the same samples in the same order"
        for name, length in lengths.items()
        if length != (count,)
    ]
    if "groups" in known and known["groups"].ndim > 1:
        faults.append(f"groups must be (sample,), got shape {known['groups'].shape}")
    if faults:
        raise DataError("\n".join(faults))

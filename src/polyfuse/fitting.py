"""What is checked before anything is fitted on held-out predictions, and their weighted mean.

A row that some member has no say on (NaN) cannot be fitted on; it is refused, or left out on
request. All faults are told at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.errors import DataError
from polyfuse.parameters import one_of

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
TINY = float(np.finfo(np.float32).tiny)  # the least probability that is told from zero
_CHUNK = 1 << 15  # numbers a member that are widened at once
_SLACK = 0.01  # rows sum to one within this: half precision, or a CSV with three digits
_SHOWN = 5  # members whose faults are written out
_LOGITS = (
    "these look like logits; bring probabilities: "
    "torch.softmax(torch.as_tensor(logits), -1).numpy()"
)
_LOGS = "these look like log-probabilities; bring probabilities: np.exp(log_probabilities)"


class HeldOut(NamedTuple):
    """Predictions and labels of the rows that every member has a say on.

    Attributes:
        predictions: `(member, row, ..., class)` floating, as they came.
        labels: `(row, ...)`.
        sums: `(member, row, ...)` float64 sums over classes, by which probabilities are divided.
        covered: `(n,)` booleans: which of the rows that came these are.
    """

    predictions: NDArray[Any]
    labels: NDArray[Any]
    sums: Floats
    covered: NDArray[np.bool_]

    def gathered(self) -> Floats:
        """Return `(member, row)` probabilities of the true class; heads count as rows."""
        index = np.broadcast_to(self.labels[None, ..., None], (*self.sums.shape, 1))
        own = np.take_along_axis(self.predictions, index, -1)[..., 0].astype(np.float64)
        return (own / self.sums).reshape(len(own), -1)

    def normal(self) -> NDArray[Any]:
        """Return `(member, row, ..., class)` probabilities that sum to one, at least float32."""
        wide = np.result_type(self.predictions.dtype, np.float32)
        exact = 4 * self.predictions.shape[-1] * np.finfo(wide).eps
        if wide == self.predictions.dtype and (np.abs(self.sums - 1) <= exact).all():
            return self.predictions  # they do, in their own precision
        shares: NDArray[Any] = self.predictions / self.sums[..., None].astype(wide)
        return shares

    def flat(self) -> tuple[NDArray[Any], Labels]:
        """Return `normal()` as `(member, row, class)`, and labels; heads count as rows."""
        normal = self.normal()
        return normal.reshape(len(normal), -1, normal.shape[-1]), self.labels.reshape(-1)


def array_of(values: Any) -> NDArray[Any]:
    """Return an array as it is, and a tensor of any device and precision as an array.

    Example:
        >>> array_of(torch.tensor([1.5], dtype=torch.bfloat16)).dtype
        dtype('float32')
    """
    if isinstance(values, Tensor):
        plain = values.detach().cpu()
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return np.asarray(values)


def stacked(predictions: Any, least_axes: int = 3) -> NDArray[Any]:
    """Return members' predictions as one array.

    Args:
        predictions: `(member, sample, ...)`, or a sequence of `(sample, ...)`; arrays or tensors.
        least_axes: fewer are refused.

    Raises:
        DataError: members of several shapes, integers, too few axes, or an empty one.

    Example:
        >>> stacked([np.zeros((4, 3)), np.ones((4, 3))]).shape
        (2, 4, 3)
    """
    if isinstance(predictions, Sequence):
        members = [array_of(member) for member in predictions]
        shapes = [member.shape for member in members]
        odd = [i for i, shape in enumerate(shapes) if shape != shapes[0]]
        if odd:
            raise DataError(
                f"members 0 and {odd[0]} have predictions of shapes {shapes[0]} and "
                f"{shapes[odd[0]]}; all need the same samples and classes in the same order"
            )
        predictions = np.stack(members) if members else np.empty((0, 0, 0))
    array = array_of(predictions)
    if array.dtype.kind != "f" or array.ndim < least_axes or 0 in array.shape:
        axes = "(member, sample, class)" if least_axes == 3 else "(member, sample)"
        raise DataError(
            f"expected floating predictions {axes}, none empty; got {array.dtype} of shape "
            f"{array.shape}; stack members with np.stack(members), and binary probabilities p "
            "with np.stack([1 - p, p], -1)"
        )
    return array


def held_out(
    predictions: Any, labels: Any, *, uncovered: str = "error", space: str = "prob"
) -> HeldOut:
    """Check members' predictions of classes and their labels, and keep what all members cover.

    Args:
        predictions: `(member, sample, ..., class)`, or a sequence of `(sample, ..., class)`. NaN
            where a member has no say.
        labels: `(sample, ...)` integers below the number of classes.
        uncovered: "error", or "leave_out" for rows that some member has no say on.
        space: "prob" or "logit".

    Raises:
        DataError: predictions that are no probabilities, lengths that do not fit, labels in another
            coding, rows that a member has no say on; all at once.

    Example:
        >>> p = np.array([[[0.9, 0.1], [np.nan, np.nan]]])
        >>> held_out(p, np.array([0, 1]), uncovered="leave_out").labels
        array([0])
    """
    one_of("uncovered", uncovered, ["error", "leave_out"])
    one_of("space", space, ["prob", "logit"])
    array, truth = stacked(predictions), array_of(labels)
    sums = np.asarray(array.sum(-1, dtype=np.float64))
    covered = _covered(sums)
    faults = _label_faults(truth, array.shape)
    faults += _coverage_faults(covered, uncovered)
    values = _space_faults if space == "prob" else _logit_faults
    faults += values(array, sums, covered)
    if faults:
        raise DataError("\n".join(faults))
    if not covered.all():
        array, truth, sums = array[:, covered], truth[covered], sums[:, covered]
    return HeldOut(array, truth.astype(np.int64), sums, covered)


def held_out_values(predictions: Any, targets: Any, *, uncovered: str = "error") -> HeldOut:
    """Check members' predictions of numbers, and keep the rows that all members cover.

    Args:
        predictions: `(member, sample, ...)`, NaN where a member has no say.
        targets: `(sample, ...)` finite numbers.
        uncovered: "error", or "leave_out".

    Raises:
        DataError: lengths that do not fit, infinite numbers, uncovered rows; all at once.

    Example:
        >>> held_out_values(np.ones((2, 3)), np.zeros(3)).predictions.shape
        (2, 3)
    """
    one_of("uncovered", uncovered, ["error", "leave_out"])
    array, truth = stacked(predictions, 2), array_of(targets)
    sums = np.asarray(array.reshape(*array.shape[:2], -1).sum(-1, dtype=np.float64))
    covered = _covered(sums)
    faults = _coverage_faults(covered, uncovered)
    if truth.shape != array.shape[1:]:
        faults.append(
            f"targets of shape {truth.shape} do not fit predictions of {array.shape[1:]} a member; "
            "both need the same samples in the same order"
        )
    elif truth.dtype.kind not in "iufb" or not np.isfinite(truth).all():
        faults.append("targets must be finite numbers; leave out rows that have none")
    if np.isinf(sums).any():
        faults.append(
            f"members {_names(np.asarray(np.isinf(sums).any(1)))} predict infinite numbers"
        )
    if faults:
        raise DataError("\n".join(faults))
    return HeldOut(array[:, covered], truth[covered].astype(np.float64), sums, covered)


def pooled(predictions: Any, weights: Floats) -> Floats:
    """Return members' weighted mean probabilities, each member's rows summing to one first.

    Args:
        predictions: `(member, sample, ..., class)` probabilities; NaN where a member has no say:
            the weights of the others are scaled up. Rows that none has a say on are NaN.
        weights: `(member,)`, or `(member, class)`; not negative.

    Raises:
        DataError: weights of another number of members, or predictions that are no probabilities.

    Example:
        >>> pooled(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.array([0.75, 0.25])).tolist()
        [[0.75, 0.25]]
    """
    array = stacked(predictions)
    check_count(array, weights)
    if weights.ndim == 2 and array.shape[-1] != weights.shape[1]:
        raise DataError(
            f"predictions of {array.shape[-1]} classes do not fit weights of {weights.shape[1]}"
        )
    total = np.zeros(array.shape[1:])
    for number in np.flatnonzero(weights.reshape(len(weights), -1).any(1)):
        member, weight = array[number], weights[number]
        sums = check_scores(member)
        said = ~np.isnan(sums)
        np.add(total, member * (weight / sums[..., None]), out=total, where=said[..., None])
    with np.errstate(invalid="ignore"):
        shares: Floats = total / total.sum(-1, keepdims=True)
    return shares


def check_scores(scores: NDArray[Any], space: str = "prob") -> Floats:
    """Refuse one member's scores that are no probabilities, or no logits; NaN rows may be there.

    Args:
        scores: `(sample, ..., class)` floating.
        space: "prob" or "logit".

    Returns:
        `(sample, ...)` sums over classes.

    Raises:
        DataError: negative values, sums that are not 1, logits that fit no softmax.

    Example:
        >>> check_scores(np.array([[0.5, 0.5]])).tolist()
        [1.0]
    """
    array = stacked(scores[None])
    sums = np.asarray(array.sum(-1, dtype=np.float64))
    values = _space_faults if space == "prob" else _logit_faults
    faults = values(array, sums, _covered(sums))
    if faults:
        raise DataError("\n".join(faults))
    own: Floats = sums[0]
    return own


def check_labels(labels: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse labels that do not fit predictions of this shape, `(member, sample, ..., class)`.

    Raises:
        DataError: no integers, another shape, or numbers that are no classes.

    Example:
        >>> check_labels(np.array([0, 2]), (5, 2, 3))
    """
    faults = _label_faults(labels, shape)
    if faults:
        raise DataError("\n".join(faults))


def error_products(values: NDArray[Any], truth: NDArray[Any]) -> Floats:
    """Return the inner products of members' errors, from which the loss of any mean follows.

    Args:
        values: `(member, number)`.
        truth: `(number,)`.

    Returns:
        `(member, member)` float64: the squared error of `w @ values` is `w @ this @ w`.

    Example:
        >>> error_products(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([0.0, 1.0])).tolist()
        [[2.0, -1.0], [-1.0, 1.0]]
    """
    products = np.zeros((len(values), len(values)))
    for start in range(0, len(truth), _CHUNK):
        part = slice(start, start + _CHUNK)
        errors = values[:, part].astype(np.float64) - truth[part]
        products += errors @ errors.T
    return products


def mean_of_numbers(predictions: Any, weights: Floats) -> Floats:
    """Return the members' weighted mean of plain numbers; those without a weight have no say.

    Args:
        predictions: `(member, sample, ...)`.
        weights: `(member,)`.

    Raises:
        DataError: weights of another number of members, or predictions that are no stack.

    Example:
        >>> mean_of_numbers(np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([0.5, 0.5])).tolist()
        [2.0, 4.0]
    """
    array = stacked(predictions, 2)
    check_count(array, weights)
    used = weights > 0
    return np.asarray(np.tensordot(weights[used], array[used], 1))


def check_count(predictions: NDArray[Any], weights: Floats) -> None:
    """Refuse predictions of another number of members than there are weights.

    Raises:
        DataError: the numbers differ.

    Example:
        >>> check_count(np.ones((2, 4, 3)), np.ones(2))
    """
    if len(predictions) != len(weights):
        raise DataError(
            f"predictions of {len(predictions)} members do not fit {len(weights)} weights; bring "
            "the members it was fitted on, in the same order"
        )


def _covered(sums: Floats) -> NDArray[np.bool_]:
    gone = np.isnan(sums).any(0).reshape(sums.shape[1], -1)
    return np.asarray(~gone.any(1))


def _label_faults(labels: NDArray[Any], shape: tuple[int, ...]) -> list[str]:
    if labels.dtype.kind not in "iub":
        return [
            f"labels are {labels.dtype}, not integers; number the classes as the predictions' "
            "columns are: names, labels = np.unique(labels, return_inverse=True)"
        ]
    faults = []
    if labels.shape != shape[1:-1]:
        faults.append(
            f"labels of shape {labels.shape} do not fit predictions of {shape[1:]} a member; both "
            "need the same samples in the same order"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < shape[-1]:
        faults.append(
            f"labels from {labels.min()} to {labels.max()} do not fit {shape[-1]} classes, which "
            f"are numbered 0 to {shape[-1] - 1}"
        )
    return faults


def _coverage_faults(covered: NDArray[np.bool_], uncovered: str) -> list[str]:
    gone = int((~covered).sum())
    if gone == len(covered):
        return [
            f"none of the {gone} rows is covered by every member (NaN: a member has no say); bring "
            "rows that all of them predicted, or join the fold members of a model into one member"
        ]
    if gone and uncovered == "error":
        return [
            f"{gone} of {len(covered)} rows are not covered by every member (NaN: a member has no "
            'say); bring their predictions, or leave these rows out: uncovered="leave_out"'
        ]
    return []


def _space_faults(array: NDArray[Any], sums: Floats, covered: NDArray[np.bool_]) -> list[str]:
    """Tell which members' predictions are no probabilities, and what they look like."""
    if not covered.any():
        return []
    said = sums if covered.all() else sums[:, covered]
    off = np.asarray(~(np.abs(said - 1) <= _SLACK))
    faults = []
    for number, member in enumerate(array):
        lowest = np.fmin.reduce(member, axis=None)
        if lowest >= 0 and not off[number].any():
            continue
        highest = np.fmax.reduce(member, axis=None)
        hint = _LOGITS if highest > 0 else _LOGS
        hint = hint if lowest < 0 else "divide each row by its sum, or bring probabilities"
        faults.append(
            f"member {number} has no probabilities: values from {lowest:.3g} to {highest:.3g}, "
            f"{off[number].sum()} rows that do not sum to 1; {hint}"
        )
    more = [f"... and {len(faults) - _SHOWN} more members"] if len(faults) > _SHOWN else []
    return faults[:_SHOWN] + more


def _logit_faults(array: NDArray[Any], sums: Floats, covered: NDArray[np.bool_]) -> list[str]:
    """Tell which members' logits fit no softmax: +inf, or nothing but -inf."""
    if np.isfinite(sums).all():
        return []
    bad = np.isposinf(array).any(-1) | np.isneginf(array).all(-1)
    broken = np.asarray(np.any(bad.reshape(len(array), -1), axis=1))
    if not broken.any():
        return []
    return [
        f"members {_names(broken)} have logits of +inf, or rows of -inf alone, which are no "
        "distribution; repair the model"
    ]


def _names(mask: NDArray[np.bool_]) -> str:
    return ", ".join(map(str, np.flatnonzero(mask).tolist()))

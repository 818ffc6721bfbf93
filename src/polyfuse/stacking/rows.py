"""What comes in, checked: members' predictions or plain features, labels, and inputs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import (
    Floats,
    array_of,
    check_scores,
    held_out,
    held_out_values,
    stacked,
)

_NUMBERS = "iufbO"  # kinds of dtypes; objects may be numbers
TARGETS = ("classes", "numbers")


class FeatureError(DataError, ValueError):
    """Plain features that do not fit; a ValueError, too, as scikit-learn wants it."""


class Rows(NamedTuple):
    """Rows to fit on.

    Attributes:
        members: `(member, row, head, class)` float64 of the covered rows; of numbers the last axis
            is 1 and outputs are heads; of plain features `(feature, row, 1, 1)`.
        targets: `(row, head)` integers 0 to K - 1, or numbers.
        covered: `(n,)` booleans: which of the rows that came these are.
        shape: of a sample: `(member, ..., class)`, `(member, ...)` or `(feature,)`.
        classes: `(class,)` labels, or None for numbers.
    """

    members: Floats
    targets: NDArray[Any]
    covered: NDArray[np.bool_]
    shape: tuple[int, ...]
    classes: NDArray[Any] | None


def is_plain(predictions: Any, target: str) -> bool:
    """Tell whether these are plain features `(sample, feature)`, not members' predictions.

    Example:
        >>> is_plain(np.zeros((5, 2)), "classes"), is_plain(np.zeros((5, 2)), "numbers")
        (True, False)
    """
    if target != "classes" or _is_sparse(predictions):
        return target == "classes"
    if isinstance(predictions, Sequence) and len(predictions) and np.ndim(predictions[0]) > 1:
        return False
    return array_of(predictions).ndim <= 2


def is_plain_shape(shape: tuple[int, ...], target: str) -> bool:
    """Tell whether a stacking of such samples was fitted on plain features."""
    return target == "classes" and len(shape) == 1


def groups_of(groups: Any, count: int) -> NDArray[Any] | None:
    """Return groups `(row,)`, if there are any.

    Raises:
        DataError: another number of rows.

    Example:
        >>> groups_of([1, 1, 2], 3).tolist()
        [1, 1, 2]
    """
    if groups is None:
        return None
    array = array_of(groups)
    if array.shape != (count,):
        raise DataError(f"groups of shape {array.shape} do not fit {count} rows: one a row")
    return array


def rows_of(predictions: Any, labels: Any, target: str, uncovered: str) -> Rows:
    """Check predictions and labels of rows to fit on.

    Args:
        predictions: `(member, sample, ..., class)` probabilities; for numbers
            `(member, sample, ...)`; or plain features `(sample, feature)` of classes.
        labels: `(sample, ...)`.
        target: "classes" or "numbers".
        uncovered: "leave_out" or "error".

    Raises:
        DataError: what does not fit, all at once; see `fitting.held_out`.

    Example:
        >>> rows_of(np.full((2, 3, 4), 0.25), np.array([0, 1, 3]), "classes", "error").members.shape
        (2, 3, 1, 4)
    """
    if is_plain(predictions, target):
        return _plain_rows(predictions, labels)
    check = held_out if target == "classes" else held_out_values
    rows = check(predictions, labels_of(labels), uncovered=uncovered)
    array = rows.normal() if target == "classes" else rows.predictions
    members = as_heads(array, target)
    shape = (len(array), *array.shape[2:])
    classes = np.arange(array.shape[-1]) if target == "classes" else None
    targets = rows.labels.reshape(members.shape[1:3])
    return Rows(members, targets, rows.covered, shape, classes)


def as_heads(array: NDArray[Any], target: str) -> Floats:
    """Return predictions as `(member, row, head, class)` float64; numbers have one class."""
    last = array.shape[-1] if target == "classes" else 1
    heads = int(np.prod(array.shape[2:])) // last
    return array.reshape(*array.shape[:2], heads, last).astype(np.float64)


def members_of(
    predictions: Any, target: str, shape: tuple[int, ...]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Check predictions of new rows.

    Args:
        predictions: of the same members, in the same order; or features, where those were fitted.
        target: "classes" or "numbers".
        shape: of a sample, see `Rows`.

    Returns:
        `(member, row, head, class)` of the covered rows, and `(n,)` which these are.

    Raises:
        DataError: other members, classes or features; no probabilities; infinite numbers.
    """
    if is_plain(predictions, target):
        array = features_of(predictions)
        got: tuple[int, ...] = array.shape[1:]
    else:
        array = stacked(predictions, 3 if target == "classes" else 2)
        got = (len(array), *array.shape[2:])
    if got != shape and len(got) == len(shape) == 1:
        raise FeatureError(
            f"X has {got[0]} features, but stacking is expecting {shape[0]} features as input; "
            "bring those it was fitted on"
        )
    if got != shape:
        raise DataError(
            f"predictions whose samples are {_named(got)} do not fit what was fitted, "
            f"{_named(shape)}; bring the same members in the same order"
        )
    if is_plain_shape(shape, target):
        return array.T[:, :, None, None], np.ones(len(array), bool)
    with np.errstate(invalid="ignore"):
        sums = array.reshape(*array.shape[:2], -1).sum(-1, dtype=np.float64)
    covered = np.asarray(~np.isnan(sums).any(0))
    if target == "classes":
        array = array / np.stack([check_scores(member) for member in array])[..., None]
    elif np.isinf(sums).any():
        raise DataError("members predict infinite numbers; leave these rows out, or clip them")
    return as_heads(array[:, covered], target), covered


def features_of(values: Any) -> Floats:
    """Return plain features as `(sample, feature)` float64.

    Raises:
        DataError: other axes, none, or no finite numbers.

    Example:
        >>> features_of([[1, 2], [3, 4]]).dtype
        dtype('float64')
    """
    if _is_sparse(values):
        raise FeatureError("features are sparse; bring them dense: features.toarray()")
    array = array_of(values)
    if array.ndim != 2 or 0 in array.shape:
        fix = "Reshape your data: one sample is features[None]"
        if array.shape[-1:] == (0,):
            fix = f"0 feature(s) (shape={array.shape}) while a minimum of 1 is required: bring some"
        raise FeatureError(f"expected features (sample, feature), got shape {array.shape}; {fix}")
    if array.dtype.kind not in _NUMBERS:
        raise FeatureError(
            f"features must be real numbers, got {array.dtype}. Complex data not supported, nor is "
            "text; encode it first"
        )
    wide: Floats = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise FeatureError("features hold NaN or inf; fill them in, or leave these rows out")
    return wide


def labels_of(labels: Any) -> NDArray[Any]:
    """Return labels as an array.

    Raises:
        FeatureError: there are none.

    Example:
        >>> labels_of([0, 1]).tolist()
        [0, 1]
    """
    if labels is None:
        raise FeatureError("this requires y to be passed, but the target y is None: bring labels")
    return array_of(labels)


def _plain_rows(values: Any, labels: Any) -> Rows:
    features, truth = features_of(values), labels_of(labels)
    if truth.shape != (len(features),):
        raise FeatureError(f"labels of shape {truth.shape} do not fit {len(features)} samples")
    if truth.dtype.kind == "f":
        _check_codes(truth)
    classes, codes = np.unique(truth, return_inverse=True)
    covered = np.ones(len(features), bool)
    members = features.T[:, :, None, None]
    return Rows(members, codes[:, None], covered, (features.shape[1],), classes)


def _check_codes(labels: NDArray[Any]) -> None:
    """Refuse labels that are no classes: NaN, infinite, or measured."""
    if not np.isfinite(labels).all():
        raise FeatureError("Input y contains NaN or infinity: label these rows, or leave them out")
    if (labels != np.round(labels)).any():
        raise FeatureError(
            "Unknown label type: continuous; stack numbers as (member, sample) with "
            'target="numbers"'
        )


def _is_sparse(values: Any) -> bool:
    return hasattr(values, "tocsr")


def _named(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} features" if len(shape) == 1 else f"{shape[0]} members of {shape[1:]}"

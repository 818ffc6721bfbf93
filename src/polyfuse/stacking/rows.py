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

TARGETS = ("classes", "numbers")


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
    stack = isinstance(predictions, Sequence) and np.ndim(predictions[0] if predictions else 0) > 1
    return target == "classes" and not stack and array_of(predictions).ndim == 2


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
    rows = check(predictions, labels, uncovered=uncovered)
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
        array, got = features_of(predictions), (np.shape(predictions)[1],)
    else:
        array = stacked(predictions, 3 if target == "classes" else 2)
        got = (len(array), *array.shape[2:])
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
    array = array_of(values)
    if array.dtype.kind not in "iufbO" or array.ndim != 2 or 0 in array.shape:
        raise DataError(
            f"expected features (sample, feature), got {array.dtype} of shape {array.shape}, with "
            f"0 feature(s) or samples or of complex or other kind"
        )
    wide: Floats = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise DataError("features hold NaN or inf; fill them in, or leave these rows out")
    return wide


def _plain_rows(values: Any, labels: Any) -> Rows:
    features, truth = features_of(values), array_of(labels)
    if truth.shape != (len(features),):
        raise DataError(f"labels of shape {truth.shape} do not fit {len(features)} samples")
    classes, codes = np.unique(truth, return_inverse=True)
    covered = np.ones(len(features), bool)
    members = features.T[:, :, None, None]
    return Rows(members, codes[:, None], covered, (features.shape[1],), classes)


def _named(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} features" if len(shape) == 1 else f"{shape[0]} members of {shape[1:]}"

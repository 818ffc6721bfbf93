"""What measures of diversity share: checked predictions as decisions, rightness or errors."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def decided(predictions: NDArray[Any]) -> Labels:
    """Return `(member, case)` int64 classes."""
    scored = predictions.dtype.kind == "f"
    check(predictions, predictions.shape[1:-1] if scored else predictions.shape[1:], None)
    classes = predictions.argmax(-1) if scored else predictions
    cases: Labels = classes.reshape(len(classes), -1).astype(np.int64)
    return cases


def right(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Return `(member, case)` 1.0 where right and 0.0 where wrong."""
    scored = predictions.dtype.kind == "f"
    check(predictions, predictions.shape[1:-1] if scored else predictions.shape[1:], labels)
    hits: Floats = (decided(predictions) == labels.ravel()).astype(np.float64)
    return hits


def errors_of(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Return `(member, case)` residuals of numbers, or 1.0 where a class is wrong."""
    if labels.dtype.kind == "f":
        check(predictions, predictions.shape[1:], labels)
        residuals: Floats = (predictions - labels.astype(np.float64)).reshape(len(predictions), -1)
        return residuals
    return 1 - right(predictions, labels)


def error_covariance(errors: Floats) -> Floats:
    """Return the covariance `(member, member)` of `(member, case)` errors, over all cases."""
    errors = errors - errors[:, :1]  # so that an error that never changes varies by exactly nothing
    centred = errors - errors.mean(1, keepdims=True)
    covariance: Floats = centred @ centred.T / errors.shape[1]
    return covariance


def share_of(weights: NDArray[Any] | None, members: int) -> Floats:
    """Return the members' shares: weights of 0 or more, scaled to sum to one."""
    if weights is None:
        return np.full(members, 1 / members)
    given = np.asarray(weights, np.float64)
    if given.shape != (members,) or not (given >= 0).all() or not 0 < given.sum() < np.inf:
        raise DataError(
            f"expected {members} weights of 0 or more, not all 0; got {given.size} of them: "
            f"{given.tolist()}"
        )
    share: Floats = given / given.sum()
    return share


def weighted(share: Floats, values: Floats) -> Floats:
    """Return the weighted sum over members."""
    total: Floats = np.tensordot(share, values, 1)
    return total


def check(predictions: NDArray[Any], samples: tuple[int, ...], labels: NDArray[Any] | None) -> None:
    """Refuse what is no stack of members' predictions of these labels.

    Raises:
        DataError: no members, NaN, labels that do not fit.
    """
    faults = []
    if predictions.ndim < 2 or not predictions.size:
        faults.append(
            f"expected members stacked along the first axis, none empty; got "
            f"{predictions.dtype} of shape {predictions.shape}: np.stack(predictions)"
        )
    if labels is not None and labels.shape != samples:
        faults.append(
            f"predictions of {predictions.shape} do not fit labels of {labels.shape}; "
            "both need the same samples in the same order"
        )
    if np.isnan(predictions).any():
        faults.append("predictions have NaN; leave out the rows that a member has no say on")
    if faults:
        raise DataError("; ".join(faults))

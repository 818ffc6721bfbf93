"""One layout for all: members' numbers as probabilities, over a last axis of classes."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.combining.base import KINDS
from polyfuse.errors import DataError, printable
from polyfuse.fitting import check_scores
from polyfuse.predictions import Predictions

Array = NDArray[Any]
_TINY = float(np.finfo(np.float32).tiny)


def as_probabilities(member: Predictions, kind: str) -> Predictions:
    """Return a member whose logits or log-probabilities became probabilities that sum to one.

    Decided labels, and numbers that are no classes, stay as they are.

    Args:
        member: in the shape of its task, its space known.
        kind: of the task.

    Raises:
        DataError: what are no probabilities, no finite numbers, or NaN in part of a row.

    Example:
        >>> member = Predictions(name="a", array=np.array([[0.0, 0.0]]), space="logit")
        >>> as_probabilities(member, "multiclass").array.tolist()
        [[0.5, 0.5]]
    """
    member = replace(member, facts={**member.facts, "space": member.space})  # that it came in
    if member.space == "label":
        return member
    wide = member.array.astype(np.result_type(member.array.dtype, np.float32), copy=False)
    _refuse_parts(wide, member)
    if not KINDS[kind].classes:
        _refuse_infinite(wide, member)
        return member.noted(array=wide)
    if kind == "multilabel":
        return member.noted(array=_of_labels(wide, member), space="prob")
    return member.noted(array=_of_classes(wide, member), space="prob")


def laid_out(member: Predictions, kind: str, classes: int) -> Array:
    """Return `(row, ..., class)` probabilities, or numbers as they are.

    Args:
        member: as `as_probabilities` returns it.
        kind: of the task.
        classes: number of them, for members that say classes.

    Raises:
        DataError: classes that are not among them.

    Example:
        >>> member = Predictions(name="a", array=np.array([1, 0]), space="label")
        >>> laid_out(member, "multiclass", 2).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    said = member.array
    if member.space != "label":
        return np.stack([1 - said, said], -1) if kind == "multilabel" else said
    if not 0 <= said.min() <= said.max() < classes:
        raise DataError(
            f"'{printable(member.name)}' says classes from {said.min()} to {said.max()}, and there "
            f"are {classes}, numbered from 0"
        )
    return np.asarray(np.eye(classes, dtype=np.float32)[said])


def _of_labels(wide: Array, member: Predictions) -> Array:
    """Return the probability of each label by itself."""
    if member.space == "logit":
        return np.asarray(_softmax(np.stack([np.zeros_like(wide), wide], -1))[..., 1])
    yes = np.exp(wide) if member.space == "log_prob" else wide
    _check(np.stack([1 - yes, yes], -1), member)
    return yes


def _of_classes(wide: Array, member: Predictions) -> Array:
    """Return probabilities over the last axis."""
    if member.space == "logit":
        return _softmax(wide)
    p = np.exp(wide) if member.space == "log_prob" else wide
    sums = _check(p, member)
    exact = 4 * p.shape[-1] * np.finfo(p.dtype).eps
    close = (np.abs(sums - 1) <= exact) | np.isnan(sums)
    return p if close.all() else np.asarray(p / sums[..., None].astype(p.dtype))


def _softmax(logits: Array) -> Array:
    """Return probabilities, none of them so small that its logarithm is lost."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(np.maximum(raised / raised.sum(-1, keepdims=True), _TINY))


def _check(p: Array, member: Predictions) -> NDArray[np.float64]:
    try:
        return check_scores(p)
    except DataError as error:
        raise DataError(str(error).replace("member 0", f"'{printable(member.name)}'")) from None


def _refuse_parts(wide: Array, member: Predictions) -> None:
    gone = np.isnan(wide.reshape(len(wide), -1))
    partly = int((gone.any(1) & ~gone.all(1)).sum())
    if partly:
        raise DataError(
            f"'{printable(member.name)}' has NaN in part of {partly} rows; repair them, or fill "
            "the whole row with NaN where the member has no say"
        )


def _refuse_infinite(wide: Array, member: Predictions) -> None:
    infinite = int(np.isinf(wide).sum())
    if infinite:
        raise DataError(
            f"'{printable(member.name)}' has {infinite} infinite numbers; repair the model, or "
            "leave that member out"
        )

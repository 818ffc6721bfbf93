"""Combine the predictions of several members: means and votes, pure functions over arrays.

Each takes `(member, sample, ..., class)` logits and returns `(sample, ..., class)` probabilities
(floating) or `(sample, ...)` decided classes (int64). NumPy in, NumPy out; torch in, torch out on
the same device. `COMBINERS` is the one list of names that recipes may use.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.errors import DataError

Array = TypeVar("Array", NDArray[Any], Tensor)


def mean_probability(logits: Array) -> Array:
    """Average the members' probabilities: `p = 1/M sum_m softmax(z_m)`.

    NLL and Brier score of the result are never worse than the members' mean (Jensen).

    Args:
        logits: `(member, sample, ..., class)`, floating.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: no members, fewer than three axes, or integers.

    Example:
        >>> mean_probability(np.array([[[0.0, 0.0]], [[9.0, -9.0]]])).round(2).tolist()
        [[0.75, 0.25]]
    """
    return _narrow(_softmax(_widened(logits)).mean(0), logits)


def mean_logit(logits: Array) -> Array:
    """Average the members' logits, then softmax: the renormalised geometric mean (Hinton 2002).

    Args:
        logits: `(member, sample, ..., class)`, floating.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: no members, fewer than three axes, or integers.

    Example:
        >>> mean_logit(np.array([[[0.0, 0.0]], [[2.0, -2.0]]])).round(2).tolist()
        [[0.88, 0.12]]
    """
    return _narrow(_softmax(_widened(logits).mean(0)), logits)


def hard_vote(logits: Array) -> Array:
    """Let each member vote for its best class, at every position by itself.

    Ties go to the class with the larger summed probability, then to the smaller label.

    Args:
        logits: `(member, sample, ..., class)`, floating.

    Returns:
        `(sample, ...)` int64 classes.

    Raises:
        DataError: no members, fewer than three axes, or integers.

    Example:
        >>> hard_vote(np.array([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])).tolist()
        [1]
    """
    wide = _widened(logits)
    # A mean probability is at most 1, so less than half of it never outweighs a vote.
    merit = _one_hot(wide).sum(0) + _softmax(wide).mean(0) * 0.49
    classes: Array = merit.argmax(-1)
    return classes


COMBINERS: dict[str, Callable[..., Any]] = {
    "mean_probability": mean_probability,
    "mean_logit": mean_logit,
    "hard_vote": hard_vote,
}


def check_members(logits: Any, axes: int = 3) -> None:
    """Refuse what is no stack of members' logits.

    Raises:
        DataError: not an array, fewer than `axes` axes, an empty axis, or integers.
    """
    if not isinstance(logits, np.ndarray | Tensor):
        raise DataError(
            f"expected a NumPy array or torch tensor of logits, got {type(logits).__name__}; "
            "stack the members first: np.stack(logits)"
        )
    floating = (
        logits.is_floating_point() if isinstance(logits, Tensor) else logits.dtype.kind == "f"
    )
    if logits.ndim < axes or 0 in logits.shape or not floating:
        raise DataError(
            f"expected floating logits with {axes} or more axes (member, sample, ..., class), none "
            f"empty; got {logits.dtype} of shape {tuple(logits.shape)}"
        )


def _widened(logits: Array) -> Array:
    """Return checked logits in the precision to sum in: float64 stays, all else is float32."""
    check_members(logits)
    if isinstance(logits, Tensor):
        return logits if logits.dtype == torch.float64 else logits.float()
    return logits if logits.dtype == np.float64 else logits.astype(np.float32)


def _narrow(result: Array, like: Array) -> Array:
    """Round once, to the precision that came in."""
    if isinstance(result, Tensor):
        return result.to(like.dtype)
    return result.astype(like.dtype)


def _softmax(logits: Array) -> Array:
    """Return softmax over the last axis, in either library."""
    if isinstance(logits, Tensor):
        return logits.softmax(-1)
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    share: Array = raised / raised.sum(-1, keepdims=True)
    return share


def _one_hot(logits: Array) -> Array:
    """Return 1 at the first largest entry of the last axis and 0 elsewhere, as `logits`' dtype."""
    if isinstance(logits, Tensor):
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    votes: Array = np.eye(logits.shape[-1], dtype=logits.dtype)[logits.argmax(-1)]
    return votes

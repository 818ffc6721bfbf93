"""Members' predictions as columns for a meta-model, and the fold members of one model as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.fitting import Floats, array_of, stacked
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import one_of

FEATURES = ("log_prob", "logit", "prob")


def as_columns(members: Floats, kind: str, clip: float, drop_column: bool) -> Floats:
    """Return predictions as the columns that a meta-model learns from.

    Args:
        members: `(member, row, head, class)` probabilities that sum to one.
        kind: "log_prob", "logit" (`log p / (1 - p)` of each class by itself) or "prob".
        clip: probabilities nearer to 0 (for "logit" also to 1) are taken as this near.
        drop_column: of two classes leave out the first where it says what the second does: p and
            1 - p, or a logit and its negative. Logarithms of the two say different things.

    Returns:
        `(head, row, member * class)` float64, members one after another.

    Example:
        >>> p = np.array([[[[0.25, 0.75]]], [[[1.0, 0.0]]]])
        >>> as_columns(p, "prob", 0.01, True).tolist()
        [[[0.75, 0.0]]]
        >>> as_columns(p, "log_prob", 0.01, True).round(2).tolist()
        [[[-1.39, -0.29, 0.0, -4.61]]]
    """
    if drop_column and members.shape[-1] == 2 and kind != "log_prob":
        members = members[..., 1:]
    if kind == "log_prob":
        members = np.log(np.maximum(members, clip))
    elif kind == "logit":
        inside = np.clip(members, clip, 1 - clip)
        members = np.log(inside) - np.log1p(-inside)
    return _side_by_side(members)


def as_values(members: Floats) -> Floats:
    """Return `(member, row, output)` numbers as `(output, row, member)` columns.

    Example:
        >>> as_values(np.array([[[1.0], [2.0]], [[3.0], [4.0]]])).tolist()
        [[[1.0, 3.0], [2.0, 4.0]]]
    """
    return _side_by_side(members[..., None])


def beside(columns: Floats, inputs: Floats | None) -> Floats:
    """Return columns with the inputs after them, the same for every head.

    Args:
        columns: `(head, row, column)`.
        inputs: `(row, feature)`, or None.

    Example:
        >>> beside(np.zeros((2, 3, 1)), np.ones((3, 4))).shape
        (2, 3, 5)
    """
    if inputs is None:
        return columns
    heads = np.broadcast_to(inputs, (len(columns), *inputs.shape))
    return np.concatenate([columns, heads], -1)


def join_folds(
    predictions: Any,
    base_of_member: Sequence[Any],
    *,
    refits: Any = None,
    use: str = "mean",
    trained: Any = None,
) -> NDArray[np.float64]:
    """Join the fold members of each base model to one member: the mean of those that have a say.

    A row that one fold member predicted keeps its prediction; what K repeats or test rows got from
    several is averaged; a row that none has a say on stays NaN.

    Args:
        predictions: `(member, sample, ...)` floating, or a sequence of members; NaN where a member
            has no say.
        base_of_member: name or number of each member's base model.
        refits: `(member,)` booleans: trained once more on all rows, after the folds. Of test rows
            either they or the fold members speak; out of fold, only fold members can.
        use: "mean" of the fold members, or "refit".
        trained: `(member, sample)` booleans; refused where a member that is used has a say and
            trained.

    Returns:
        `(base model, sample, ...)` float64, in the order in which base models first come.

    Raises:
        DataError: another number of names than members, predictions that are no stack, a base
            model with no member to use, or rows that members trained on.

    Example:
        >>> nan = float("nan")
        >>> join_folds(np.array([[0.2, nan, nan], [nan, 0.4, nan], [1.0, 1.0, 1.0]]), "aab")
        array([[0.2, 0.4, nan],
               [1. , 1. , 1. ]])
    """
    array, names = stacked(predictions, 2), list(base_of_member)
    one_of("use", use, ("mean", "refit"))
    again = np.zeros(len(array), bool) if refits is None else array_of(refits)
    if len(names) != len(array) or again.shape != (len(array),) or again.dtype != bool:
        raise DataError(
            f"{len(names)} base models and refits {again.dtype} of shape {again.shape} do not fit "
            f"{len(array)} members; name one base model a member, and refits by booleans"
        )
    used = again if use == "refit" else ~again
    own = {base: [i for i in np.flatnonzero(used) if names[i] == base] for base in names}
    lacking = [printable(base, 40) for base, members in own.items() if not members]
    if lacking:
        raise DataError(f'use="{use}" finds no member of base model {", ".join(lacking)}')
    if trained is not None:
        refuse_trained(array[used], array_of(trained)[used], "what learns from these")
    return np.stack([_mean_of_said([array[i] for i in members]) for members in own.values()])


def input_columns(inputs: Any, count: int) -> Floats:
    """Return inputs as `(row, feature)` float64.

    Raises:
        DataError: another number of rows, no numbers, or numbers that are not finite.

    Example:
        >>> input_columns(np.zeros((3, 2, 2)), 3).shape
        (3, 4)
    """
    array = array_of(inputs)
    if array.ndim < 2 or len(array) != count or array.dtype.kind not in "iufb":
        raise DataError(
            f"inputs must be {count} rows of numbers (sample, feature), in the predictions' order; "
            f"got {array.dtype} of shape {array.shape}"
        )
    flat: Floats = array.reshape(count, -1).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(flat).all(1))
    if len(bad):
        raise DataError(
            f"{len(bad)} rows of inputs are not finite, row {bad[0]} the first; fill them in"
        )
    return flat


def _side_by_side(members: Floats) -> Floats:
    """Return `(member, row, head, class)` as `(head, row, member * class)`."""
    turned = members.transpose(2, 1, 0, 3)
    return np.ascontiguousarray(turned.reshape(*turned.shape[:2], -1))


def _mean_of_said(members: Sequence[NDArray[Any]]) -> Floats:
    """Return the mean over members without NaN, which has no warning where all are NaN."""
    total, count = np.zeros(members[0].shape), np.zeros(members[0].shape)
    for member in members:
        said = ~np.isnan(member)
        np.add(total, member, out=total, where=said)
        count += said
    with np.errstate(invalid="ignore"):
        mean: Floats = total / count
    return mean

"""Probable label errors: rows where the members agree, confidently, against the label."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse import tables
from polyfuse.errors import DataError
from polyfuse.fitting import Floats, array_of, check_labels, check_scores, stacked


class LabelError(NamedTuple):
    """A row whose label is probably wrong.

    Attributes:
        row: its number.
        label: as given.
        suggested: the class with the largest mean probability.
        score: `margin * agreement`, by which rows are ranked; 1 is the most.
        margin: how much more probable the members find the suggested class than the label; a mean.
        agreement: share of the members whose best class is the suggested one.
        members: how many have a say on the row.
    """

    row: int
    label: int
    suggested: int
    score: float
    margin: float
    agreement: float
    members: int


def probable_label_errors(
    predictions: Any, labels: Any, *, least_score: float = 0.0, top: int | None = None
) -> list[LabelError]:
    """Rank rows by how confidently the members agree against their labels.

    A member that trained on a row has learned its label, so bring out-of-fold predictions: NaN
    where a member has no say. Rows on which nobody has a say are refused.

    Args:
        predictions: `(member, sample, class)` probabilities, or a sequence of members.
        labels: `(sample,)` integers.
        least_score: leave out rows below it.
        top: at most so many rows.

    Returns:
        The most probable errors first; among equals the lower row.

    Raises:
        DataError: no probabilities, labels in another coding, rows that no member covers.

    Example:
        >>> p = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]]])
        >>> [tuple(error)[:3] for error in probable_label_errors(p, np.array([1, 1]))]
        [(0, 1, 0)]
    """
    array, truth = stacked(predictions), array_of(labels)
    if array.ndim != 3:
        raise DataError(
            f"expected (member, sample, class) probabilities, got {array.ndim} axes; look at one "
            "head at a time: predictions[:, :, head]"
        )
    check_labels(truth, array.shape)
    p, said = _normal(array)
    mean = _mean(p, said)
    suggested = mean.argmax(-1)
    index = np.arange(len(truth))
    margin = mean[index, suggested] - mean[index, truth]
    agrees = (p.argmax(-1) == suggested) & said
    agreement = agrees.sum(0) / said.sum(0)
    score = margin * agreement
    order = np.argsort(-score, kind="stable")
    kept = order[((suggested != truth) & (score >= least_score))[order]][:top]
    columns = (kept, truth[kept], suggested[kept], score[kept], margin[kept], agreement[kept])
    rows = zip(*(c.tolist() for c in (*columns, said.sum(0)[kept])), strict=True)
    return [LabelError(*row) for row in rows]


def label_errors_csv(
    errors: Sequence[LabelError],
    *,
    ids: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> str:
    r"""Return probable label errors as CSV, the most probable first.

    Args:
        errors: from `probable_label_errors`.
        ids: names of all rows, written beside their numbers.
        classes: names of the classes, written in place of theirs.

    Example:
        >>> label_errors_csv([LabelError(3, 1, 0, 0.5, 0.5, 1.0, 2)], classes=["cat", "dog"])
        'row,label,suggested,score,margin,agreement,members\n3,dog,cat,0.500000,0.500000,1.000000,2\n'
    """
    columns = list(LabelError._fields)
    rows = []
    for error in errors:
        named = [error.label, error.suggested]
        shown: list[Any] = [classes[k] for k in named] if classes is not None else named
        numbers = [f"{value:.6f}" for value in (error.score, error.margin, error.agreement)]
        row = [error.row, *shown, *numbers, error.members]
        rows.append(row if ids is None else [ids[error.row], *row])
    return tables.comma_separated(columns if ids is None else ["id", *columns], rows)


def _normal(array: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return probabilities that sum to one, 0 where a member has no say, and where it has one.

    Raises:
        DataError: no probabilities, or rows that no member covers.
    """
    sums = np.stack([check_scores(member) for member in array])
    said = np.asarray(~np.isnan(sums))
    nobody = np.flatnonzero(~np.any(said, axis=0))
    if len(nobody):
        raise DataError(
            f"{len(nobody)} rows are covered by no member, row {nobody[0]} the first; leave them "
            "out: rows = ~np.isnan(predictions).any(-1).all(0)"
        )
    p = np.where(said[..., None], array / np.where(said, sums, 1)[..., None], 0.0)
    return p.astype(np.float64), said


def _mean(p: Floats, said: NDArray[np.bool_]) -> Floats:
    mean: Floats = p.sum(0) / said.sum(0)[:, None]
    return mean

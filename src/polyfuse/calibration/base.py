"""Scores as logits, their rows in chunks, and softmax: what every calibration needs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import TINY, Floats, Labels, array_of, check_scores, held_out

_CHUNK = 1 << 20  # numbers that are worked on at once
_FLOOR = float(np.log(TINY))


def to_logits(scores: Any, space: str) -> Floats:
    """Return `(..., class)` logits without -inf; NaN rows stay NaN."""
    plain = array_of(scores)
    check_scores(plain, space)
    array = plain.astype(np.float64)
    if space == "prob":
        with np.errstate(divide="ignore", invalid="ignore"):
            array = np.log(array / array.sum(-1, keepdims=True))
    if np.isneginf(array).any():
        best = array.max(-1, keepdims=True)
        least = np.where(np.isfinite(array), array, np.inf).min(-1, keepdims=True)
        array = np.where(np.isneginf(array), np.minimum(best + _FLOOR, least), array)
    return array


def logits_and_labels(asked: Any, scores: Any, labels: Any) -> tuple[Floats, Labels]:
    """Check, and return `(row, class)` logits and labels; heads count as rows."""
    one = array_of(scores)[None]
    rows = held_out(one, labels, uncovered=asked.uncovered, space=asked.space)
    logits = to_logits(rows.predictions[0], asked.space)
    return logits.reshape(-1, logits.shape[-1]), rows.labels.reshape(-1)


def chunks(logits: Floats, labels: Labels) -> Iterator[tuple[Floats, Labels]]:
    """Yield rows with their labels, so many that a step over them needs little memory."""
    step = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(labels), step):
        yield logits[start : start + step], labels[start : start + step]


def check_classes(scores: NDArray[Any], classes: int) -> None:
    """Refuse scores of another number of classes than were calibrated."""
    if scores.shape[-1] != classes:
        raise DataError(
            f"scores of {scores.shape[-1]} classes do not fit a calibration of {classes}"
        )


def softmax(logits: Floats) -> Floats:
    """Return probabilities over the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    share: Floats = raised / raised.sum(-1, keepdims=True)
    return share

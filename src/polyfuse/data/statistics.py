"""What the strings of a data set are like: lengths, characters by position, sizes of boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.base import Split, alphabet_of, task_of
from polyfuse.errors import DataError
from polyfuse.sequences import DIGITS

SIDES = ("width", "height")
_SHARES = (0, 5, 50, 95, 100)
Counts = NDArray[np.int64]


class Spread(NamedTuple):
    """How sizes are spread, in pixels.

    Attributes:
        least: the smallest one.
        low: 5 in 100 are smaller.
        median: half of them are smaller.
        high: 5 in 100 are larger.
        most: the largest one.
    """

    least: float
    low: float
    median: float
    high: float
    most: float


@dataclass(frozen=True)
class Statistics:
    """What one split's strings are like.

    Attributes:
        rows: of the split.
        lengths: `(positions + 1,)` int64, strings of each length from 0.
        characters: `(positions, classes)` int64, how often each character is at each position.
        alphabet: one character a class.
        sizes: `(boxes,)` float64 widths and heights in pixels by "width" and "height"; empty where
            there are no boxes.
        left_out: entries that are none, and are counted nowhere.
    """

    rows: int
    lengths: Counts
    characters: Counts
    alphabet: Sequence[str]
    sizes: dict[str, NDArray[np.float64]]
    left_out: int = 0

    @property
    def spreads(self) -> dict[str, Spread]:
        """How widths and heights of boxes are spread; nothing where there are no boxes."""
        return {
            side: Spread(*map(float, np.percentile(sizes, _SHARES)))
            for side, sizes in self.sizes.items()
        }

    def facts(self) -> dict[str, Any]:
        """Return all as plain data."""
        boxes = {side: spread._asdict() for side, spread in self.spreads.items()}
        count = len(self.sizes["width"]) if self.sizes else 0
        return {
            "rows": self.rows,
            "lengths": self.lengths.tolist(),
            "alphabet": list(self.alphabet),
            "characters": self.characters.tolist(),
            "boxes": {"count": count, **boxes},
            "left_out": self.left_out,
        }


def statistics_of(
    labels: Any,
    *,
    blank: int | None,
    alphabet: Sequence[str] = DIGITS,
    boxes: Any = None,
    left_out: int = 0,
) -> Statistics:
    """Count lengths, characters by position, and measure boxes.

    Args:
        labels: `(n, positions)` classes of strings, or `(n,)` classes, which are strings of one.
        blank: the class that means "no character"; a string ends at the first one.
        alphabet: one character a class.
        boxes: `(n, boxes, 4)` left, top, width and height in pixels, NaN where there is none; or
            None.
        left_out: entries that are none.

    Raises:
        DataError: labels of another kind, or of a class without a character.

    Example:
        >>> found = statistics_of(np.array([[4, 2], [4, 10]]), blank=10)
        >>> found.lengths.tolist(), int(found.characters[0, 4]), int(found.characters[1].sum())
        ([0, 1, 1], 2, 1)
    """
    strings = np.asarray(labels)
    strings = strings[:, None] if strings.ndim == 1 else strings
    if strings.ndim != 2 or strings.dtype.kind not in "iu":
        raise DataError(
            f"labels are {strings.dtype} of shape {np.shape(labels)}, and only classes and strings "
            "of characters can be counted: whole numbers (n,) or (n, positions)"
        )
    ended = np.logical_or.accumulate(strings == blank, 1) if blank is not None else strings < 0
    said, classes = ~ended, len(alphabet)
    if said.any() and not 0 <= strings[said].min() <= strings[said].max() < classes:
        raise DataError(f"labels go beyond the {classes} characters that there are")
    positions = strings.shape[1]
    flat = (strings + classes * np.arange(positions))[said]
    return Statistics(
        rows=len(strings),
        lengths=np.bincount(said.sum(1), minlength=positions + 1),
        characters=np.bincount(flat, minlength=positions * classes).reshape(positions, classes),
        alphabet=list(alphabet),
        sizes=_sizes(boxes),
        left_out=left_out,
    )


def statistics_of_split(split: Split) -> Statistics | None:
    """Return the statistics of a split, or None where nobody knows its labels.

    Raises:
        DataError: labels that are no classes.

    Example:
        >>> from polyfuse.data.street_numbers import street_digits
        >>> statistics_of_split(street_digits(train=8, val=1, test=1).train).rows
        8
    """
    if split.labels is None:
        return None
    if task_of(split) != "classification":
        raise DataError(f"labels of the task {task_of(split)} are no classes or strings to count")
    return statistics_of(
        split.labels,
        blank=split.blank,
        alphabet=_characters(split),
        boxes=getattr(split, "boxes", None),
    )


def _characters(split: Split) -> Sequence[str]:
    """Return what the classes are called: characters of strings, else their numbers."""
    assert split.labels is not None
    if split.blank is not None or split.labels.max(initial=0) < len(DIGITS):
        return alphabet_of(split)
    return [str(number) for number in range(int(split.labels.max()) + 1)]


def _sizes(boxes: Any) -> dict[str, NDArray[np.float64]]:
    if boxes is None:
        return {}
    sides = np.asarray(boxes, np.float64).reshape(-1, 4)[:, 2:]
    there = sides[~np.isnan(sides).any(1)]
    return dict(zip(SIDES, there.T, strict=True)) if len(there) else {}

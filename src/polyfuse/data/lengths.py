"""Strings' lengths as the labels of any data set of strings, for a model of the length alone."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Literal

import numpy as np
from torch import Tensor

from polyfuse.data.base import Labels, Rows, Split, Splits
from polyfuse.errors import DataError

Target = Literal["characters", "length"]


@dataclass(frozen=True)
class Lengths:
    """One split of strings whose labels are how many characters they have.

    Inputs, names and groups are those of the split itself, so rows stay in line with it.

    Args:
        split: labels `(n, positions)`, or None, and a class that means "no character".

    Attributes:
        labels: `(n,)` int64, how many characters are not blank; None where nobody knows them.

    Raises:
        DataError: a split of anything but strings.

    Example:
        >>> from polyfuse import Arrays
        >>> strings = Arrays(np.zeros((2, 3)), [[4, 2, 10], [7, 10, 10]], blank=10)
        >>> Lengths(strings).labels.tolist()
        [2, 1]
    """

    split: Split
    labels: Labels | None = field(init=False)

    def __post_init__(self) -> None:
        """Count the characters once."""
        labels = self.split.labels
        if self.split.blank is None or (labels is not None and labels.ndim != 2):
            shape = "no labels" if labels is None else f"labels of shape {labels.shape}"
            raise DataError(
                f"target: length is for strings of characters, and these data have {shape} and "
                f"blank={self.split.blank}; leave target out, or bring labels (rows, positions) "
                'and the class that means "no character"'
            )
        counts = None if labels is None else (labels != self.split.blank).sum(1, dtype=np.int64)
        object.__setattr__(self, "labels", counts)

    @property
    def names(self) -> Sequence[str]:
        """Return one name a row."""
        return self.split.names

    @property
    def groups(self) -> Rows | None:
        """Return the groups of the rows, or None."""
        return self.split.groups

    @property
    def blank(self) -> int | None:
        """Return None: no length means that there is none."""
        return None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.split)

    def inputs(self, rows: Rows) -> Tensor:
        """Return the inputs of these rows."""
        return self.split.inputs(rows)

    def fingerprint(self) -> str:
        """Return a SHA-256 that changes with the split's own, and is another one."""
        return hashlib.sha256(f"length {self.split.fingerprint()}".encode()).hexdigest()


def lengths_of(splits: Splits) -> Splits:
    """Return splits of strings with their lengths as labels.

    Raises:
        DataError: splits of anything but strings.

    Example:
        >>> from polyfuse.data import street_digits
        >>> lengths_of(street_digits(train=3, val=1, test=1)).train.labels.tolist()
        [2, 2, 2]
    """
    return Splits(*(Lengths(split) for split in splits))


def with_target(make: Callable[..., Splits], target: Target | None) -> Callable[..., Splits]:
    """Return what makes a data set, with the labels that are aimed at.

    Args:
        make: makes splits.
        target: "length", or "characters" or None: labels as they are.

    Example:
        >>> from polyfuse.data import street_digits
        >>> make = with_target(street_digits, "length")
        >>> make(train=3, val=1, test=1).train.labels.shape
        (3,)
    """
    if target != "length":
        return make

    @wraps(make)
    def made(**options: object) -> Splits:
        return lengths_of(make(**options))

    return made

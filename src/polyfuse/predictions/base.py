"""What predictions and labels are, wherever they were read from: an array and what it means."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SPACES = ("prob", "logit", "log_prob", "label", "value")
TASKS = (
    "binary",
    "multiclass",
    "multilabel",
    "regression",
    "mean_variance",
    "quantiles",
    "multi_head",
)
_PIECE = 1 << 22  # numbers that are hashed at once


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one member says of each sample.

    Attributes:
        name: of the file as it was typed, or of the member in a store.
        array: `(sample, ...)`; memory-mapped where the format allows.
        space: "prob", "logit", "log_prob", "label" or "value"; None where nobody has said it, and
            `guess_space` may tell.
        task: one of `TASKS`; None where it is not known.
        ids: names of the rows, in order; None where the file has none.
        classes: names of the last axis; None where the file has none.
        levels: of quantiles.
        facts: what else is known; `notes` are sentences for people.

    Example:
        >>> member = Predictions(name="a.npy", array=np.array([[0.25, 0.75]]))
        >>> member.array.shape, member.fingerprint[:8]
        ((1, 2), '9d58fd22')
    """

    name: str
    array: NDArray[Any]
    space: str | None = None
    task: str | None = None
    ids: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    levels: Sequence[float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of dtype, shape and bytes: the same numbers have the same one."""
        return fingerprint(self.array)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people: what was noticed, and what was done about it."""
        return tuple(self.facts.get("notes", ()))

    def noted(self, *sentences: str, **changes: Any) -> Self:
        """Return the same predictions with changes, and with sentences that tell of them."""
        facts = {**self.facts, "notes": [*self.notes, *sentences]} if sentences else self.facts
        return replace(self, facts=facts, **changes)


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """The truth of each sample, or what a decision says of it.

    Attributes:
        values: `(sample, ...)`: int64 classes, or float64 numbers.
        ids: names of the rows, in order; None where the file has none.
        names: what class 0, 1, ... was called; None where the file has whole numbers.
        name: of the file.
        notes: sentences for people.

    Example:
        >>> LabelColumn(values=np.array([0, 1]), names=["cat", "dog"]).names[1]
        'dog'
    """

    values: NDArray[Any]
    ids: Sequence[str] | None = None
    names: Sequence[str] | None = None
    name: str = "labels"
    notes: Sequence[str] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of dtype, shape and bytes."""
        return fingerprint(self.values)


def fingerprint(array: NDArray[Any]) -> str:
    """Return a SHA-256 over dtype, shape and bytes, read in pieces.

    Example:
        >>> fingerprint(np.zeros(3)) == fingerprint(np.zeros((3, 1)))
        False
    """
    digest = begin_fingerprint(array.dtype, array.shape)
    if array.ndim == 0:
        digest.update(array.tobytes())
        return str(digest.hexdigest())
    step = max(1, _PIECE // max(1, array[:1].size))
    for start in range(0, len(array), step):
        add_to_fingerprint(digest, array[start : start + step])
    return str(digest.hexdigest())


def begin_fingerprint(dtype: np.dtype[Any], shape: Sequence[int]) -> Any:
    """Return the digest of an array whose rows are still to come.

    Example:
        >>> digest = begin_fingerprint(np.dtype("f8"), (3,))
        >>> add_to_fingerprint(digest, np.zeros(3))
        >>> digest.hexdigest() == fingerprint(np.zeros(3))
        True
    """
    facts = f"{dtype.newbyteorder('<').str}{tuple(int(n) for n in shape)}"
    return hashlib.sha256(facts.encode())


def add_to_fingerprint(digest: Any, rows: NDArray[Any]) -> None:
    """Add the next rows of an array to its digest.

    Example:
        >>> add_to_fingerprint(hashlib.sha256(), np.zeros((2, 3), np.float16))
    """
    plain = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    digest.update(plain.reshape(-1).view(np.uint8).data)


def coded(texts: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Return texts as numbers of their sorted names, and the names.

    Example:
        >>> coded(["dog", "cat", "dog"])
        (array([1, 0, 1]), ['cat', 'dog'])
    """
    names = sorted(set(texts))
    numbers = {name: number for number, name in enumerate(names)}
    return np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts)), names

"""What a data set is to polyfuse: splits that hand out inputs by row, with labels and groups."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.sequences import DIGITS as DIGITS
from polyfuse.tasks import CLASSES, rules_of

Rows = NDArray[np.int64]
Labels = NDArray[Any]


class Split(Protocol):
    """One split (train, val or test) of a data set.

    A split whose labels are no classes says so by one more attribute, `task`: see `task_of`; one
    whose characters are not the ten digits by `alphabet`: see `alphabet_of`.

    Attributes:
        labels: `(n,)` classes or `(n, positions)` classes, int64; None where nobody knows them.
            Of the task "multilabel" `(n, labels)` zeros and ones; of "regression" `(n,)` or
            `(n, outputs)` float32; of "mean_variance" `(n,)` float32.
        names: one name a row, as a submission file wants them.
        groups: `(n,)` int64; rows of one group share a source and are never divided between
            folds. None where every row stands alone.
        blank: the class that means "no character here"; None outside character strings.
    """

    @property
    def labels(self) -> Labels | None: ...  # noqa: D102  # described above

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def groups(self) -> Rows | None: ...  # noqa: D102

    @property
    def blank(self) -> int | None: ...  # noqa: D102

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def inputs(self, rows: Rows) -> Tensor:
        """Return the inputs of these rows, float32, first axis as `rows`."""
        ...

    def fingerprint(self) -> str:
        """Return a SHA-256 that changes when any input, label or group changes."""
        ...


class Splits(NamedTuple):
    """The three splits: members train on the first, choices are made on the second."""

    train: Split
    val: Split
    test: Split


def task_of(split: Split) -> str:
    """Return the task of a split: what it says by `task`, or "classification".

    Returns:
        "classification": one class a row, or one a head; "multilabel": labels that do not exclude
        each other; "regression": numbers; "mean_variance": one number a row, of which a model says
        mean and variance.

    Raises:
        DataError: it says that it is of another task.

    Example:
        >>> from polyfuse import Arrays
        >>> task_of(Arrays([[0.0]], [[0.5]], task="regression"))
        'regression'
    """
    task = getattr(split, "task", CLASSES)
    rules_of(task)
    return str(task)


def alphabet_of(split: Split) -> str:
    """Return the characters that the classes of a split of strings stand for, class 0 first.

    Example:
        >>> from polyfuse import Arrays
        >>> alphabet_of(Arrays([[0.0]], [[4, 2]], blank=10))
        '0123456789'
    """
    return str(getattr(split, "alphabet", DIGITS))


def classes_of(split: Split) -> NDArray[np.int64] | None:
    """Return one class a row, by which rows can be balanced; None where there is no such thing.

    Example:
        >>> from polyfuse import Arrays
        >>> classes_of(Arrays([[0.0]], [1])).tolist()
        [1]
    """
    labels = split.labels
    return labels if labels is not None and labels.ndim == 1 and task_of(split) == CLASSES else None


def truth_of(split: Split) -> Labels | None:
    """Return labels as metrics take them: zeros and ones are whole numbers.

    Example:
        >>> from polyfuse import Arrays
        >>> truth_of(Arrays([[0.0]], [[1, 0]], task="multilabel")).dtype
        dtype('int64')
    """
    labels = split.labels
    return (
        labels.astype(np.int64) if labels is not None and task_of(split) == "multilabel" else labels
    )

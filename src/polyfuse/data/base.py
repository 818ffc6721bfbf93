"""What a data set is to polyfuse: splits that hand out inputs by row, with labels and groups."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]
Labels = NDArray[np.int64]


class Split(Protocol):
    """One split (train, val or test) of a data set.

    Attributes:
        labels: `(n,)` classes or `(n, positions)` classes, int64; None where nobody knows them.
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

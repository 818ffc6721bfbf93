"""The prediction store: a memory-mapped array and its record for each member, split and view."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from polyfuse.predictions.base import Predictions


class Writer(Protocol):
    """Takes rows, some at a time."""

    def append(self, rows: NDArray[Any]) -> None:
        """Add the next rows."""
        ...


class PredictionStore:
    """A folder of predictions by member, split and view."""

    def __init__(self, folder: str | Path) -> None:
        """Name the folder; it need not be there."""
        self.folder = Path(folder)

    def members(self) -> list[str]:
        """Return the members that are there."""
        raise NotImplementedError

    def splits(self) -> list[str]:
        """Return the splits of all members."""
        raise NotImplementedError

    def views(self, member: str, split: str) -> list[str]:
        """Return the views of a member and split."""
        raise NotImplementedError

    def write(
        self,
        member: str,
        split: str,
        array: NDArray[Any],
        *,
        space: str,
        view: str = "plain",
        model: str | None = None,
        data: str | None = None,
        rows: Sequence[str] | None = None,
        labels: Any = None,
        classes: Sequence[str] | None = None,
    ) -> Predictions:
        """Keep a member's predictions."""
        raise NotImplementedError

    @contextmanager
    def writer(
        self,
        member: str,
        split: str,
        shape: Sequence[int],
        *,
        space: str,
        dtype: str = "float32",
        view: str = "plain",
        model: str | None = None,
        data: str | None = None,
        rows: Sequence[str] | None = None,
        labels: Any = None,
        classes: Sequence[str] | None = None,
    ) -> Iterator[Writer]:
        """Keep predictions that come some rows at a time."""
        raise NotImplementedError
        yield

    def open(
        self,
        member: str,
        split: str,
        view: str = "plain",
        *,
        model: str | None = None,
        data: str | None = None,
        rows: Sequence[str] | int | None = None,
        labels: Any = None,
        verify: bool = False,
    ) -> Predictions:
        """Map a member's predictions, if they are those that are expected."""
        raise NotImplementedError

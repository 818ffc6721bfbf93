"""In which space numbers are, and for which task: told from the numbers, or refused."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from polyfuse.predictions.base import Predictions


def guess_space(array: NDArray[Any], *, task: str | None = None, name: str = "array") -> str:
    """Return the space that numbers are in."""
    raise NotImplementedError


def as_task(
    member: Predictions, task: str | None = None, *, levels: Sequence[float] | None = None
) -> Predictions:
    """Return predictions in the shape of a task."""
    raise NotImplementedError

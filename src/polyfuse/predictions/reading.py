"""Files of predictions and labels that people have, whatever their format."""

from collections.abc import Sequence
from pathlib import Path

from polyfuse.predictions.base import LabelColumn, Predictions


def read_predictions(
    path: str | Path,
    *,
    space: str | None = None,
    task: str | None = None,
    levels: Sequence[float] | None = None,
    id_column: str | None = None,
) -> Predictions:
    """Read what one member says of each sample."""
    raise NotImplementedError


def read_labels(
    path: str | Path, *, column: str | None = None, id_column: str | None = None
) -> LabelColumn:
    """Read the truth of each sample."""
    raise NotImplementedError

"""Members and labels brought to the same rows, classes and dtype; all mismatches at once."""

from collections.abc import Sequence

from polyfuse.predictions.base import LabelColumn, Predictions


def align(
    members: Sequence[Predictions], labels: LabelColumn | None = None, *, rows: str = "error"
) -> tuple[list[Predictions], LabelColumn | None]:
    """Bring members and labels to the same rows, in the same order."""
    raise NotImplementedError

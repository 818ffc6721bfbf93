"""A combination of members: its scoreboard, its weights, its predictions, what to use, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from polyfuse.combining.base import Given
from polyfuse.combining.folder import write_folder
from polyfuse.combining.judging import Row
from polyfuse.combining.making import weights_of
from polyfuse.scoreboard import Scoreboard


@dataclass(frozen=True)
class Combination:
    """What several members are together, and whether that is really better.

    Attributes:
        scoreboard: members and methods, with intervals.
        use: the row whose predictions these are: the one method that was asked for, or of several
            the recommended row.
        given: what it was made of.
        rows: of the scoreboard, with what was fitted.
        settings: folds, seed, and options of methods.
    """

    scoreboard: Scoreboard
    use: str
    given: Given = field(repr=False)
    rows: Mapping[str, Row] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def recommended(self) -> str:
        """The cheapest row that validation does not tell from the best."""
        return self.scoreboard.recommended

    @property
    def weights(self) -> dict[str, dict[str, Any]]:
        """By method that has weights, what each member counts."""
        found = {}
        for name, row in self.rows.items():
            weights = None if row.fitted is None else weights_of(row.fitted)
            if weights is not None:
                found[name] = dict(zip(self.given.names, weights.tolist(), strict=True))
        return found

    @property
    def predictions(self) -> dict[str, NDArray[Any]]:
        """By split, what the row in use says: probabilities, numbers, or classes of a vote.

        What was fitted says of "val" what it says when it is fitted without that row; NaN where no
        fold predicts.
        """
        return dict(self.rows[self.use].said)

    def save(self, folder: str | Path) -> Path:
        """Write predictions, weights, scoreboard and a submission, whole or not at all.

        Args:
            folder: new, empty, or of an earlier combination of the same members and labels.

        Raises:
            RunError: the folder is something else.
            DiskError: the file system refused.
        """
        document = self.scoreboard.document
        return write_folder(
            Path(folder),
            self.given,
            self.rows[self.use],
            document,
            self.weights,
            {"metric": document["metric"], **_plain(self.settings)},
        )

    def __str__(self) -> str:
        """Return the scoreboard as markdown."""
        return str(self.scoreboard)

    def _repr_html_(self) -> str:
        return self.scoreboard._repr_html_()


def _plain(value: Any) -> Any:
    """Return settings as JSON has them; of objects what they are."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return f"{type(value).__module__}.{type(value).__qualname__}"

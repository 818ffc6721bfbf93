"""What is known of strings' lengths: by the members' length heads, or by a run of its own."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.population import Population
from polyfuse.sequences import lengths_of
from polyfuse.tasks import CLASSES, mean_of, mean_said, meant

HEAD = "length_head"
MODEL = "length_model"
_SHOWN = 3
_TINY = float(np.finfo(np.float32).tiny)
Floats = NDArray[np.float64]


def pooled(logits: NDArray[Any]) -> Floats:
    """Return the logarithm of the mean probability of each length, over members that have a say.

    Args:
        logits: `(member, n, positions + 1)`; NaN where a member has no length head.

    Returns:
        `(n, positions + 1)`.

    Example:
        >>> np.exp(pooled(np.log([[[0.2, 0.8]], [[0.4, 0.6]]]))).round(2).tolist()
        [[0.3, 0.7]]
    """
    return logarithm(mean_said(CLASSES, meant(CLASSES, logits)))


def logarithm(probabilities: NDArray[Any]) -> Floats:
    """Return logarithms, of a probability of 0 a large negative number.

    Example:
        >>> float(logarithm(np.zeros(1))[0]) < -80
        True
    """
    return np.log(np.maximum(probabilities.astype(np.float64), _TINY))


class LengthRun:
    """A run whose members say how long the strings of another run's rows are.

    Args:
        path: the RUN folder; its labels are the lengths, 0 to the number of positions.

    Raises:
        RunError: no RUN folder, or a damaged one.
        DataError: it has no members yet, or its labels are no lengths.

    Example:
        >>> LengthRun("/no/such/run")
        Traceback (most recent call last):
        polyfuse.errors.RunError: there is no RUN folder '/no/such/run'; make one: polyfuse demo
    """

    def __init__(self, path: str | Path) -> None:
        """Read what the run is."""
        self.path, self.population = Path(path), Population.open(path)
        task, blank = self.population.task, self.population.index["blank"]
        if task != CLASSES or blank is not None:
            kind = task if blank is None else "strings of characters"
            raise DataError(
                f"'{printable(path)}' reads no lengths: its labels are of the kind {kind}; make it "
                "with the same data and target: length"
            )
        if not self.population.members:
            raise DataError(f"'{printable(path)}' has no members yet; run its recipe to the end")

    def faults(self, split: str, names: list[str], labels: NDArray[Any] | None, blank: int) -> str:
        """Say why the rows of a split are not those of another run; "" where they are.

        Args:
            split: its name.
            names: of the rows.
            labels: `(n, positions)` strings, or None.
            blank: the class that means "no character".
        """
        own = self.population.names(split)
        missing = [name for name in names if name not in set(own)]
        if missing or len(own) != len(names):
            shown = f", among them not {printable(', '.join(missing[:_SHOWN]))}" if missing else ""
            return f"{split} has {len(own):,} rows there and {len(names):,} here{shown}"
        told = self.population.labels(split)
        if told is None or labels is None:
            return ""
        if told.ndim != 1:
            return f"the labels of {split} have shape {told.shape} there, and are no lengths"
        wanted = lengths_of(labels, blank=blank)
        wrong = np.flatnonzero(told[self._order(split, names)] != wanted)
        if not len(wrong):
            return ""
        row = int(wrong[0])
        return (
            f"'{printable(names[row])}' of {split} has length "
            f"{told[self._order(split, names)][row]} there and {wanted[row]} here"
        )

    def said(self, split: str, names: list[str], positions: int) -> Floats:
        """Return what its members say of rows, `(n, positions + 1)` log-probabilities.

        Args:
            split: "val" or "test".
            names: of the rows, in any order.
            positions: the longest length.

        Raises:
            DataError: it has another number of lengths.
        """
        outputs = self.population.for_fusions.stack(split)[:, self._order(split, names)]
        return self.read(outputs, positions)

    def read(self, outputs: NDArray[Any], positions: int) -> Floats:
        """Return what `(member, n, lengths)` outputs say, `(n, positions + 1)`.

        Raises:
            DataError: another number of lengths.
        """
        if outputs.ndim != 3 or outputs.shape[2] != positions + 1:
            raise DataError(
                f"the members of '{printable(self.path)}' say {outputs.shape[2:]} of a row, and "
                f"strings of up to {positions} characters have {positions + 1} lengths, from 0; "
                f"give its model as many classes"
            )
        return logarithm(mean_of(CLASSES, outputs))

    def _order(self, split: str, names: list[str]) -> NDArray[np.int64]:
        """Return where each row stands there; equal names in the order that they come in."""
        own = self.population.names(split)
        if own == names:
            return np.arange(len(names))
        places: dict[str, list[int]] = {}
        for place, name in enumerate(own):
            places.setdefault(name, []).append(place)
        return np.array([places[name].pop(0) for name in names])

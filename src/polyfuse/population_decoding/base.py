"""What a decoding is asked to be, and what members say together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyfuse.members import with_average
from polyfuse.population_lengths import Floats
from polyfuse.population_views import with_views

MEAN = "mean_probability"  # what the first step stands on


class Asked(NamedTuple):
    """What a decoding is to be made of.

    Attributes:
        steps: (name, options) of each, in order.
        average: whose weights the members have; their own where None.
        tta: whether views are merged first.
    """

    steps: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    average: str | None = None
    tta: bool = False

    @property
    def above(self) -> list[str]:
        """The rows that the first step stands on, the last one directly."""
        names = [MEAN, *([with_average(MEAN, self.average)] if self.average else [])]
        return [*names, with_views(names[-1])] if self.tta else names

    @property
    def rows(self) -> list[str]:
        """The rows that are made."""
        return [row_name(name) for name, _ in self.steps]


class Pooled(NamedTuple):
    """What the members say of rows, together.

    Attributes:
        heads: `(n, positions, classes)` log-probabilities.
        known: by source, `(n, positions + 1)` log-probabilities of the lengths.
    """

    heads: Floats
    known: Mapping[str, Floats]

    def inputs(self, sources: Sequence[str]) -> Floats:
        """Return what is known of the lengths as a decoder takes it, `(n, source, lengths)`."""
        rows, positions, _ = self.heads.shape
        found = np.zeros((rows, len(sources), positions + 1))  # 0 of what is not known
        for place, source in enumerate(sources):
            found[:, place] = self.known.get(source, 0)
        return found


def row_name(step: str) -> str:
    """Return what the row of a step is called.

    Example:
        >>> row_name("joint_length")
        '+ joint_length'
    """
    return f"+ {step}"

"""What members of a population say of views of their inputs, kept on disk a member and view.

    RUN/views/members/003, ema/val/VIEW/      a `PredictionStore`: what a member says of a view
              lengths/members/...             what its length head says, where it has one

An entry is whole or not there, so a run that was killed between two views goes on with the next.
"""

from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.inference import Heads
from polyfuse.members import Member
from polyfuse.population import Population
from polyfuse.predictions import PredictionStore
from polyfuse.tasks import rules_of

Array = NDArray[Any]


class ViewStore:
    """What members say of views; that it is of these weights, this view and this data is checked.

    Args:
        population: of the RUN folder.

    Example:
        >>> from pathlib import Path
        >>> ViewStore(Population(Path("RUN"), ())).heads.folder.name
        'views'
    """

    def __init__(self, population: Population) -> None:
        """Name the folders; nothing is read yet."""
        self.population = population
        self.heads = PredictionStore(population.path / "views")
        self.lengths = PredictionStore(population.path / "views" / "lengths")

    def has(self, member: Member, split: str, view: str) -> bool:
        """Tell whether what a member says of a view is kept.

        Raises:
            DataError: it is of other weights, another view or other data.
        """
        name = folder_name(member)
        if view not in self.heads.views(name, split):
            return False
        self._open(self.heads, member, split, view, verify=False)
        return True

    def read(self, member: Member, split: str, view: str) -> Array:
        """Return what a member says of a view, `(sample, ..., class)` logits, or numbers.

        Raises:
            DataError: nothing is kept; it is of other weights, another view or other data; or it
                was changed since.
        """
        return self._open(self.heads, member, split, view)

    def read_lengths(self, member: Member, split: str, view: str) -> Array:
        """Return what its length head says, `(sample, positions + 1)` logits.

        Raises:
            DataError: as `read`.
        """
        return self._open(self.lengths, member, split, view)

    def write(self, member: Member, split: str, view: str, said: Heads) -> None:
        """Keep what a member says of a view: whole, or after a kill not at all.

        Raises:
            DataError: it is there already.
            DiskError: the file system refused.
        """
        name, prints = folder_name(member), self._prints(member, view)
        if said.lengths is not None and view not in self.lengths.views(name, split):
            self.lengths.write(name, split, said.lengths, space="logit", view=view, **prints)
        space = "value" if rules_of(self.population.task).space == "value" else "logit"
        self.heads.write(name, split, said.characters, space=space, view=view, **prints)

    def _open(
        self, store: PredictionStore, member: Member, split: str, view: str, verify: bool = True
    ) -> Array:
        """Map an entry of as many rows as the split has, of these weights, view and data."""
        expected = {"rows": self.population.rows(split), **self._prints(member, view)}
        name = folder_name(member)
        try:
            return np.asarray(store.open(name, split, view, verify=verify, **expected).array)
        except DataError as error:
            raise DataError(
                f"{error}; of a run: delete '{printable(store.folder)}' and run the recipe again"
            ) from None

    def _prints(self, member: Member, view: str) -> dict[str, Any]:
        """Return what an entry is of: a member as it was committed, a view; the data of the run."""
        files = sorted(member.record["files"].items())
        model = sha256(repr((files, member.average, view)).encode()).hexdigest()
        return {"model": model, "data": str(self.population.index["fingerprint"])}


def folder_name(member: Member) -> str:
    """Return the name of a member's folder in the store.

    Example:
        >>> from pathlib import Path
        >>> folder_name(Member(Path("RUN/members/003"), {"index": 3}, "ema"))
        '003, ema'
    """
    return f"{member.index:03d}" + (f", {member.average}" if member.average else "")

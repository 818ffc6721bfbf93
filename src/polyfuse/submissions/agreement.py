"""Which files of answers say the same, who stands alone, and what a vote changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.tables import Table

MOST = 8  # files whose agreement with each other is shown pair by pair


@dataclass(frozen=True)
class Change:
    """A row in which the vote says something else than the first file.

    Attributes:
        id: of the row.
        before: what the first file says.
        after: what was voted.
        votes: files that say it; none where positions come from different files.
        said: what each file says.
    """

    id: str
    before: str
    after: str
    votes: int
    said: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """How files of answers agree.

    Attributes:
        pairs: `(file, file)` float64, shares of the rows in which two say the same.
        with_vote: `(file,)` float64, shares of the rows in which each says what was voted.
        alone: `(file,)` int64, rows in which nobody says what it says.
        unanimous: rows in which all say the same.
    """

    pairs: NDArray[np.float64]
    with_vote: NDArray[np.float64]
    alone: NDArray[np.int64]
    unanimous: int

    def tables(self, names: Sequence[str], weights: Sequence[float]) -> list[Table]:
        """Return a table of the files and, where they are few, one of the pairs.

        Args:
            names: of the files.
            weights: of their votes.
        """
        rows = [
            [name, f"{weight:g}", f"{100 * share:.2f}", f"{alone:,}"]
            for name, weight, share, alone in zip(
                names, weights, self.with_vote, self.alone.tolist(), strict=True
            )
        ]
        title = f"Files: {self.unanimous:,} rows in which all say the same"
        tables = [Table(title, ["file", "weight", "% as voted", "alone in rows"], rows)]
        if 2 < len(names) <= MOST:
            cells = [[f"{100 * share:.2f}" for share in row] for row in self.pairs]
            pairs = [[name, *row] for name, row in zip(names, cells, strict=True)]
            head = ["% of rows with the same answer", *names]
            tables.append(Table("Agreement of the files", head, pairs))
        return tables


def agreement_of(answers: Sequence[Sequence[str]], voted: Sequence[str]) -> Agreement:
    """Compare files of answers with each other and with what was voted.

    Args:
        answers: `(file, row)` texts.
        voted: one a row.

    Example:
        >>> found = agreement_of([["1", "2"], ["1", "3"], ["1", "2"]], ["1", "2"])
        >>> found.pairs[0].tolist(), found.alone.tolist(), found.unanimous
        ([1.0, 0.5, 1.0], [0, 1, 0], 1)
    """
    code: dict[str, int] = {}
    codes = np.array(
        [[code.setdefault(text, len(code)) for text in row] for row in [*answers, voted]], np.int64
    )
    said, vote = codes[:-1], codes[-1]
    same = said[:, None] == said[None]
    return Agreement(
        pairs=same.mean(-1),
        with_vote=(said == vote).mean(-1),
        alone=(same.sum(1) == 1).sum(-1),
        unanimous=int(same.all((0, 1)).sum()),
    )


def changes_of(
    ids: Sequence[str], answers: Sequence[Sequence[str]], voted: Sequence[str]
) -> list[Change]:
    """Return the rows in which the vote says something else than the first file.

    Args:
        ids: of the rows.
        answers: `(file, row)` texts.
        voted: one a row.

    Example:
        >>> changes_of(["p"], [["7"], ["1"], ["1"]], ["1"])
        [Change(id='p', before='7', after='1', votes=2, said=('7', '1', '1'))]
    """
    rows: Any = zip(ids, voted, zip(*answers, strict=True), strict=True)
    return [
        Change(name, said[0], after, said.count(after), said)
        for name, after, said in rows
        if said[0] != after
    ]

"""Which checkpoints are meant: files, globs, folders; a range, the last ones, the best ones.

Only names are read here, and a table or the checkpoints' own metrics where `best` asks for them.
torch is not needed to choose, so it is not loaded.
"""

from collections.abc import Sequence
from pathlib import Path

from polyfuse.checkpoint_sets import numbered, ranking
from polyfuse.checkpoint_sets.base import Chosen
from polyfuse.checkpoint_sets.listing import listed
from polyfuse.checkpoint_sets.numbered import parse_range
from polyfuse.errors import CheckpointError

__all__ = ["Chosen", "choose", "parse_range"]


def choose(
    names: Sequence[str],
    *,
    range: str | None = None,  # noqa: A002  # the name it has on the command line
    last: int | None = None,
    best: int | None = None,
    metric: str | None = None,
    table: Path | None = None,
    lower_is_better: bool | None = None,
) -> list[Chosen]:
    """Return the checkpoints that are meant, in order.

    Args:
        names: files, globs, folders of checkpoints, Hugging Face or DCP folders, `file.pt[0]`.
        range: "40:50", both included: by the number in the file name, which is its last one unless
            the names differ in another one only.
        last: so many with the highest numbers.
        best: so many with the best metric, best first.
        metric: its name; needed where there are several.
        table: a CSV or JSON file with a column of files and one of the metric; without it the
            metric is looked for in the file names, then in the checkpoints.
        lower_is_better: of the metric; needed where its name does not tell.

    Raises:
        CheckpointError: no such file, nothing that matches, one file named twice, a number missing
            inside the range, no metric or several.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for number in (8, 9, 10):
        ...     _ = (folder / f"epoch{number}-acc=0.{number}.pt").write_bytes(b"")
        >>> [chosen.number for chosen in choose([str(folder)], last=2)]
        [9, 10]
        >>> [chosen.value for chosen in choose([str(folder)], best=1)]
        [0.9]
    """
    if sum(wish is not None for wish in (range, last, best)) > 1:
        raise CheckpointError("range, last and best exclude each other; give one of them")
    if best is None and any(wish is not None for wish in (metric, table, lower_is_better)):
        raise CheckpointError("a metric, a table or a direction is for best=K; say how many")
    paths = listed(names)
    if range is not None:
        return numbered.in_range(paths, *parse_range(range))
    if last is not None:
        return numbered.last(paths, last)
    if best is not None:
        return ranking.best(paths, best, metric, table, lower_is_better)
    return [Chosen(path) for path in paths]

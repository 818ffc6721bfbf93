"""How checkpoints are read to look at them: in pieces, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence

from polyfuse.checkpoints.base import TensorInfo

PIECE = 1 << 18  # elements that are read at once
Progress = Callable[[str, float, float, str], None]


def pieces(infos: Sequence[TensorInfo], size: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches in which tensors of one shape are read side by side.

    Args:
        infos: of the tensors; one whose source is read in one piece makes one stretch of all.
        size: elements of a stretch.

    Example:
        >>> import torch
        >>> from polyfuse.checkpoints.base import InMemory
        >>> list(pieces([TensorInfo(torch.int8, (5,), InMemory(torch.ones(5)))], 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    count = infos[0].count
    step = max(count, 1) if any(info.source.whole for info in infos) else size
    for start in range(0, count, step):
        yield start, min(start + step, count)

"""Batches of a split, each read while the one before it is used, where reading takes time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from polyfuse.data.base import Rows, Split


def batches(split: Split, parts: Iterable[Rows]) -> Iterator[Tensor]:
    """Yield the inputs of each part of the rows, in order.

    A split that says so by an attribute `streams` is read one part ahead, in a thread; the inputs
    are the same ones.

    Args:
        split: the data.
        parts: rows of each batch.

    Raises:
        DataError: what `split.inputs` raises, at the batch that it is about.

    Example:
        >>> import numpy as np
        >>> from polyfuse import Arrays
        >>> [b.flatten().tolist() for b in batches(Arrays([[1.0], [2.0]]), np.array([[1], [0]]))]
        [[2.0], [1.0]]
    """
    if not getattr(split, "streams", False):
        yield from map(split.inputs, parts)
        return
    with ThreadPoolExecutor(1, "ahead") as pool:
        ready = None
        for rows in parts:
            coming = pool.submit(split.inputs, rows)
            if ready is not None:
                yield ready.result()
            ready = coming
        if ready is not None:
            yield ready.result()

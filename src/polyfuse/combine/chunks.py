"""Combiners over members that do not fit into memory: some rows at a time, the same answer."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.combine.base import Pieces, as_tensor
from polyfuse.determinism import threads
from polyfuse.errors import DataError

Combiner = Callable[..., Any]

_AT_ONCE = 1 << 19  # numbers of a member: 2 MB of float32


def in_chunks(
    combiner: Combiner, members: Sequence[Any], *, rows: int | None = None, **options: Any
) -> Any:
    """Apply a combiner to some rows of all members at a time; the answer is that of all at once.

    Combiners of this package read every member where it lies, as a memory-mapped file for instance;
    any other function gets the stacked rows. Open files with `np.load(path, mmap_mode="c")`: torch
    must copy what is read-only. Each of torch's threads takes rows of its own; the answer is the
    same for any number of them.

    Args:
        combiner: maps `(member, sample, ...)` to `(sample, ...)`, each sample by itself.
        members: one `(sample, ...)` array or tensor each, of one shape and dtype.
        rows: read at a time; where None, as many as stay in a processor's cache.
        options: of the combiner.

    Returns:
        What `combiner(np.stack(members), **options)` would, in memory for one member's worth.

    Raises:
        DataError: no members, of different shapes, dtypes or kinds, ranks across samples.

    Example:
        >>> from polyfuse.combine.means import mean_logit
        >>> in_chunks(mean_logit, [np.zeros((5, 2)), np.ones((5, 2))], rows=2).tolist()[:1]
        [[0.5, 0.5]]
    """
    _check(members)
    if _settings(combiner, options).get("across") == "samples":
        raise DataError("ranks across samples need all samples at once; call rank_mean itself")
    count = len(members[0])
    step = rows or max(1, _AT_ONCE // max(1, int(np.prod(members[0].shape[1:]))))
    if step < 1:
        raise DataError(f"rows is {rows}; it must be 1 or more")

    def part(start: int) -> Any:
        return _part(combiner, [member[start : start + step] for member in members], options)

    def fill(start: int) -> None:
        answer[start : start + step] = part(start)

    first, *rest = range(0, count, step)
    begun = part(first)
    answer = _empty(begun, count)
    answer[:step] = begun
    _each(fill, rest, torch.get_num_threads() if _side_by_side(combiner, members) else 1)
    return answer


def _each(fill: Callable[[int], None], starts: Iterable[int], workers: int) -> None:
    """Call a function for each start, from so many threads.

    Threads that share every operation wait for each other at its end; here they do so once.
    """
    if workers == 1:
        for start in starts:
            fill(start)
        return
    alone = partial(torch.set_num_threads, 1)
    with threads(1), ThreadPoolExecutor(workers, initializer=alone) as pool:
        for _ in pool.map(fill, starts):
            pass  # an error is raised here


def _side_by_side(combiner: Combiner, members: Sequence[Any]) -> bool:
    """Tell whether several threads may call a combiner: ours, where nothing is differentiated."""
    tensors = [member for member in members if isinstance(member, Tensor)]
    plain = all(t.device.type == "cpu" and not t.requires_grad for t in tensors)
    free = not (torch.is_inference_mode_enabled() or torch.compiler.is_compiling())
    return plain and free and _is_ours(combiner)


def _part(combiner: Combiner, pieces: Sequence[Any], options: Any) -> Any:
    """Return the combiner's answer for these rows of every member."""
    foreign = isinstance(pieces[0], np.ndarray)
    if not _is_ours(combiner):
        stacked = np.stack(pieces) if foreign else torch.stack(list(pieces))
        return combiner(stacked, **options)
    tensors = Pieces(map(as_tensor, pieces))
    tensors.from_numpy = foreign
    answer = combiner(tensors, **options)
    return answer.numpy() if foreign else answer


def _is_ours(combiner: Combiner) -> bool:
    function = combiner.func if isinstance(combiner, partial) else combiner
    return str(getattr(function, "__module__", "")).startswith("polyfuse.combine.")


def _settings(combiner: Combiner, options: dict[str, Any]) -> dict[str, Any]:
    return {**(combiner.keywords if isinstance(combiner, partial) else {}), **options}


def _empty(part: Any, count: int) -> Any:
    """Return room for the whole answer."""
    shape = (count, *part.shape[1:])
    if isinstance(part, Tensor):
        return torch.empty(shape, dtype=part.dtype, device=part.device)
    return np.empty(shape, part.dtype)


def _check(members: Sequence[Any]) -> None:
    if not len(members):
        raise DataError("there are no members to combine; give one array each")
    for member in members:
        if not isinstance(member, np.ndarray | Tensor):
            raise DataError(
                f"expected NumPy arrays or torch tensors, got {type(member).__name__}; open the "
                'files: np.load(path, mmap_mode="c")'
            )
    kinds = [f"{tuple(member.shape)} {member.dtype}" for member in members]
    odd = [f"member {i} is {kind}" for i, kind in enumerate(kinds) if kind != kinds[0]]
    if odd:
        raise DataError(
            f"members differ: member 0 is {kinds[0]}, {', '.join(odd)}; give all of them "
            "predictions of the same rows and classes, in one dtype"
        )
    if not members[0].ndim or not len(members[0]):
        raise DataError(f"members have no rows: their shape is {tuple(members[0].shape)}")

"""How far checkpoints are from each other: cosines and distances, in one pass over the weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.checkpoints.base import Checkpoint, TensorInfo
from polyfuse.dtypes import doubles
from polyfuse.inspection.base import PIECE, Progress, pieces
from polyfuse.statedict import role

# Below this cosine of their weight matrices, checkpoints look like independent runs. Measured on
# MLPs, CNNs and transformers: independent seeds have at most 0.03, and their average collapses;
# steps of one run and fine-tunes of one start have at least 0.66 (0.16 to 0.2 where fine-tuning
# diverged, and that average collapsed, too).
RELATED = 0.3
SAMPLE = 1 << 28  # elements, of all checkpoints together, that are read unless all are asked for
_SMALL = 1 << 14  # elements of a piece where not all are read: every tensor has its share
_BUDGET = 1 << 22  # elements in memory
Matrix = NDArray[np.float64]
_silently = np.errstate(all="ignore")  # NaN and infinity stay what they are


@dataclass(frozen=True)
class Distances:
    """Products of weights and of their differences, from which cosines and distances follow.

    Attributes:
        grams: by tensor, the products of `[first, second - first, third - first, ...]` with each
            other, (n, n) fp64. Differences are taken before they are multiplied, so that what is
            nearly equal keeps its digits.
        measured: elements of each checkpoint that were read.
        total: elements of each checkpoint.
    """

    grams: Mapping[str, Matrix]
    measured: int
    total: int

    @cached_property
    def _gram(self) -> Matrix:
        total: Matrix = np.stack(list(self.grams.values())).sum(0)
        return total

    @property
    def cosines(self) -> Matrix:
        """The cosine of each pair of checkpoints, (n, n)."""
        return _cosines(_products(self._gram))

    @property
    @_silently
    def distances(self) -> Matrix:
        """The distance of each pair relative to the mean of their norms, (n, n)."""
        gram = self._gram.copy()
        norms = _roots(_products(gram).diagonal())
        gram[0], gram[:, 0] = 0, 0  # the first one's difference from itself
        squares = gram.diagonal()
        apart: Matrix = _roots(squares[:, None] + squares[None] - 2 * gram)
        relative: Matrix = apart / ((norms[:, None] + norms[None]) / 2)
        return relative

    @property
    @_silently
    def from_mean(self) -> list[tuple[float, float]]:
        """The cosine of each checkpoint with the mean of all, and its relative distance to it."""
        n = len(self._gram)
        products = _products(self._gram)
        mean, norm = products.mean(1), _roots(products.mean())
        centre = self._gram.copy()
        centre[0], centre[:, 0] = 0, 0
        apart = _roots(centre.diagonal() - 2 * centre.mean(1) + centre.mean())
        cosines = mean / (_roots(products.diagonal()) * norm)
        return [(float(cosines[i]), float(apart[i] / norm)) for i in range(n)]

    def lowest(self) -> list[tuple[str, float]]:
        """Return the tensors by the lowest cosine of any pair, lowest first."""
        found = {name: float(_cosines(_products(gram)).min()) for name, gram in self.grams.items()}
        return sorted(found.items(), key=lambda pair: (math.isnan(pair[1]), pair[1]))

    def groups(self) -> list[list[int]]:
        """Return which checkpoints hang together by cosines above `RELATED`."""
        near = self.cosines >= RELATED
        left, groups = list(range(len(near))), []
        while left:
            group = [left.pop(0)]
            for member in group:
                group += [other for other in left if near[member, other]]
                left = [other for other in left if other not in group]
            groups.append(sorted(group))
        return groups


def distances(
    checkpoints: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    *,
    sample: int | None = SAMPLE,
    progress: Progress,
) -> Distances | None:
    """Measure how far checkpoints are from each other, over their weight matrices.

    Norm scales, biases and running statistics are alike in all nets and would blur the picture;
    they count only where there is no matrix.

    Args:
        checkpoints: open.
        columns: by the first one's name, the name in each; of tensors of one shape.
        sample: elements to read at most, of all checkpoints together; pieces of every tensor are
            taken then. None reads all.
        progress: called with ("inspect", bytes done, all, "").

    Returns:
        None where they have no floating tensors in common.

    Raises:
        CheckpointError: bytes of a tensor are not there.
    """
    used = sorted(_weights(checkpoints, columns), key=lambda name: checkpoints[0].info(name).order)
    if not used:
        return None
    infos = {name: _beside(checkpoints, columns[name]) for name in used}
    total = sum(infos[name][0].count for name in used)
    every = 1 if sample is None else math.ceil(len(checkpoints) * total / sample)
    size = min(PIECE, _BUDGET // len(checkpoints)) if every <= 1 else _SMALL
    stretches = [(name, *stretch) for name in used for stretch in pieces(infos[name], size)]
    taken = [s for i, s in enumerate(stretches) if s[1] == 0 or i % every == 0]
    measured = sum(stop - start for _, start, stop in taken)
    share = sum(info.nbytes for name in used for info in infos[name]) / total  # bytes an element
    grams = {name: np.zeros(2 * [len(checkpoints)]) for name in used}
    done = 0
    for name, start, stop in taken:
        grams[name] += _products_of_piece(checkpoints, columns[name], start, stop)
        done += stop - start
        progress("inspect", done * share, measured * share, "")
    return Distances(grams, measured, total)


def _beside(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> list[TensorInfo]:
    return [c.info(name) for c, name in zip(checkpoints, names, strict=True)]


def _weights(
    checkpoints: Sequence[Checkpoint], columns: Mapping[str, tuple[str, ...]]
) -> list[str]:
    first = checkpoints[0]
    infos = {name: first.info(name) for name in columns}
    floating = [
        name
        for name, info in infos.items()
        if info.dtype.is_floating_point
        and info.count
        and role(name, columns) == "parameter"
        and name not in first.aliases
    ]
    return [name for name in floating if len(infos[name].shape) >= 2] or floating


@_silently
def _products_of_piece(
    checkpoints: Sequence[Checkpoint], names: Sequence[str], start: int, stop: int
) -> Matrix:
    rows = np.empty((len(checkpoints), stop - start))
    for row, checkpoint, name in zip(rows, checkpoints, names, strict=True):
        row[:] = doubles(checkpoint.bits(name, start, stop), checkpoint.info(name).dtype)
    rows[1:] -= rows[0]
    products: Matrix = rows @ rows.T
    return products


@_silently
def _products(gram: Matrix) -> Matrix:
    """Return the products of the weights themselves: each is the first plus its difference."""
    back = np.eye(len(gram))
    back[:, 0] = 1
    products: Matrix = back @ gram @ back.T
    return products


@_silently
def _cosines(products: Matrix) -> Matrix:
    norms = _roots(products.diagonal())
    cosines: Matrix = products / (norms[:, None] * norms[None])
    return cosines


def _roots(squares: Any) -> Any:
    """Return square roots; what rounding made negative is zero."""
    return np.sqrt(np.maximum(squares, 0))

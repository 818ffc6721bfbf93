"""Whether checkpoints can be averaged, and with what; every difference between them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from polyfuse.checkpoints.base import Checkpoint, TensorInfo
from polyfuse.dtypes import DType
from polyfuse.errors import printable
from polyfuse.inspection.base import Progress
from polyfuse.inspection.contents import is_equal
from polyfuse.inspection.distances import RELATED, Distances, distances
from polyfuse.statedict import match_names, role

_LARGE = 1 << 20  # elements from which integers are not compared
_PATTERNS = 6  # that are proposed; more say that these are different models


@dataclass(frozen=True)
class Comparison:
    """What tells several checkpoints apart.

    Attributes:
        faults: why they cannot be averaged as they are, a sentence each.
        options: what to type so that they can be; nothing where they can, or where none helps.
        notes: differences that do not matter, a sentence each.
        warnings: what makes their average doubtful, a sentence each.
        same: groups of checkpoints (their numbers) with the same weights.
        distances: of their weights; None where they have none in common.
    """

    faults: Sequence[str]
    options: Sequence[str]
    notes: Sequence[str]
    warnings: Sequence[str] = field(default_factory=list)
    same: Sequence[Sequence[int]] = field(default_factory=list)
    distances: Distances | None = None

    @property
    def verdict(self) -> str:
        """`yes`, `no`, or `yes, with` the options to type."""
        if not self.faults:
            return "yes"
        return f"yes, with {' '.join(self.options)}" if self.options else "no"


def compare(
    checkpoints: Sequence[Checkpoint],
    *,
    sample: int | None,
    progress: Progress,
) -> Comparison:
    """Compare checkpoints: names, shapes, dtypes, integers, and how far their weights are apart.

    Args:
        checkpoints: open, two or more.
        sample: elements to read at most; None reads all.
        progress: called with ("inspect", bytes done, all, "").

    Raises:
        CheckpointError: the bytes of a tensor are not there.
    """
    titles = [str(checkpoint.path) for checkpoint in checkpoints]
    names = [list(checkpoint.names()) for checkpoint in checkpoints]
    match = match_names(names, titles)
    misfits = dict(_misfits(checkpoints, match.columns))
    differing = list(_differing_integers(checkpoints, match.columns, misfits))
    columns = {name: its for name, its in match.columns.items() if name not in misfits}
    odd = [*_unmatched(names, match.columns), *misfits]
    faults = [*match.faults, *misfits.values()]
    faults += [f"integers differ: '{printable(name)}'" for name in differing]
    measured = distances(checkpoints, columns, sample=sample, progress=progress)
    same = list(_same(checkpoints, columns, odd, measured))
    return Comparison(
        faults=faults,
        options=_options(odd, differing) if columns else [],
        notes=[*match.notes, *_dtypes(checkpoints, columns)],
        warnings=[*_doubts(titles, measured), *_repeated(titles, same)],
        same=same,
        distances=measured,
    )


def _misfits(
    checkpoints: Sequence[Checkpoint], columns: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    """Yield tensors that cannot be averaged: their shapes, or their kinds of number, differ."""
    for name, its in columns.items():
        infos = _infos(checkpoints, its)
        shapes = dict.fromkeys(str(list(info.shape)) for info in infos)
        kinds = dict.fromkeys(_kind(info.dtype) for info in infos)
        if len(shapes) > 1:
            yield name, f"shapes differ: '{printable(name)}' is {' and '.join(shapes)}"
        elif len(kinds) > 1:
            yield name, f"dtypes differ: '{printable(name)}' is {' and '.join(kinds)}"


def _kind(dtype: DType) -> str:
    return "floating" if dtype.is_floating_point else str(dtype).removeprefix("torch.")


def _infos(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> list[TensorInfo]:
    return [c.info(name) for c, name in zip(checkpoints, names, strict=True)]


def _unmatched(names: Sequence[Sequence[str]], columns: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the names that are not in every checkpoint."""
    found: dict[str, None] = {}
    for number, own in enumerate(names):
        matched = {its[number] for its in columns.values()}
        found |= dict.fromkeys(name for name in own if name not in matched)
    return list(found)


def _differing_integers(
    checkpoints: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    misfits: Mapping[str, str],
) -> Iterator[str]:
    """Yield integer buffers that are not equal, so that a policy must say what becomes of them."""
    for name, its in columns.items():
        info = checkpoints[0].info(name)
        plain = info.dtype.is_floating_point or info.dtype.is_complex or info.count > _LARGE
        if plain or name in misfits or role(name, columns) == "counter":
            continue
        others = zip(checkpoints[1:], its[1:], strict=True)
        if not all(is_equal(checkpoints[0], name, other, its_name) for other, its_name in others):
            yield name


def _options(odd: Sequence[str], differing: Sequence[str]) -> list[str]:
    """Return what to type so that the rest can be averaged; nothing where that is too much."""
    patterns = dict.fromkeys(_pattern(name) for name in odd)
    options = [f"--exclude '{pattern}'" for pattern in patterns]
    options += [f"--policy '{name}=first'" for name in differing]
    clean = all(option.isprintable() and option.count("'") == 2 for option in options)
    return options if clean and len(options) <= _PATTERNS else []


def _pattern(name: str) -> str:
    layer, dot, _ = name.rpartition(".")
    return f"{layer}.*" if dot else name


def _dtypes(
    checkpoints: Sequence[Checkpoint], columns: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """Yield what is said of dtypes that differ, once for each set of them."""
    counts: dict[tuple[str, ...], int] = {}
    for its in columns.values():
        dtypes = tuple(str(i.dtype).removeprefix("torch.") for i in _infos(checkpoints, its))
        if len(set(dtypes)) > 1:
            counts[dtypes] = counts.get(dtypes, 0) + 1
    for dtypes, count in counts.items():
        other = next(i for i, dtype in enumerate(dtypes) if dtype != dtypes[0])
        yield (
            f"{count:,} tensors are {dtypes[0]} in '{printable(checkpoints[0].path)}', "
            f"{dtypes[other]} in '{printable(checkpoints[other].path)}'; an average is "
            f"{dtypes[0]}, unless --dtype says another"
        )


def _doubts(titles: Sequence[str], measured: Distances | None) -> Iterator[str]:
    """Yield why an average may be worth nothing."""
    if measured is None:
        return
    groups = measured.groups()
    if not bool(np.isfinite(measured.cosines).all()):
        yield "their weights hold NaN, Inf or only zeros; --check-values counts what is not finite"
    elif len(groups) > 1:
        each = "; ".join(", ".join(printable(titles[i]) for i in group) for group in groups)
        lowest = round(float(measured.cosines.min()), 2) + 0.0  # never -0.00
        yield (
            f"these look like independent runs: {each}. The cosine of their weights is "
            f"{lowest:.2f}, that of runs with a common start is above {RELATED:g}. Averaging the "
            "weights of independent runs collapses; average their predictions instead"
        )
    else:
        strange = [(name, low) for name, low in measured.lowest() if low < RELATED]
        if strange:
            shown = ", ".join(f"'{printable(name)}' ({low:.2f})" for name, low in strange[:3])
            yield f"{len(strange):,} tensors have little in common, such as {shown}: a new head?"


def _same(
    checkpoints: Sequence[Checkpoint],
    columns: Mapping[str, tuple[str, ...]],
    odd: Sequence[str],
    measured: Distances | None,
) -> Iterator[list[int]]:
    """Yield groups of checkpoints with the same bytes in every tensor."""
    if odd or measured is None:
        return
    left = set(range(len(checkpoints)))
    near = measured.distances == 0
    for i in range(len(checkpoints)):
        group = [j for j in sorted(left) if j > i and near[i, j] and i in left]
        same = [j for j in group if _is_same(checkpoints, columns, i, j)]
        left -= {i, *same}
        if same:
            yield [i, *same]


def _is_same(
    checkpoints: Sequence[Checkpoint], columns: Mapping[str, tuple[str, ...]], i: int, j: int
) -> bool:
    one, other = checkpoints[i], checkpoints[j]
    return all(is_equal(one, its[i], other, its[j]) for its in columns.values())


def _repeated(titles: Sequence[str], same: Sequence[Sequence[int]]) -> Iterator[str]:
    for group in same:
        names = " and ".join(f"'{printable(titles[i])}'" for i in group)
        yield f"{names} have the same weights; each of them counts"


def farthest(measured: Distances) -> tuple[int, int, float, float]:
    """Return the pair that is farthest apart: its numbers, cosine and distance."""
    apart, cosines = measured.distances, measured.cosines
    pairs = combinations(range(len(apart)), 2)
    i, j = max(pairs, key=lambda p: (not math.isnan(float(apart[p])), float(apart[p])))
    return i, j, float(cosines[i, j]), float(apart[i, j])

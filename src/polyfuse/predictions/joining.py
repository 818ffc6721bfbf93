"""Which row of each file belongs to which sample: joined by ids, or by position without them."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import printable

Positions = NDArray[np.int64]
_SHOWN = 3


class Rows(NamedTuple):
    """The rows of one file: its name, how many, and what they are called."""

    name: str
    length: int
    ids: Sequence[str] | None


class Joined(NamedTuple):
    """What the rows of several files have in common.

    Attributes:
        ids: of the rows, in the order of the first file that has them; None where none has.
        taken: of each file, the positions of these rows; None where they are all of it, in order.
        faults: what does not fit, one sentence a file.
        notes: what people should know of it.
    """

    ids: list[str] | None
    taken: list[Positions | None]
    faults: list[str]
    notes: list[str]


def join(files: Sequence[Rows], *, shared: bool = False) -> Joined:
    """Join the rows of files.

    Files without ids must have as many rows as the first file with ids, and are taken to be in
    its order.

    Args:
        files: the labels first, where there are any.
        shared: keep the rows that all files have; otherwise a row that one lacks is a fault.

    Example:
        >>> join([Rows("y", 2, ["a", "b"]), Rows("p", 2, ["b", "a"])]).taken
        [None, array([1, 0])]
    """
    named = [file for file in files if file.ids is not None]
    if not named:
        return _by_position(files)
    faults = [fault for file in named if (fault := _twice(file))]
    first, ids = named[0].name, list(dict.fromkeys(named[0].ids or ()))
    places = [_places(file) for file in files]
    kept = [name for name in ids if all(place is None or name in place for place in places)]
    if not shared:
        faults += [
            fault
            for file, place in zip(files, places, strict=True)
            if place is not None and (fault := _differs(file.name, first, place, ids))
        ]
    elif not kept:
        faults.append(f"no row of '{first}' is in all files; compare their ids")
    faults += [
        f"'{file.name}' has {file.length:,} rows and no ids, but '{first}' has {len(ids):,}; add a "
        "column of ids, or bring the same rows in the same order"
        for file in files
        if file.ids is None and file.length != len(ids)
    ]
    if faults:
        return Joined(ids, [], faults, [])
    return Joined(kept, _taken(files, places, ids, kept), [], _notes(files, first, places, kept))


def _by_position(files: Sequence[Rows]) -> Joined:
    counts = {file.length for file in files}
    if len(counts) == 1:
        return Joined(None, [None] * len(files), [], [])
    told = ", ".join(f"'{file.name}' has {file.length:,}" for file in files)
    fault = f"files without ids need the same rows in the same order, but {told}; add a column id"
    return Joined(None, [], [fault], [])


def _twice(file: Rows) -> str | None:
    ids = file.ids or ()
    if len(set(ids)) == len(ids):
        return None
    twice = [name for name, count in Counter(ids).items() if count > 1]
    return (
        f"'{file.name}' has {len(twice):,} ids more than once ({_examples(twice)}); keep one each"
    )


def _places(file: Rows) -> dict[str, int] | None:
    return None if file.ids is None else {name: i for i, name in enumerate(file.ids)}


def _differs(name: str, first: str, place: dict[str, int], ids: list[str]) -> str | None:
    missing = [known for known in ids if known not in place]
    extra = list(place.keys() - set(ids))
    if not missing and not extra:
        return None
    extra.sort(key=place.__getitem__)
    parts = [f"lacks {len(missing):,} ids of '{first}' ({_examples(missing)})"] if missing else []
    parts += [f"has {len(extra):,} more ({_examples(extra)})"] if extra else []
    return (
        f"'{name}' {' and '.join(parts)}; bring the same rows in every file, or keep those that "
        'all have: rows="shared", typed --rows shared'
    )


def _examples(ids: Sequence[str]) -> str:
    shown = ", ".join(f"'{printable(name, 40)}'" for name in ids[:_SHOWN])
    return shown + (", ..." if len(ids) > _SHOWN else "")


def _taken(
    files: Sequence[Rows],
    places: Sequence[dict[str, int] | None],
    ids: list[str],
    kept: list[str],
) -> list[Positions | None]:
    order = {name: i for i, name in enumerate(ids)}
    found: list[Positions | None] = []
    for file, place in zip(files, places, strict=True):
        known = order if place is None else place
        positions = np.fromiter(map(known.__getitem__, kept), np.int64, len(kept))
        as_it_is = len(kept) == file.length and (positions == np.arange(len(kept))).all()
        found.append(None if as_it_is else positions)
    return found


def _notes(
    files: Sequence[Rows], first: str, places: Sequence[dict[str, int] | None], kept: list[str]
) -> list[str]:
    every = {name for place in places if place is not None for name in place}
    left = len(every) - len(kept)
    notes = [f"{left:,} rows that not all files have are left out"] if left else []
    without = [file.name for file in files if file.ids is None]
    if without:
        notes.append(
            f"{printable(', '.join(without))} without ids: taken to be in the order of '{first}'"
        )
    return notes

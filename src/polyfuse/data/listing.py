"""What the files of a data set list: images, names, labels, boxes; matched with what is there."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polyfuse.data.base import Labels, Splits
from polyfuse.data.faults import Faults
from polyfuse.data.image_files import ImageFiles, name_fault
from polyfuse.data.looks import Boxes
from polyfuse.errors import DataError

SHARE = 5  # one in so many images goes to each split that is not given


class Listed(NamedTuple):
    """The images of one split as its files list them.

    Attributes:
        files: paths under the data set's folder.
        names: of the rows, as a submission wants them.
        labels: `(n, positions)` int64, padded right with the blank class; None where unknown.
        boxes: `(n, boxes, 4)` float32 left, top, width and height in pixels, NaN where there is no
            further box; None where no image has boxes.
    """

    files: Sequence[str]
    names: Sequence[str]
    labels: Labels | None = None
    boxes: Boxes | None = None

    def taken(self, rows: Sequence[int]) -> "Listed":
        """Return some of the images."""
        at = np.asarray(rows, dtype=np.int64)
        return Listed(
            [self.files[i] for i in rows],
            [self.names[i] for i in rows],
            None if self.labels is None else self.labels[at],
            None if self.boxes is None else self.boxes[at],
        )


def joined(parts: Sequence[Listed]) -> Listed:
    """Return the images of several places, all of them with labels and boxes, as one list.

    Example:
        >>> one = Listed(["a.png"], ["a"], np.zeros((1, 6), int), np.zeros((1, 6, 4), np.float32))
        >>> len(joined([one, one]).files)
        2
    """
    return Listed(
        [file for part in parts for file in part.files],
        [name for part in parts for name in part.names],
        np.concatenate([part.labels for part in parts if part.labels is not None]),
        np.concatenate([part.boxes for part in parts if part.boxes is not None]),
    )


def matched(source: ImageFiles, place: str, listed: Sequence[str], faults: Faults) -> list[int]:
    """Return which names of a list have an image, and note what the list and the place lack.

    Args:
        source: has the images.
        place: folder or tar that the list is about.
        listed: names, as a stranger wrote them.
        faults: are added to.

    Returns:
        Places in `listed`, in its order, of those that are to be read.
    """
    there = set(source.names(place))
    for name, unsafe in source.tars[place].faults if place in source.tars else ():
        faults.add(f"{place}/{name}", "unsafe file", unsafe)
    seen: set[str] = set()
    usable = []
    for row, name in enumerate(listed):
        file = path_of(place, name)
        if fact := name_fault(name) or ("is listed twice" if name in seen else None):
            faults.add(file, "file name", fact)
        elif name not in there:
            faults.add(file, "missing image", "it is listed, and there is no such file")
        elif file not in faults.excluded:
            usable.append(row)
        seen.add(name)
    for name in sorted(there - seen):
        faults.add(path_of(place, name), "missing entry", "the image is there, and no list has it")
    faults.known.update(path_of(place, name) for name in there | seen)
    return usable


def path_of(place: str, name: str) -> str:
    """Return the path of an image under the data set's folder; that itself is the place "".

    Example:
        >>> path_of("train", "1.png"), path_of("", "1.png")
        ('train/1.png', '1.png')
    """
    return f"{place}/{name}" if place else name


def dealt_splits(
    given: Mapping[str, Listed], counts: Mapping[str, int | None], seed: int, faults: Faults
) -> dict[str, Listed]:
    """Return three splits: those that are given, and the rest dealt out of "" or "train".

    Args:
        given: by name; `""` is all images in one.
        counts: images asked for, by split.
        seed: deals.
        faults: found so far; where images are too few because of them, they are what is told.

    Raises:
        DataError: more images asked for than there are, or fewer than 1.
    """
    pool = given.get("", given.get("train"))
    assert pool is not None  # a data set has one of them
    order, rows = dealt(pool.files, seed), {}
    wanted = [name for name in ("val", "test") if name not in given]
    try:
        for name in wanted:
            share = max(1, len(pool.files) // SHARE) if counts[name] is None else counts[name]
            rows[name], order = _cut(name, order, share)
        rows["train"], _ = _cut("train", order, counts["train"])
    except DataError:
        faults.refuse(len(faults.known))
        raise
    # In the order of the list: only which images a split has is a matter of chance.
    made = {name: pool.taken(sorted(those)) for name, those in rows.items()}
    return {name: made[name] if name in made else given[name] for name in Splits._fields}


def _cut(name: str, order: list[int], count: int | None) -> tuple[list[int], list[int]]:
    """Take so many from the front, or all; return them and the rest."""
    most = len(order)
    wanted = most if count is None else count
    if not 1 <= wanted <= most:
        raise DataError(
            f"{name}={wanted} images, and there are {most} to take them from; "
            + (f"type 1 to {most}, or bring more" if most else "bring more")
        )
    return order[:wanted], order[wanted:]


def dealt(names: Sequence[str], seed: int) -> list[int]:
    """Return rows in a random order in which what comes first depends on seed and names alone.

    So a name that joins or is left out moves no other one from a split to another, but for the one
    at the border.

    Example:
        >>> dealt(["a", "b", "c"], 0), dealt(["b", "c"], 0)
        ([2, 1, 0], [1, 0])
    """
    texts = [f"{seed}/{name}".encode("utf-8", "surrogateescape") for name in names]
    keys = [hashlib.sha256(text).digest() for text in texts]
    return sorted(range(len(names)), key=keys.__getitem__)


def padded(strings: Sequence[Sequence[int]], positions: int, blank: int) -> Labels:
    """Return strings of classes as labels, padded right.

    Returns:
        `(strings, positions)` int64.

    Example:
        >>> padded([[4, 2], [7]], 3, 10).tolist()
        [[4, 2, 10], [7, 10, 10]]
    """
    labels = np.full((len(strings), positions), blank, np.int64)
    for row, classes in enumerate(strings):
        labels[row, : len(classes)] = classes
    return labels

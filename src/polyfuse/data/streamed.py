"""A split of image files, decoded when asked for: whole or cut to its boxes, in one size.

Every file is read once when the data set is opened: that finds what is damaged, fills the cache and
makes the fingerprint, which later reads and decodes nothing. That the very same files were found
good is remembered (`remembered.py`), so that the next start reads none.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.data.base import DIGITS, Labels, Rows, Splits
from polyfuse.data.faults import Faults
from polyfuse.data.image_files import ImageFiles
from polyfuse.data.images import Box, decode, side_by_side
from polyfuse.data.listing import Listed
from polyfuse.data.looks import Boxes, Look, outside, union
from polyfuse.errors import DataError, printable
from polyfuse.remembered import Remembered, cache_file

_RULES = 1  # of a check; another number when they change
_BLOCK = 512  # images checked between two reports of progress
Progress = Callable[[int, int], None]


class _Kept:
    """Decoded images of the first rows; another process begins with none."""

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        self.rows, self.shape = rows, shape
        self.there = np.zeros(rows, bool)
        self.pixels = np.empty((rows, *shape), np.uint8)  # memory is used once it is written

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, (self.rows, self.shape)

    def put(self, row: int, image: NDArray[np.uint8]) -> None:
        if row < self.rows:
            self.pixels[row] = image
            self.there[row] = True


@dataclass(frozen=True)
class StreamedImages:
    """One split of image files that are decoded when they are asked for.

    Attributes:
        source: reads the files.
        listed: files, names, labels and boxes.
        look: how they are shown.
        alphabet: characters that the classes stand for.
        kept: rows whose decoded images may be kept in memory: the first ones.

    Example:
        >>> from pathlib import Path
        >>> from polyfuse.data.looks import look
        >>> listed = Listed(["a.png"], ["a.png"])
        >>> split = StreamedImages(ImageFiles(Path(".")), listed, look((24, 64)))
        >>> len(split), split.blank
        (1, 10)
    """

    source: ImageFiles
    listed: Listed
    look: Look
    alphabet: str = DIGITS
    kept: int = 0
    groups: Rows | None = None
    streams: ClassVar[bool] = True  # see data/ahead.py
    _kept: _Kept = field(init=False, repr=False, compare=False)
    _digest: str | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Set the memory for decoded images aside."""
        kept = _Kept(min(self.kept, len(self)), (3, *self.look.size))
        object.__setattr__(self, "_kept", kept)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.listed.files)

    @property
    def labels(self) -> Labels | None:
        """`(n, positions)` int64 classes, or None."""
        return self.listed.labels

    @property
    def names(self) -> Sequence[str]:
        """One name a row, as a submission file wants them."""
        return self.listed.names

    @property
    def boxes(self) -> Boxes | None:
        """`(n, boxes, 4)` float32 left, top, width, height in pixels of the file, or None."""
        return self.listed.boxes

    @property
    def blank(self) -> int:
        """The class that means "no character here"."""
        return len(self.alphabet)

    def inputs(self, rows: Rows) -> Tensor:
        """Return images `rows` as `(m, 3, height, width)` float32 from 0 to 1.

        Raises:
            DataError: a file is gone or was damaged since the data set was opened.
        """
        kept = self._kept
        if kept.rows and (rows < kept.rows).all() and kept.there[rows].all():
            return torch.from_numpy(kept.pixels[rows]).float().div_(255)
        pixels = np.empty((len(rows), *kept.shape), np.uint8)

        def read(places: Sequence[int]) -> None:
            for place in places:
                pixels[place] = self._pixels(int(rows[place]))

        side_by_side(read, len(rows), self.look.workers)
        return torch.from_numpy(pixels).float().div_(255)

    def fingerprint(self) -> str:
        """Return a SHA-256 over the files' bytes, names, labels, boxes and how they are shown."""
        if self._digest is None:
            read = (hashlib.sha256(self.source.read(f)).digest() for f in self.listed.files)
            self.seal(hashlib.sha256(b"".join(read)).hexdigest())
        assert self._digest is not None  # sealed
        return self._digest

    def check(self, faults: Faults, notify: Callable[[int], None] = lambda done: None) -> str:
        """Read and decode every file once; note what is wrong, and keep the fingerprint.

        Args:
            faults: are added to.
            notify: called with the number of images that were read since the last call.

        Returns:
            A SHA-256 of all files' bytes.
        """
        digests: list[bytes] = [b""] * len(self)
        found: list[list[tuple[str, str]]] = [[] for _ in range(len(self))]

        def read(start: int, places: Sequence[int]) -> None:
            for row in (start + place for place in places):
                digests[row] = self._checked(row, found[row])

        for start in range(0, len(self), _BLOCK):
            count = min(_BLOCK, len(self) - start)
            side_by_side(partial(read, start), count, self.look.workers)
            notify(count)
        for file, those in zip(self.listed.files, found, strict=True):
            for kind, fact in those:
                faults.add(file, kind, fact)
        contents = hashlib.sha256(b"".join(digests)).hexdigest()
        self.seal(contents)
        return contents

    def facts(self) -> bytes:
        """Return what, beside the files themselves, decides whether a check finds faults."""
        boxes = b"-" if self.boxes is None else np.ascontiguousarray(self.boxes).tobytes()
        return repr((_RULES, list(self.listed.files))).encode("utf-8", "surrogateescape") + boxes

    def _checked(self, row: int, found: list[tuple[str, str]]) -> bytes:
        """Read one file; return the SHA-256 of its bytes, and note what is wrong with it."""

        def place(width: int, height: int) -> Box | None:
            found.extend(
                ("box outside the image", f) for f in outside(self._of(row), width, height)
            )
            return self._box(row, width, height)

        try:
            raw = self.source.read(self.listed.files[row])
            self._kept.put(row, decode(raw, self.look.size, place))
        except DataError as error:
            found.append(("unreadable image", str(error)))
            return b""
        return hashlib.sha256(raw).digest()

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        if row < self._kept.rows and self._kept.there[row]:
            image: NDArray[np.uint8] = self._kept.pixels[row]
            return image
        file = self.listed.files[row]
        try:
            image = decode(self.source.read(file), self.look.size, partial(self._box, row))
        except DataError as error:
            raise DataError(f"cannot read the image '{printable(file)}': {error}") from None
        self._kept.put(row, image)
        return image

    def _of(self, row: int) -> Boxes:
        boxes = self.listed.boxes
        return np.empty((0, 4), np.float32) if boxes is None else boxes[row]

    def _box(self, row: int, width: int, height: int) -> Box | None:
        if self.look.crop != "union":
            return None
        return union(self._of(row), width, height, self.look.margin)

    def seal(self, contents: str) -> None:
        """Keep the fingerprint, by the SHA-256 of all files' bytes."""
        size, crop, margin = self.look[:3]
        facts = (self.alphabet, list(self.names), tuple(size), crop, margin, len(self))
        digest = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape"))
        for array in (self.labels, self.boxes, self.groups):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        digest.update(contents.encode())
        object.__setattr__(self, "_digest", digest.hexdigest())


def opened(
    source: ImageFiles,
    splits: Mapping[str, Listed],
    look: Look,
    faults: Faults,
    *,
    alphabet: str = DIGITS,
    crops: Mapping[str, str] = {},
    notify: Progress = lambda done, total: None,
) -> Splits:
    """Open the three splits: every file is read, and all that is wrong is told at once.

    Args:
        source: reads the files.
        splits: train, val and test.
        look: how images are shown; the memory goes to the training images first.
        faults: found so far.
        alphabet: characters that the classes stand for.
        crops: of splits that are not cut as `look` says.
        notify: called with (images read, images in all).

    Raises:
        DataError: faults, or a split without images.
    """
    total = sum(len(listed.files) for listed in splits.values())
    budget = look.cache // (3 * look.size[0] * look.size[1])
    made, done = [], 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        notify(done, total)

    remembered = Remembered(cache_file())
    for name, listed in splits.items():
        kept = min(budget, len(listed.files))
        budget -= kept
        shown = look._replace(crop=crops.get(name, look.crop))
        made.append(StreamedImages(source, listed, shown, alphabet, kept))
        _check_once(made[-1], remembered, faults, told)
    faults.refuse(len(faults.known))
    faults.refuse_unknown()
    remembered.save()  # where there were faults, nothing is remembered
    empty = [name for name, listed in splits.items() if not listed.files]
    if empty:
        raise DataError(
            f"'{printable(source.root)}' has no images for {' and '.join(empty)}; every split "
            "needs at least 1"
        )
    return Splits(*made)


def _check_once(
    split: StreamedImages, remembered: Remembered, faults: Faults, told: Callable[[int], None]
) -> None:
    """Check a split, unless the very same files were found good before."""
    files = split.listed.files
    key = remembered.together(split.source.paths(files), split.facts())
    if contents := remembered.known(key):
        split.seal(contents)
        told(len(files))
        return
    remembered.learn(key, split.check(faults, told))

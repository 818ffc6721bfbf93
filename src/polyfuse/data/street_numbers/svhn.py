"""SVHN in its two formats: whole photos with boxes (1), and cut-out digits of 32 x 32 pixels (2).

    ROOT/train/digitStruct.mat  1.png ...     ROOT/train_32x32.mat
         test/                                     test_32x32.mat
         extra/                                    extra_32x32.mat

A digit 0 has the label 10 in both. There is no validation set: one is dealt out of the training
images by a seed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.base import Labels, Splits
from polyfuse.data.faults import Faults
from polyfuse.data.image_files import ImageFiles
from polyfuse.data.listing import Listed, dealt, dealt_splits, joined
from polyfuse.data.looks import CACHE, MARGIN, Crop, look
from polyfuse.data.streamed import opened
from polyfuse.data.street_numbers.base import BLANK, POSITIONS, SIZE, StreetNumbers, listed_digits
from polyfuse.data.street_numbers.digit_struct import read_digit_struct
from polyfuse.errors import DataError, printable
from polyfuse.solvers import matlab_arrays

SIDE = 32
NEIGHBOURS = 50  # digits that are dealt together: those of one photo stand side by side
SHARE = 10  # one in so many blocks of neighbours is for validation
_LIMIT = 4 << 30  # values of an array; `extra` has 1.6 billion


def svhn_format1(
    *,
    root: str,
    size: Sequence[int] = SIZE,
    crop: Crop = "union",
    margin: float = MARGIN,
    longest: int = POSITIONS,
    extra: bool = False,
    train: int | None = None,
    val: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    cache: int = CACHE,
    exclude: str | None = None,
    report: str | None = None,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Splits:
    """Read SVHN format 1: folders of photos, each with a `digitStruct.mat`.

    Args:
        root: has the folders `train` and `test`.
        size: height and width that images are resized to.
        crop: "union": all images, test ones too, are cut to the box around their digits, as
            Goodfellow et al. 2013 have it; or "whole".
        margin: share of the box by which it grows on each side.
        longest: digits at most; positions of the labels.
        extra: train on the images of the folder `extra`, too.
        train: images of the training split; None is all that validation leaves.
        val: images dealt to the validation split, by a hash of the seed and their paths; None is a
            fifth.
        seed: deals.
        workers: threads that decode; None is as many as there are cores, at most 8.
        cache: megabytes of decoded images that each process keeps.
        exclude: a list of files to leave out, as `report` writes it.
        report: where a list of all faults is written, should there be any.
        notify: called with (images read, images in all), of annotations and of images.

    Returns:
        Three `StreamedImages`; labels `(n, longest)`, 10 where there is no digit.

    Raises:
        DataError: files that are missing, damaged or no annotations; everything that is wrong with
            the images and their entries, all at once.
        MissingExtraError: h5py is not installed.

    Example:
        >>> svhn_format1(root="/no/such/folder")
        Traceback (most recent call last):
        polyfuse.errors.DataError: there is no file '/no/such/folder/train/digitStruct.mat'
    """
    shown = look(size, crop, margin, workers, cache, longest)
    source, faults = ImageFiles(Path(root)), Faults(Path(root), exclude, report)

    def listed(part: str) -> Listed:
        entries = read_digit_struct(source.root / part / "digitStruct.mat", notify)
        return listed_digits(source, part, entries, longest, faults)

    pool = joined([listed(part) for part in ("train", *(["extra"] if extra else []))])
    given = {"train": pool._replace(names=pool.files), "test": listed("test")}
    splits = dealt_splits(given, {"train": train, "val": val}, seed, faults)
    return opened(source, splits, shown, faults, notify=notify)


def svhn_format2(
    *,
    root: str,
    extra: bool = False,
    train: int | None = None,
    val: int | None = None,
    seed: int = 0,
) -> Splits:
    """Read SVHN format 2: one digit in the middle of each 32 x 32 image, and ten classes.

    The digits of a photo stand side by side in the file. So blocks of 50 neighbours are dealt to
    training and validation, not single digits, and a block is a group, which no fold divides.

    Args:
        root: has `train_32x32.mat` and `test_32x32.mat`.
        extra: train on the images of `extra_32x32.mat`, too.
        train: images of the training split; None is all that validation leaves.
        val: images of the validation split; None is a tenth. Blocks are whole, but for the last.
        seed: deals.

    Returns:
        Three `StreetNumbers` of images `(n, 3, 32, 32)` in memory and classes 0 to 9; a row is
        named by its file and its number in it, from 1.

    Raises:
        DataError: a file that is missing, damaged, or without `X` and `y` of these shapes; labels
            outside 1 to 10, counted; more images asked for than there are.

    Example:
        >>> svhn_format2(root="/no/such/folder")
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such/folder/train_32x32.mat': No such file ...
    """
    parts = ("train", "extra") if extra else ("train",)
    read = [_digits(Path(root) / f"{part}_32x32.mat") for part in parts]
    images, labels = (np.concatenate([one[i] for one in read]) for i in (0, 1))
    counts = [len(one[1]) for one in read]
    names = [f"{part}/{i + 1}" for part, n in zip(parts, counts, strict=True) for i in range(n)]
    blocks = np.arange(len(labels)) // NEIGHBOURS
    order = dealt([str(block) for block in range(blocks[-1] + 1)], seed)
    rows = np.argsort(np.argsort(order)[blocks], kind="stable")
    wanted = max(1, len(rows) // SHARE) if val is None else val
    rest = len(rows) - wanted if train is None else train
    if wanted < 1 or rest < 1 or wanted + rest > len(rows):
        raise DataError(
            f"val={wanted} and train={rest} images, and there are {len(rows)}; type 1 or more of "
            "each, and no more than there are"
        )

    def split(chosen: NDArray[np.int64]) -> StreetNumbers:
        at = np.sort(chosen)
        return StreetNumbers(images[at], labels[at], [names[i] for i in at], blocks[at], None)

    test_images, test_labels = _digits(Path(root) / "test_32x32.mat")
    test_names = [f"test/{i + 1}" for i in range(len(test_labels))]
    return Splits(
        split(rows[wanted : wanted + rest]),
        split(rows[:wanted]),
        StreetNumbers(test_images, test_labels, test_names, None, None),
    )


def _digits(path: Path) -> tuple[NDArray[np.uint8], Labels]:
    """Return images `(n, 3, 32, 32)` and classes 0 to 9 of one file."""
    shown = printable(path)
    try:
        held = matlab_arrays(path, ["X", "y"], limit=_LIMIT)
    except ValueError as error:
        raise DataError(f"cannot read '{shown}': {printable(error)}; fetch it again") from None
    if held.keys() != {"X", "y"}:
        raise DataError(f"'{shown}' lacks X or y; it has {', '.join(held) or 'neither'}")
    images, labels = held["X"], held["y"].reshape(-1)
    if images.shape != (SIDE, SIDE, 3, len(labels)) or images.dtype != np.uint8 or not len(labels):
        raise DataError(
            f"'{shown}' has X {images.dtype} of shape {images.shape} and {len(labels)} labels; X "
            "must be uint8 (32, 32, 3, n), n as many as labels"
        )
    odd = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if len(odd):
        raise DataError(
            f"'{shown}' has {len(odd):,} labels outside 1 to 10 (10 means 0): row {odd[0] + 1} has "
            f"{labels[odd[0]]}; fetch it again"
        )
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % BLANK

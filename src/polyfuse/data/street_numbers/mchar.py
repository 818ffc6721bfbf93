"""The street-character contest ("mchar", Tianchi 531795) from its own files.

ROOT/mchar_train.json   mchar_train/    30,000 images (or mchar_train.tar)
     mchar_val.json     mchar_val/      10,000
     mchar_sample_submit_A.csv          names of the test images in the order of a submission
                        mchar_test_a/   40,000 without labels and boxes
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyfuse import durable
from polyfuse.data.base import Splits
from polyfuse.data.faults import Faults, rows_of
from polyfuse.data.image_files import ImageFiles
from polyfuse.data.listing import Listed, matched, path_of
from polyfuse.data.looks import CACHE, MARGIN, Crop, look
from polyfuse.data.streamed import opened
from polyfuse.data.street_numbers.base import POSITIONS, SIZE, Entry, listed_digits
from polyfuse.errors import DataError, PolyfuseError, printable

COLUMNS = ("file_name", "file_code")
SAMPLE = "mchar_sample_submit_A.csv"


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, those that occur twice, too."""


def mchar(
    *,
    root: str,
    size: Sequence[int] = SIZE,
    crop: Crop = "whole",
    val_crop: Crop | None = None,
    margin: float = MARGIN,
    longest: int = POSITIONS,
    test: str = "mchar_test_a",
    sample: str = SAMPLE,
    workers: int | None = None,
    cache: int = CACHE,
    exclude: str | None = None,
    report: str | None = None,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Splits:
    """Read the contest's files; its validation images are the validation split.

    Args:
        root: the folder with `mchar_train.json`, `mchar_val.json` and the folders of images, each
            of which may be a tar.
        size: height and width that images are resized to.
        crop: "whole", or "union": training images are cut to the box around all digits. Test
            images have no boxes and are always whole, so a net that saw only cut ones is tested on
            what it never saw; `val_crop: whole` then shows that on validation.
        val_crop: the same of the validation images; None is as the training images.
        margin: share of the box by which it grows on each side.
        longest: characters at most; positions of the labels.
        test: folder, or tar without its `.tar`, of the test images.
        sample: the sample submission; where there is none, test images are in the order of their
            names.
        workers: threads that decode; None is as many as there are cores, at most 8.
        cache: megabytes of decoded images that each process keeps.
        exclude: a list of files to leave out, as `report` writes it; of train and val only, since a
            submission needs a row for every test image.
        report: where a list of all faults is written, should there be any.
        notify: called with (images read, images in all).

    Returns:
        Three `StreamedImages`; labels `(n, longest)`, 10 where there is no character.

    Raises:
        DataError: files that are missing or no annotations; everything that is wrong with the
            images and their entries, all at once.

    Example:
        >>> mchar(root="/no/such/folder")
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such/folder/mchar_train.json': No such file ...
    """
    shown = look(size, crop, margin, workers, cache, longest)
    crops = {} if val_crop is None else {"val": look(size, val_crop).crop}
    source, faults = ImageFiles(Path(root)), Faults(Path(root), exclude, report)
    entries = {name: read_entries(source.root / f"mchar_{name}.json") for name in ("train", "val")}
    places = source.places({"train": "mchar_train", "val": "mchar_val", "test": test})
    splits = {
        name: listed_digits(source, places[name], those, longest, faults)
        for name, those in entries.items()
    }
    splits["test"] = _test(source, places["test"], sample, faults)
    return opened(source, splits, shown, faults, crops=crops, notify=notify)


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of an annotation file of the contest, in its order; none is checked.

    Raises:
        DataError: no such file, no JSON, or nothing in it.

    Example:
        >>> read_entries(Path("/no/such/mchar_val.json"))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such/mchar_val.json': No such file or directory
    """
    shown = printable(path)
    try:
        raw = durable.read_bytes(path, limit=durable.JSON_LIMIT)
        document = json.loads(raw, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{shown}' is not JSON ({printable(error)}); fetch it again") from None
    except PolyfuseError as error:
        raise DataError(str(error)) from None
    if not isinstance(document, _Pairs) or not document:
        raise DataError(f"'{shown}' has no entries by the names of images; fetch it again")
    return [
        Entry(name, dict(fields) if isinstance(fields, _Pairs) else {}) for name, fields in document
    ]


def _test(source: ImageFiles, place: str, sample: str, faults: Faults) -> Listed:
    """Return the test images in the order of the sample submission."""
    if (source.root / sample).exists():
        _, rows = rows_of(source.root / sample, [COLUMNS])
        names = [row[0] for row in rows]
        left_out = sorted(file for file in faults.excluded if file.startswith(f"{place}/"))
        if left_out:
            raise DataError(
                f"'{printable(faults.exclude)}' leaves out the test image "
                f"'{printable(left_out[0])}', and a submission needs a row for each; replace the "
                "file by an image of any kind, and take it off the list"
            )
    else:
        names = source.names(place)
    rows_there = matched(source, place, names, faults)
    files = [path_of(place, name) for name in names]
    return Listed(files, names).taken(rows_there)

"""The strings and boxes that annotation files have, by split; no image is looked for.

FOLDER/mchar_train.json  mchar_val.json        the contest
       train/digitStruct.mat  test/  extra/    SVHN, format 1
       train_32x32.mat  test_32x32.mat         SVHN, format 2
       labels.csv, or train/labels.csv ...     any labelled images
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from polyfuse.data.base import Splits
from polyfuse.data.faults import rows_of
from polyfuse.data.labelled_images import COLUMNS, LABELS, NAMED
from polyfuse.data.listing import padded
from polyfuse.data.statistics import Statistics, statistics_of
from polyfuse.data.street_numbers.base import FIELDS, POSITIONS, Entry, entry_faults
from polyfuse.data.street_numbers.digit_struct import read_digit_struct
from polyfuse.data.street_numbers.mchar import read_entries
from polyfuse.errors import DataError, printable
from polyfuse.sequences import DIGITS
from polyfuse.solvers import matlab_arrays

STRUCT = "digitStruct.mat"
CROPPED = "_32x32.mat"
_PARTS = (*Splits._fields, "extra")
_LONGEST = 256  # characters of a string
_LIMIT = 1 << 24  # labels of one file
Files = dict[str, Path]
Read = Callable[[Path], Statistics | None]


def annotations_of(path: str | Path) -> dict[str, Statistics]:
    """Return what the strings of a data set are like, by split, from its annotation files alone.

    Args:
        path: a folder in one of the layouts above, or one of these files.

    Raises:
        DataError: nothing that is known there; files that are damaged, all of them.

    Example:
        >>> annotations_of("/no/such/folder")
        Traceback (most recent call last):
        polyfuse.errors.DataError: there is no annotation file in '/no/such/folder'; known are ...
    """
    place = Path(path)
    for files, read in _layouts(place):
        if files:
            return _all(files, read)
    raise DataError(
        f"there is no annotation file in '{printable(place)}'; known are mchar_train.json, "
        f"train/{STRUCT}, train{CROPPED}, {LABELS} and train/{LABELS}"
    )


def _layouts(place: Path) -> list[tuple[Files, Read]]:
    """Return the files of each layout that are there, and what reads them."""
    if not place.is_dir():
        name = place.name.lower()
        kinds = {".json": _mchar, STRUCT.lower(): _format1, CROPPED: _format2, ".csv": _labelled}
        return [({place.stem: place}, read) for end, read in kinds.items() if name.endswith(end)]

    def there(pattern: str) -> Files:
        files = {part: place / pattern.format(part) for part in _PARTS}
        return {part: file for part, file in files.items() if file.is_file()}

    return [
        (there("mchar_{}.json"), _mchar),
        (there(f"{{}}/{STRUCT}") or _alone(place / STRUCT), _format1),
        (there(f"{{}}{CROPPED}"), _format2),
        (_alone(place / LABELS) or there(f"{{}}/{LABELS}"), _labelled),
    ]


def _alone(file: Path) -> Files:
    return {"all": file} if file.is_file() else {}


def _all(files: Files, read: Read) -> dict[str, Statistics]:
    """Read all files that have labels; what is wrong with any of them is told at once."""
    found, faults = {}, []
    for part, file in files.items():
        try:
            found[part] = read(file)
        except DataError as error:
            faults.append(str(error))
    known = {part: one for part, one in found.items() if one is not None}
    if not known and not faults:
        faults.append(f"none of {', '.join(printable(file) for file in files.values())} has labels")
    if faults:
        raise DataError("\n".join(faults))
    return known


def _mchar(file: Path) -> Statistics:
    return _of_entries(file, read_entries(file))


def _format1(file: Path) -> Statistics:
    return _of_entries(file, read_digit_struct(file))


def _of_entries(file: Path, entries: Sequence[Entry]) -> Statistics:
    sound = [entry.fields for entry in entries if not entry_faults(entry.fields, _LONGEST)]
    if not sound:
        raise DataError(f"none of the {len(entries)} entries of '{printable(file)}' is sound")
    digits = [[int(label) % len(DIGITS) for label in fields["label"]] for fields in sound]
    boxes = [np.array([fields[name] for name in FIELDS[1:]], np.float64).T for fields in sound]
    return statistics_of(
        padded(digits, max(POSITIONS, *map(len, digits)), len(DIGITS)),
        blank=len(DIGITS),
        boxes=np.concatenate(boxes),
        left_out=len(entries) - len(sound),
    )


def _format2(file: Path) -> Statistics:
    shown = printable(file)
    try:
        labels = matlab_arrays(file, ["y"], limit=_LIMIT).get("y")
    except ValueError as error:
        raise DataError(f"cannot read '{shown}': {printable(error)}; fetch it again") from None
    if labels is None or labels.dtype.kind not in "iu" or not labels.size:
        raise DataError(f"'{shown}' has no labels y; fetch it again")
    flat = labels.reshape(-1).astype(np.int64)
    sound = flat[(flat >= 1) & (flat <= len(DIGITS))] % len(DIGITS)
    return statistics_of(sound, blank=None, left_out=len(flat) - len(sound))


def _labelled(file: Path) -> Statistics | None:
    header, rows = rows_of(file, [COLUMNS, NAMED])
    if len(header) == 1:
        return None
    codes = [code for _, code in rows if 1 <= len(code) <= _LONGEST]
    if not codes:
        raise DataError(f"'{printable(file)}' has no strings in {COLUMNS[1]}; bring labels")
    alphabet = sorted(set("".join(codes)))
    number = {character: place for place, character in enumerate(alphabet)}
    classes = [[number[character] for character in code] for code in codes]
    labels = padded(classes, max(map(len, codes)), len(alphabet))
    left_out = len(rows) - len(codes)
    return statistics_of(labels, blank=len(alphabet), alphabet=alphabet, left_out=left_out)

"""What the street-number data sets share: a split in memory, and entries checked one by one."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.data.base import Labels, Rows
from polyfuse.data.faults import Faults
from polyfuse.data.image_files import ImageFiles
from polyfuse.data.listing import Listed, matched, padded, path_of

BLANK = 10
POSITIONS = 6
SIZE = (64, 128)  # of the course's images: height, width
FIELDS = ("label", "left", "top", "width", "height")
_FAR = 1e6  # pixels
Said = tuple[str, str]  # kind and fact of a fault


@dataclass(frozen=True)
class StreetNumbers:
    """One split of a street-number data set in memory: images, and the digits on them.

    Attributes:
        images: `(n, 3, height, width)` uint8.
        labels: `(n, 6)` int64, 0 to 9 and 10 for "no character", padded right; `(n,)` of images of
            one digit; None where unknown.
        names: `n` file names, in the order of the submission file.
        groups: `(n,)` int64, or None; images of one group share source digits, or a photo.
        blank: the class that means "no character"; None of images of one digit.

    Example:
        >>> one = StreetNumbers(np.zeros((1, 3, 24, 64), np.uint8),
        ...                     np.array([[4, 2, 10, 10, 10, 10]]), ["000000.png"])
        >>> one.inputs(np.array([0])).shape
        torch.Size([1, 3, 24, 64])
    """

    images: NDArray[np.uint8]
    labels: Labels | None
    names: Sequence[str]
    groups: Rows | None = None
    blank: int | None = BLANK

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def inputs(self, rows: Rows) -> Tensor:
        """Return images `rows` as `(m, 3, height, width)` float32 from 0 to 1."""
        return torch.from_numpy(self.images[rows]).float().div_(255)

    def fingerprint(self) -> str:
        """Return a SHA-256 over images, labels, names and groups."""
        digest = hashlib.sha256(repr((self.images.shape, list(self.names))).encode())
        for array in (self.images, self.labels, self.groups):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Entry(NamedTuple):
    """One image as an annotation file has it: a name, and lists of numbers by their field."""

    name: str
    fields: Mapping[str, Any]


def listed_digits(
    source: ImageFiles, place: str, entries: Sequence[Entry], longest: int, faults: Faults
) -> Listed:
    """Return the images of a folder or tar with their digits and boxes; note what is wrong.

    Args:
        source: has the images.
        place: folder or tar that the entries are about.
        entries: in the order of the rows.
        longest: positions of the labels.
        faults: are added to.
    """
    digits, boxes = [], np.full((len(entries), longest, 4), np.nan, np.float32)
    for row, entry in enumerate(entries):
        said = entry_faults(entry.fields, longest)
        for kind, fact in said:
            faults.add(path_of(place, entry.name), kind, fact)
        digits.append([] if said else [int(label) % BLANK for label in entry.fields["label"]])
        if not said:
            columns = [entry.fields[name] for name in FIELDS[1:]]
            boxes[row, : len(digits[-1])] = np.array(columns, np.float64).T
    names = [entry.name for entry in entries]
    files = [path_of(place, name) for name in names]
    whole = Listed(files, names, padded(digits, longest, BLANK), boxes)
    return whole.taken(matched(source, place, names, faults))


def entry_faults(fields: Mapping[str, Any], longest: int) -> list[Said]:
    """Return what is wrong with an entry, as far as can be told without its image.

    Args:
        fields: `label`, `left`, `top`, `width`, `height`: lists with a number a digit.
        longest: digits at most.

    Example:
        >>> fields = {name: [5.0] for name in FIELDS}
        >>> entry_faults(fields, 6), entry_faults({**fields, "label": [11]}, 6)
        ([], [('label', 'outside 0 to 9 (10 means 0): 11')])
    """
    lists = {name: fields.get(name) for name in FIELDS}
    absent = [name for name, values in lists.items() if not isinstance(values, list)]
    if absent:
        return [("incomplete entry", f"it has no list of {', '.join(absent)}")]
    counts = {name: len(values or ()) for name, values in lists.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        return [("lists of different lengths", told)]
    if not 1 <= counts["label"] <= longest:
        return [("number of characters", f"{counts['label']}; there must be 1 to {longest}")]
    return [*_label_faults(lists["label"] or []), *_box_faults(lists)]


def _label_faults(labels: Sequence[Any]) -> list[Said]:
    odd = [label for label in labels if not (_is_number(label) and label in range(BLANK + 1))]
    told = ", ".join(str(label)[:20] for label in odd)
    return [("label", f"outside 0 to 9 (10 means 0): {told}")] if odd else []


def _box_faults(lists: Mapping[str, Any]) -> list[Said]:
    sizes = [*lists["width"], *lists["height"]]
    numbers = [*lists["left"], *lists["top"], *sizes]
    odd = [n for n in numbers if not _is_number(n)]
    odd += [size for size in sizes if _is_number(size) and size <= 0]
    told = ", ".join(str(number)[:20] for number in odd[:4])
    return [("box", f"with {told} for a number of pixels")] if odd else []


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) < _FAR

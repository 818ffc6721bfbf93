"""`digitStruct.mat`, the annotations of SVHN format 1: MATLAB 7.3, that is HDF5. Imports h5py.

`digitStruct` has two lists of references, one to the characters of each name and one to a group of
each image's boxes, with `label`, `left`, `top`, `width` and `height`: a number each where there is
one digit, else references to a number a digit. A file has half a million of such small objects:
they are read from its bytes where they are laid out as MATLAB does, and by h5py where not.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.street_numbers.base import FIELDS, Entry
from polyfuse.data.street_numbers.hdf5_objects import Bytes, Objects, Unusual
from polyfuse.errors import DataError, MissingExtraError, printable

if TYPE_CHECKING:
    import h5py

_IMAGES = 1 << 20  # in one file; `extra` has 202,353
_CHARACTERS = 255  # of a name
_DIGITS = 64  # of an image
_CHUNK = 1 << 22  # values that are unpacked at once
_BLOCK = 1024  # entries between two reports of progress
_FIELDS = [name.encode() for name in FIELDS]
_FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError)


def read_digit_struct(
    path: Path, notify: Callable[[int, int], None] = lambda done, total: None
) -> list[Entry]:
    """Return the entries of a `digitStruct.mat`, in its order.

    Args:
        path: of the file.
        notify: called with (entries read, entries in all).

    Raises:
        DataError: no such file, no HDF5 of this layout, a damaged one, one that leads to other
            files.
        MissingExtraError: h5py is not installed.

    Example:
        >>> read_digit_struct(Path("/no/such/digitStruct.mat"))
        Traceback (most recent call last):
        polyfuse.errors.DataError: there is no file '/no/such/digitStruct.mat'
    """
    shown = printable(path)
    if not path.is_file():
        raise DataError(f"there is no file '{shown}'")
    try:
        import h5py
    except ImportError:
        raise MissingExtraError(
            "SVHN format 1 is MATLAB 7.3, and h5py, which reads it, is not installed: "
            "pip install 'polyfuse[svhn]'"
        ) from None
    try:
        with h5py.File(path, "r") as file, open(path, "rb") as plain:
            return list(_Struct(h5py, file, Bytes(plain.fileno())).entries(notify))
    except DataError as error:
        raise DataError(f"'{shown}': {error}") from None
    except _FAULTS as error:  # the library raises many kinds on damaged files
        raise DataError(
            f"'{shown}' is no digitStruct of MATLAB 7.3, or a damaged one "
            f"({printable(error) or type(error).__name__}); fetch it again"
        ) from None


class _Struct:
    """An open file; the low-level calls are four times as fast as those with names."""

    def __init__(self, h5py: Any, file: "h5py.File", raw: Bytes) -> None:
        self.h5py, self.id = h5py, file.id
        self.objects = Objects(raw, file.userblock_size, _CHARACTERS)
        self.one, self.space = np.empty(1), h5py.h5s.create_simple((1,))
        self.top = h5py.h5g.open(self.id, self._own(self.id, b"digitStruct"))

    def entries(self, notify: Callable[[int, int], None]) -> Iterator[Entry]:
        """Yield all entries.

        Raises:
            DataError: lists of different lengths, or too many of anything.
        """
        (names, name_at), (boxes, box_at) = (self._list(name) for name in (b"name", b"bbox"))
        if len(names) != len(boxes) or not len(names):
            raise DataError(f"has {len(names)} names and {len(boxes)} images' boxes")
        for number in range(len(names)):
            try:
                yield self._quickly(int(name_at[number]), int(box_at[number]))
            except Unusual:
                yield Entry(self._text(names[number]), self._fields(boxes[number]))
            if (number + 1) % _BLOCK == 0 or number + 1 == len(names):
                notify(number + 1, len(names))

    def _quickly(self, name: int, box: int) -> Entry:
        """Return an entry by the addresses of its name and of its group."""
        objects = self.objects
        there = objects.members(box, _FIELDS)
        fields = {
            key: objects.numbers(there[name])
            for key, name in zip(FIELDS, _FIELDS, strict=True)
            if name in there
        }
        return Entry(objects.text(name), fields)

    def _fields(self, reference: Any) -> dict[str, list[float]]:
        group = self._pointed(reference, self.h5py.h5g.GroupID)
        # A field that an image lacks is a fault of that image, not of the file.
        there = [name for name in FIELDS if group.links.exists(name.encode())]
        return {name: self._numbers(group, name.encode()) for name in there}

    def _numbers(self, group: Any, name: bytes) -> list[float]:
        dataset = self.h5py.h5d.open(group, self._own(group, name))
        values = self._read(dataset, _DIGITS)
        if values.dtype != object:
            return [float(value) for value in values]
        return [self._number(reference) for reference in values]

    def _number(self, reference: Any) -> float:
        dataset = self._pointed(reference, self.h5py.h5d.DatasetID)
        if dataset.get_offset() is None or dataset.get_storage_size() > self.one.nbytes:
            self._refuse_elsewhere(dataset)
        # With the space of one value in memory: the library does not look how long an array is.
        dataset.read(self.space, self.h5py.h5s.ALL, self.one)
        return float(self.one[0])

    def _text(self, reference: Any) -> str:
        values = self._read(self._pointed(reference, self.h5py.h5d.DatasetID), _CHARACTERS)
        if values.dtype.kind not in "iu":
            raise DataError("a name has no characters")
        return "".join(map(chr, values.tolist()))

    def _list(self, name: bytes) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """Return the references of a list, and the addresses that they are."""
        dataset = self.h5py.h5d.open(self.top, self._own(self.top, name))
        values = self._read(dataset, _IMAGES)
        if values.dtype != object:
            raise DataError(f"{name.decode()} has no references")
        addresses = np.empty(dataset.shape, np.uint64)
        every, kind = self.h5py.h5s.ALL, self.h5py.h5t.STD_REF_OBJ
        dataset.read(every, every, addresses, mtype=kind)
        return values, addresses.reshape(-1)

    def _own(self, group: Any, name: bytes) -> bytes:
        """Refuse a name that leads to another place or file."""
        if group.links.get_info(name).type != self.h5py.h5l.TYPE_HARD:
            raise DataError(f"{name.decode()} is a link to elsewhere")
        return name

    def _pointed(self, reference: Any, kind: Any) -> Any:
        found = self.h5py.h5r.dereference(reference, self.id)
        if not isinstance(found, kind):
            raise DataError("a reference points to something of another kind")
        return found

    def _read(self, dataset: Any, most: int) -> NDArray[Any]:
        """Return the values of a dataset, flat: numbers, or references as objects."""
        count = math.prod(dataset.shape)
        if count > most:
            raise DataError(f"{count:,} values where there are {most:,} at most")
        if dataset.get_offset() is None:  # not simply so many bytes of this file
            self._refuse_elsewhere(dataset)
        dtype = dataset.dtype
        known = dtype.kind in "iuf" or self.h5py.check_ref_dtype(dtype) is self.h5py.Reference
        if not known:
            raise DataError(f"values of type {printable(dtype)}")
        values = np.empty(dataset.shape, dtype)
        dataset.read(self.h5py.h5s.ALL, self.h5py.h5s.ALL, values)
        return values.reshape(-1)

    def _refuse_elsewhere(self, dataset: Any) -> None:
        """Refuse values that lie in other files, or that unpack to more than they should."""
        made = dataset.get_create_plist()
        layout = made.get_layout()
        if layout == self.h5py.h5d.VIRTUAL or made.get_external_count():
            raise DataError("values that lie in another file")
        if layout == self.h5py.h5d.CHUNKED and math.prod(made.get_chunk()) > _CHUNK:
            raise DataError("values that unpack to too much")

"""Write an entry of the store some rows at a time, in bounded memory."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.errors import DataError
from polyfuse.predictions.base import add_to_fingerprint, begin_fingerprint
from polyfuse.predictions.entries import ARRAY, RECORD, Entry
from polyfuse.predictions.npy_files import header_bytes

_AT_ONCE = 1 << 22  # numbers that are written at once


def sizes_of(entry: Entry) -> Mapping[str, int]:
    """Return the sizes of an entry's files, before its numbers are known.

    Example:
        >>> from polyfuse.predictions.entries import new_entry
        >>> sizes_of(new_entry((2, 3), "float16", space="logit"))["predictions.npy"]
        140
    """
    dtype = np.dtype(entry.dtype)
    header = header_bytes(dtype, entry.shape)
    size = len(header) + math.prod(entry.shape) * dtype.itemsize
    return {ARRAY: size, RECORD: len(entry.document())}


class Writer:
    """Takes the rows of an entry, some at a time; made by `PredictionStore.writer`."""

    def __init__(self, draft: durable.Draft, entry: Entry, shown: str) -> None:
        """Begin with the array's header."""
        self._draft, self._entry, self._shown = draft, entry, shown
        self._dtype = np.dtype(entry.dtype).newbyteorder("<")
        self._digest = begin_fingerprint(self._dtype, entry.shape)
        header = header_bytes(self._dtype, entry.shape)
        self._draft.write(ARRAY, 0, header)
        self._offset, self._rows = len(header), 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add the next rows; they are written at once and not kept.

        Args:
            rows: `(some, ...)`, NaN where the member has no say.

        Raises:
            DataError: of another shape, too many, or too large for the dtype.
            DiskError: the file system refused.
        """
        given = np.asarray(rows)
        shape = self._entry.shape
        if (
            given.ndim != len(shape)
            or given.shape[1:] != shape[1:]
            or given.dtype.kind not in "iufb"
        ):
            raise DataError(
                f"'{self._shown}' takes rows {('n', *shape[1:])} of numbers, got {given.dtype} of "
                f"shape {given.shape}"
            )
        if self._rows + len(given) > shape[0]:
            raise DataError(
                f"'{self._shown}' has {shape[0]:,} rows; {self._rows + len(given):,} were given"
            )
        step = max(1, _AT_ONCE // max(1, math.prod(shape[1:])))
        for start in range(0, len(given), step):
            self._write(given[start : start + step])

    def _write(self, rows: NDArray[Any]) -> None:
        plain = np.ascontiguousarray(_narrowed(rows, self._dtype, self._shown))
        self._draft.write(ARRAY, self._offset, plain.reshape(-1).view(np.uint8).data)
        add_to_fingerprint(self._digest, plain)
        self._offset += plain.nbytes
        self._rows += len(plain)

    def finish(self) -> None:
        """Write the record, once all rows are there.

        Raises:
            DataError: some are not.
        """
        if self._rows != self._entry.shape[0]:
            raise DataError(
                f"'{self._shown}' was given {self._rows:,} of {self._entry.shape[0]:,} rows; "
                "append the rest, or state the number of rows that there are"
            )
        document = self._entry._replace(fingerprint=self._digest.hexdigest()).document()
        self._draft.write(RECORD, 0, document)


def _narrowed(rows: NDArray[Any], dtype: np.dtype[Any], shown: str) -> NDArray[Any]:
    """Return rows in the dtype of the file; refuse numbers that do not fit into it."""
    if rows.dtype.kind == "f" and dtype.kind != "f":
        raise DataError(f"'{shown}' takes {dtype.name}, got {rows.dtype}; state dtype=\"float32\"")
    with np.errstate(over="ignore", invalid="ignore"):
        plain = rows.astype(dtype, copy=False)
    if dtype.kind == "f":
        lost = np.isinf(plain) & np.isfinite(rows)
        fix = 'state dtype="float32", or subtract each row\'s maximum, which leaves a softmax'
    else:
        lost = plain != rows
        fix = 'state dtype="int64"'
    if lost.any():
        worst = rows[lost][np.abs(rows[lost].astype(np.float64)).argmax()]
        raise DataError(
            f"'{shown}' got {int(lost.sum()):,} numbers that do not fit {dtype.name}, such as "
            f"{worst:.6g}; {fix}"
        )
    return plain

"""The prediction store: a memory-mapped array and its record for each member, split and view.

    STORE/members/MEMBER/SPLIT/VIEW/predictions.npy    logits in fp32 or fp16, or other predictions
                                    predictions.json   shape, dtype, space; fingerprints
    STORE/rows/FINGERPRINT.json                        ids of rows, once for all that predict them

An entry appears whole or not at all, and the first one of a name stays. What is read is compared
with what is expected of it: a file that is there may be of another model or of other rows.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.errors import DataError, RunError, printable
from polyfuse.predictions.base import Predictions, fingerprint
from polyfuse.predictions.entries import (
    ARRAY,
    RECORD,
    Entry,
    check_name,
    differences,
    labels_print,
    new_entry,
    read_entry,
    read_rows,
    rows_document,
    rows_print,
)
from polyfuse.predictions.npy_files import map_array
from polyfuse.predictions.writer import Writer, sizes_of


class PredictionStore:
    """A folder of predictions by member, split and view.

    Args:
        folder: of the store; made when something is written.

    Example:
        >>> import tempfile
        >>> store = PredictionStore(Path(tempfile.mkdtemp()) / "store")
        >>> _ = store.write("resnet", "val", np.zeros((2, 3)), space="logit", model="ab")
        >>> store.open("resnet", "val", model="ab").array.shape, store.members()
        ((2, 3), ['resnet'])
        >>> store.open("resnet", "val", model="cd")
        Traceback (most recent call last):
        polyfuse.errors.DataError: ... is of model 'ab', not of 'cd'; ...
    """

    def __init__(self, folder: str | Path) -> None:
        """Name the folder; it need not be there."""
        self.folder = Path(folder)
        self._ids: dict[str, list[str]] = {}
        self._turn = threading.Lock()

    def members(self) -> list[str]:
        """Return the members that have predictions here, sorted."""
        return _names(self.folder / "members", lambda m: any(map(self._is_split, _paths(m))))

    def splits(self, member: str | None = None) -> list[str]:
        """Return the splits that a member has predictions of; of any member where None."""
        every = self.members() if member is None else [check_name("member", member)]
        return sorted({s for m in every for s in _names(self._of(m), self._is_split)})

    def views(self, member: str, split: str) -> list[str]:
        """Return the views of a split that a member has predictions of."""
        return _names(self._of(member) / check_name("split", split), _is_entry)

    def _of(self, member: str) -> Path:
        return self.folder / "members" / check_name("member", member)

    def _is_split(self, path: Path) -> bool:
        return any(map(_is_entry, _paths(path)))

    def _place(self, member: str, split: str, view: str) -> Path:
        return self._of(member) / check_name("split", split) / check_name("view", view)

    def write(
        self,
        member: str,
        split: str,
        array: NDArray[Any],
        *,
        space: str,
        view: str = "plain",
        dtype: str | None = None,
        model: str | None = None,
        data: str | None = None,
        rows: Sequence[str] | None = None,
        labels: Any = None,
        classes: Sequence[str] | None = None,
    ) -> Predictions:
        """Keep a member's predictions; see `writer`.

        Args:
            member: its name.
            split: "val", "test", or any name.
            array: `(sample, ...)`.
            space: as for `writer`; so are the others.
            view: as for `writer`.
            dtype: of the file; that of the array where None.
            model: as for `writer`.
            data: as for `writer`.
            rows: as for `writer`.
            labels: as for `writer`.
            classes: as for `writer`.

        Returns:
            What is kept, memory-mapped.

        Raises:
            DataError: as for `writer`.
            DiskError: the file system refused; nothing half-written is left.
        """
        given = np.asarray(array)
        words: dict[str, Any] = {"space": space, "view": view, "model": model, "data": data}
        words |= {"rows": rows, "labels": labels, "classes": classes}
        words["dtype"] = dtype or given.dtype.newbyteorder("=").name
        with self.writer(member, split, given.shape, **words) as writer:
            writer.append(given)
        return self.open(member, split, view)

    @contextmanager
    def writer(
        self,
        member: str,
        split: str,
        shape: Sequence[int],
        *,
        space: str,
        dtype: str = "float32",
        view: str = "plain",
        model: str | None = None,
        data: str | None = None,
        rows: Sequence[str] | None = None,
        labels: Any = None,
        classes: Sequence[str] | None = None,
    ) -> Iterator[Writer]:
        """Keep predictions that come some rows at a time; when the block ends they appear whole.

        An error in the block, or a kill at any moment, leaves no entry.

        Args:
            member: its name.
            split: "val", "test", or any name.
            shape: `(sample, ...)` of all rows.
            space: "logit", "prob", "log_prob", "label" or "value".
            dtype: "float16" or "float32" for logits; any of numbers.
            view: of the inputs that was predicted on.
            model: fingerprint of what predicts, such as the SHA-256 of its weights.
            data: fingerprint of what it predicts on.
            rows: ids of the rows, in order.
            labels: of the rows, of which only the fingerprint is kept; or their fingerprint.
            classes: names of the last axis.

        Yields:
            The writer.

        Raises:
            DataError: names that are paths, words that are not known, an entry that is there
                already, rows that do not fit, logits too large for fp16.
            DiskError: the file system refused; nothing half-written is left.
        """
        place = self._place(member, split, view)
        entry = new_entry(
            shape,
            dtype,
            space=space,
            model=model,
            data=data,
            rows=rows,
            labels=labels,
            classes=classes,
        )
        _refuse_links(self.folder, place)
        if _is_entry(place):
            raise _is_there(place)
        if rows is not None:
            self._keep_rows(entry.rows, rows)
        try:
            with durable.draft(place, sizes_of(entry), key=entry.rows) as draft:
                writer = Writer(draft, entry, printable(place))
                yield writer
                writer.finish()
        except RunError:
            if _is_entry(place):  # somebody else was faster
                raise _is_there(place) from None
            raise

    def _keep_rows(self, name: str, rows: Sequence[str]) -> None:
        """Write the ids of rows, unless this object has; the same ids make the same file."""
        with self._turn:
            if name not in self._ids:
                durable.make_folder(self.folder / "rows")
                durable.write_bytes(self.folder / "rows" / f"{name}.json", rows_document(rows))
                self._ids[name] = list(rows)

    def open(
        self,
        member: str,
        split: str,
        view: str = "plain",
        *,
        model: str | None = None,
        data: str | None = None,
        rows: Sequence[str] | int | None = None,
        labels: Any = None,
        verify: bool = False,
    ) -> Predictions:
        """Map a member's predictions, if they are those that are expected.

        Args:
            member: its name.
            split: as it was written.
            view: as it was written.
            model: fingerprint that the entry must have; one that states none is refused.
            data: likewise.
            rows: ids that the rows must have, in this order; or how many there must be.
            labels: that the rows must have; or their fingerprint.
            verify: read all of the array, and compare it with its SHA-256.

        Returns:
            The predictions; `facts` has the record's words.

        Raises:
            DataError: no such entry; of another model, data, rows or labels, all told at once; a
                record that does not fit the file; damaged.
        """
        place = self._place(member, split, view)
        _refuse_links(self.folder, place)
        if not _is_entry(place):
            raise self._not_there(member, split, view)
        entry = read_entry(place)
        expected = {"model": model, "data": data, "labels": labels_print(labels)}
        faults = differences(entry, expected) + self._rows_faults(entry, rows)
        if faults:
            raise DataError(
                f"'{printable(place)}' is {'; '.join(faults)}; it is stale or foreign: predict "
                f"again after store.remove{(member, split, view)}, or name the right entry"
            )
        array = self._array(place, entry, verify)
        facts = {"split": split, "view": view, **entry._asdict()}
        ids = self._read_rows(entry) if entry.named else None
        return Predictions(
            name=member, array=array, space=entry.space, ids=ids, classes=entry.classes, facts=facts
        )

    def remove(self, member: str, split: str, view: str = "plain") -> None:
        """Remove an entry if it is there, so that another one can be written.

        Raises:
            DiskError: the file system refused.
        """
        place = self._place(member, split, view)
        _refuse_links(self.folder, place)
        durable.remove_folder(place)

    def remove_leftovers(self) -> None:
        """Remove what killed writers left; entries that are being written stay."""
        if self.folder.is_dir():
            durable.remove_leftovers(self.folder)

    def _array(self, place: Path, entry: Entry, verify: bool) -> NDArray[Any]:
        array = map_array(place / ARRAY, follow=False)
        said = f"{entry.dtype} of shape {entry.shape}"
        if (array.shape, array.dtype.name) != (entry.shape, entry.dtype):
            raise DataError(
                f"'{printable(place / ARRAY)}' holds {array.dtype} of shape {array.shape}, but its "
                f"record says {said}; it is not the file that was written: predict again"
            )
        if verify and fingerprint(array) != entry.fingerprint:
            raise DataError(
                f"'{printable(place / ARRAY)}' was changed after it was written (SHA-256 differs); "
                "restore it or predict again"
            )
        return array

    def _rows_faults(self, entry: Entry, rows: Sequence[str] | int | None) -> list[str]:
        if rows is None:
            return []
        count = rows if isinstance(rows, int) else len(rows)
        if count != entry.shape[0]:
            return [f"of {entry.shape[0]:,} rows, not of {count:,}"]
        if isinstance(rows, int) or entry.rows == rows_print(rows):
            return []
        if not entry.named:
            return ["of rows without ids, not of those that are given"]
        known = self._read_rows(entry)
        i = next((i for i in range(count) if known[i] != rows[i]), 0)
        return [
            f"of other rows: row {i:,} is '{printable(known[i], 40)}', not "
            f"'{printable(rows[i], 40)}'"
        ]

    def _read_rows(self, entry: Entry) -> list[str]:
        """Return the ids of rows, read once; all that predict them share the list."""
        with self._turn:
            if entry.rows not in self._ids:
                self._ids[entry.rows] = read_rows(self.folder / "rows", entry)
            return self._ids[entry.rows]

    def _not_there(self, member: str, split: str, view: str) -> DataError:
        has = [
            f"{m}/{s}/{v}" for m in self.members() for s in self.splits(m) for v in self.views(m, s)
        ]
        return DataError(
            f"'{printable(self.folder)}' has no predictions '{member}/{split}/{view}'; it has "
            f"{printable(', '.join(has)) or 'none'}"
        )


def _paths(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; hidden names are ours, of what is being written."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _names(folder: Path, holds: Callable[[Path], bool]) -> list[str]:
    return [path.name for path in _paths(folder) if holds(path)]


def _is_entry(place: Path) -> bool:
    return (place / RECORD).is_file()


def _refuse_links(folder: Path, place: Path) -> None:
    """Refuse links below the store: they may lead anywhere."""
    for part in (place, *place.parents):
        if part == folder:
            return
        if part.is_symlink():
            raise DataError(f"'{printable(part)}' is a link, which no store writes; remove it")


def _is_there(place: Path) -> DataError:
    return DataError(
        f"'{printable(place)}' is there already, and the first one stays; read it with open(...), "
        "or remove it with remove(...) and write again"
    )

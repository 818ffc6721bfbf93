"""One entry of the store: the record that says what its array is, of which model and rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.checkpoints.base import is_file_name
from polyfuse.errors import DataError, RunError, printable
from polyfuse.parameters import one_of
from polyfuse.predictions.base import SPACES, fingerprint
from polyfuse.predictions.npy_files import KINDS

SCHEMA = 1
ARRAY, RECORD = "predictions.npy", "predictions.json"
_NAMES = tuple(sorted({np.dtype(kind).name for kind in KINDS}))
_ROWS_LIMIT = 1 << 30  # bytes of a split's row ids
_UNKNOWN = "0" * 64
_NAME_BYTES = 200  # a file system takes 255, and names in the making are longer
_PRINTS = ("model", "data", "rows", "labels")


class Entry(NamedTuple):
    """What the record of an entry says.

    Attributes:
        shape: `(sample, ...)`.
        dtype: "float16", "float32", ...
        space: as `Predictions` have it.
        model: fingerprint of what predicted; None where nobody said.
        data: fingerprint of what it predicted on.
        rows: fingerprint of the rows' ids, or of their number.
        labels: fingerprint of the labels of these rows.
        classes: names of the last axis.
        fingerprint: of the array.
        named: the rows have ids, kept once for all entries of these rows.
    """

    shape: tuple[int, ...]
    dtype: str
    space: str
    model: str | None
    data: str | None
    rows: str
    labels: str | None
    classes: list[str] | None
    fingerprint: str
    named: bool

    def document(self) -> bytes:
        """Return the record, as long for any fingerprint."""
        document = {"schema": SCHEMA, **self._asdict(), "shape": list(self.shape)}
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def check_name(what: str, name: object) -> str:
    """Return a name that is one part of a path.

    Raises:
        DataError: it is a path, hidden, unprintable or too long.

    Example:
        >>> check_name("member", "../secret")
        Traceback (most recent call last):
        polyfuse.errors.DataError: '../secret' is no name of a member: ...
    """
    good = isinstance(name, str) and is_file_name(name) and name.isprintable()
    if not isinstance(name, str) or not good or name != name.strip(" .") or name.startswith("-"):
        raise DataError(
            f"'{printable(name)}' is no name of a {what}: one part of a path, not hidden, "
            "without / \\ : and unprintable characters, such as 'resnet-50'"
        )
    if len(name.encode()) > _NAME_BYTES:
        raise DataError(
            f"'{printable(name, 60)}' is too long for a name of a {what}; at most {_NAME_BYTES} "
            "bytes are taken"
        )
    return name


def new_entry(
    shape: Sequence[int],
    dtype: str,
    *,
    space: str,
    model: str | None = None,
    data: str | None = None,
    rows: Sequence[str] | None = None,
    labels: Any = None,
    classes: Sequence[str] | None = None,
) -> Entry:
    """Return the record of what will be written; its fingerprint is not known yet.

    Raises:
        DataError: words that are not known, rows or classes that do not fit the shape; all at once.

    Example:
        >>> new_entry((2, 3), "float16", space="logit").shape
        (2, 3)
    """
    one_of("space", space, SPACES)
    one_of("dtype", dtype, _NAMES)
    whole = tuple(int(n) for n in shape)
    faults = [] if whole and min(whole) > 0 else [f"shape {whole} has no rows; state (sample, ...)"]
    if rows is not None and whole and len(rows) != whole[0]:
        faults.append(f"{len(rows):,} ids of rows for {whole[0]:,} rows; give one each")
    if rows is not None and len(set(rows)) != len(rows):
        faults.append("some ids of rows are there twice; keep one each")
    if classes is not None and space != "label" and whole and len(classes) != whole[-1]:
        faults.append(f"{len(classes)} names of classes for {whole[-1]} columns; give one each")
    for word, said in (("model", model), ("data", data)):
        if said is not None and not (isinstance(said, str) and 0 < len(said) <= 1000):
            faults.append(f"{word}={printable(repr(said), 60)}; give its fingerprint, a short text")
    if faults:
        raise DataError("\n".join(faults))
    names = None if classes is None else list(map(str, classes))
    prints = (model, data, rows_print(whole[0] if rows is None else rows), labels_print(labels))
    return Entry(whole, dtype, space, *prints, names, _UNKNOWN, rows is not None)


def read_rows(folder: Path, entry: Entry) -> list[str]:
    """Return the ids of an entry's rows.

    Args:
        folder: with a file for each set of rows, named by their fingerprint.
        entry: whose rows are meant.

    Raises:
        DataError: missing, changed, or not as many as the entry has rows.

    Example:
        >>> read_rows(Path("/no/such"), new_entry((1, 2), "float32", space="prob", rows=["a"]))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such/...json': No such file or directory
    """
    path = folder / f"{entry.rows}.json"
    try:
        raw = durable.read_bytes(path, limit=_ROWS_LIMIT)
    except RunError as error:
        raise DataError(str(error)) from None
    rows: Any = json.loads(raw) if hashlib.sha256(raw).hexdigest() == entry.rows else []
    if not _are_texts(rows) or len(rows) != entry.shape[0]:
        raise DataError(
            f"'{printable(path)}' does not hold the ids of {entry.shape[0]:,} rows that were "
            "written; restore it, or predict again"
        )
    return [str(name) for name in rows]


def rows_print(rows: Sequence[str] | int) -> str:
    """Return a SHA-256 over the ids of rows, in order; over their number where they have none.

    Example:
        >>> rows_print(["a", "b"]) == rows_print(["b", "a"])
        False
    """
    content = str(rows) if isinstance(rows, int) else rows_document(rows)
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def rows_document(rows: Sequence[str]) -> bytes:
    """Return the file of the ids of rows.

    Raises:
        DataError: ids that are no texts.

    Example:
        >>> rows_document(["a"])
        b'["a"]'
    """
    if not all(isinstance(name, str) for name in rows):
        raise DataError("ids of rows must be texts; convert them: list(map(str, ids))")
    return json.dumps(list(rows), separators=(",", ":")).encode()


def labels_print(labels: Any) -> str | None:
    """Return a fingerprint of labels; a text is one already.

    Example:
        >>> labels_print(np.array([0, 1])) == labels_print(np.array([0, 1], np.int8))
        True
    """
    if labels is None or isinstance(labels, str):
        return labels
    array: NDArray[Any] = np.asarray(labels)
    if array.dtype.kind not in "iufb":
        raise DataError(f"labels are {array.dtype}, no numbers; see align, which numbers classes")
    return fingerprint(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))


def read_entry(folder: Path) -> Entry:
    """Read the record of an entry.

    Args:
        folder: of the entry.

    Raises:
        DataError: no entry, or a record that is none.

    Example:
        >>> read_entry(Path("/no/such"))
        Traceback (most recent call last):
        polyfuse.errors.DataError: there is no '/no/such/predictions.json': cannot read ...
    """
    shown = printable(folder / RECORD)
    if (folder / RECORD).is_symlink() or (folder / ARRAY).is_symlink():
        raise DataError(f"'{printable(folder)}' holds a link, which no store writes; remove it")
    try:
        record = durable.read_json(folder / RECORD)
    except RunError as error:
        raise DataError(f"there is no '{shown}': {error}") from None
    if not _is_record(record):
        raise DataError(
            f"'{shown}' is no record of schema {SCHEMA}; it was written by another version of "
            f"polyfuse or by hand: remove '{printable(folder)}' and predict again"
        )
    kept = {name: record[name] for name in Entry._fields}
    return Entry(**{**kept, "shape": tuple(record["shape"])})


def _is_record(record: Any) -> bool:
    """Tell whether a document from a file is a record."""
    if not isinstance(record, dict) or record.keys() != {"schema", *Entry._fields}:
        return False
    shape, classes = record["shape"], record["classes"]
    prints = [record[name] for name in (*_PRINTS, "fingerprint")]
    return (
        record["schema"] == SCHEMA
        and isinstance(shape, list)
        and 0 < len(shape) <= 32
        and all(type(n) is int and n >= 0 for n in shape)
        and isinstance(record["dtype"], str)
        and record["dtype"] in _NAMES
        and record["space"] in SPACES
        and all(text is None or isinstance(text, str) for text in prints)
        and is_digest(record["rows"])
        and is_digest(record["fingerprint"])
        and isinstance(record["named"], bool)
        and (classes is None or _are_texts(classes))
    )


def is_digest(text: Any) -> bool:
    """Tell whether a text is a SHA-256 in hexadecimal.

    Example:
        >>> is_digest("../../etc")
        False
    """
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def differences(entry: Entry, expected: Mapping[str, str | None]) -> list[str]:
    """Return what an entry's record says otherwise than is expected of it, or not at all.

    Args:
        entry: the record.
        expected: fingerprints by word: model, data, rows, labels; None is not compared.

    Example:
        >>> entry = Entry((2,), "float32", "value", None, None, "r", None, None, "f", False)
        >>> differences(entry, {"model": "abc", "data": None})
        ["of no stated model, not of 'abc'"]
    """
    found = []
    for word, wanted in expected.items():
        said = getattr(entry, word)
        if wanted is None or said == wanted:
            continue
        of = f"no stated {word}" if said is None else f"{word} '{printable(said, 16)}'"
        found.append(f"of {of}, not of '{printable(wanted, 16)}'")
    return found

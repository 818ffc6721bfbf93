"""Files of predictions and labels that people have; what they are is told by content, then name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.parameters import one_of
from polyfuse.predictions.base import SPACES, LabelColumn, Predictions
from polyfuse.predictions.csv_files import read_csv
from polyfuse.predictions.files import open_file
from polyfuse.predictions.npy_files import map_array
from polyfuse.predictions.npz_files import read_npz
from polyfuse.predictions.parquet_files import read_parquet
from polyfuse.predictions.tables import Table, label_column, labels_of, predictions_of
from polyfuse.predictions.tasks import as_task
from polyfuse.predictions.torch_tensors import read_tensor

_ADDRESS = re.compile(r"(.+)\[([^\[\]]{1,200})\]")
_TABLES = (".csv", ".tsv", ".txt")
_TENSORS = (".pt", ".pth", ".safetensors")
_PACKED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_FORMATS = ".npy, .npz, .pt, .safetensors, .csv or .parquet"


def read_predictions(
    path: str | Path,
    *,
    space: str | None = None,
    task: str | None = None,
    levels: Sequence[float] | None = None,
    id_column: str | None = None,
    header: bool | None = None,
) -> Predictions:
    r"""Read what one member says of each sample; nothing in the file is executed.

    Args:
        path: a `.npy` (memory-mapped), `.npz`, torch, safetensors, CSV or Parquet file. One array
            of several is `file.npz[name]`, one tensor `file.pt[key]`. A table has a column a class,
            or one column of probabilities, numbers or decided labels, and perhaps one of ids.
        space: "prob", "logit", "log_prob", "label" or "value", where it is known.
        task: one of `TASKS`: the array is then brought into its shape; see `as_task`.
        levels: of quantiles.
        id_column: name of a table's column of ids, or its number where it has no header.
        header: whether a CSV file's first row has names; told from the rows where None.

    Returns:
        The predictions. Where neither `task` nor `levels` is given they are as they stand in the
        file, and `as_task` tells task and space.

    Raises:
        DataError: missing, damaged, of another format, several arrays to choose from.
        MissingExtraError: a Parquet file, and pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = target.write_text("id,cat,dog\nx,0.25,0.75\ny,1,0\n")
        >>> member = read_predictions(target)
        >>> member.ids, member.classes, member.array.tolist()
        (['x', 'y'], ['cat', 'dog'], [[0.25, 0.75], [1.0, 0.0]])
    """
    if space is not None:
        one_of("space", space, SPACES)
    place = _place(path)
    found = _content(place, id_column, header, labels=False)
    shown = printable(path)
    if isinstance(found, Table):
        member = predictions_of(found)
    else:
        decided = found.dtype.kind in "iub" and found.ndim == 1
        member = Predictions(name=shown, array=found, space="label" if decided else None)
    if member.array.ndim < 1 or not member.array.size:
        raise DataError(f"'{shown}' is empty: its shape is {member.array.shape}; bring a row each")
    member = member.noted(name=shown, space=space or member.space)
    return member if task is None and levels is None else as_task(member, task, levels=levels)


def read_labels(
    path: str | Path,
    *,
    column: str | None = None,
    id_column: str | None = None,
    header: bool | None = None,
) -> LabelColumn:
    r"""Read the truth of each sample.

    Args:
        path: as for `read_predictions`: whole numbers, texts, or numbers for regression.
        column: of a table that has several; its name, or its number where there is no header.
        id_column: likewise, of the ids.
        header: as for `read_predictions`.

    Returns:
        Whole numbers as they are, also where they do not count from 0; texts as numbers of their
        sorted names. `align` matches both with the columns of predictions.

    Raises:
        DataError: as for `read_predictions`; or rows without a label.
        MissingExtraError: a Parquet file, and pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "y.csv"
        >>> _ = target.write_text("id,label\nx,dog\ny,cat\n")
        >>> labels = read_labels(target)
        >>> labels.values, labels.names, labels.ids
        (array([1, 0]), ['cat', 'dog'], ['x', 'y'])
    """
    found = _content(_place(path), id_column, header, labels=True)
    if isinstance(found, Table):
        return labels_of(found, column)
    return label_column(printable(path), found)


class _Place(NamedTuple):
    path: Path
    key: str | None


def _place(path: str | Path) -> _Place:
    """Return a path and what stands behind it in brackets, unless a file is named so."""
    place = Path(path).expanduser()
    match = _ADDRESS.fullmatch(place.name)
    if match is None or place.exists():
        return _Place(place, None)
    return _Place(place.with_name(match[1]), match[2])


def _content(
    place: _Place, id_column: str | None, header: bool | None, *, labels: bool
) -> Table | NDArray[Any]:
    """Read a file by what it begins with; a table where nothing else is known of it."""
    path, key = place
    kind = _kind(path)
    if key is not None and kind not in ("npz", "tensor"):
        raise DataError(
            f"'{printable(path)}' holds no arrays by name; leave [{printable(key)}] away"
        )
    if id_column is not None and kind not in ("csv", "parquet"):
        raise DataError(f"'{printable(path)}' is no table; leave id_column away")
    if kind == "npy":
        return map_array(path, text=labels)
    if kind == "npz":
        return read_npz(path, key, text=labels)
    if kind == "tensor":
        return read_tensor(path, key, labels=labels)
    if kind == "parquet":
        return read_parquet(path, id_column=id_column)
    return read_csv(path, id_column=id_column, header=header, labels=labels)


def _kind(path: Path) -> str:
    descriptor, size = open_file(path)
    with open(descriptor, "rb") as file:
        head = file.read(512)
    suffix, shown = path.suffix.lower(), printable(path)
    if not size:
        raise DataError(f"'{shown}' is empty; write it again")
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK\3\4"):
        holds_arrays = suffix == ".npz" or (b".npy" in head[30:] and suffix not in _TENSORS)
        return "npz" if holds_arrays else "tensor"
    for start, program in _PACKED.items():
        if head.startswith(start):
            raise DataError(f"'{shown}' is packed; unpack it: {program} '{shown}'")
    if suffix in _TENSORS:
        return "tensor"
    if suffix in _TABLES:
        return "csv"
    named = {".npy": "npy", ".npz": "npz", ".parquet": "parquet"}
    if suffix in named:
        return named[suffix]
    raise DataError(f"'{shown}' is none of {_FORMATS}; name such a file")

"""The user's own tensors or arrays as a data set, from memory or from one .npz file."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse import durable, predictions
from polyfuse.data.base import Labels, Rows, Splits
from polyfuse.errors import DataError, RunError, printable
from polyfuse.predictions.npz_files import FAULTS, LIMIT
from polyfuse.tasks import CLASSES, TaskName, rules_of


@dataclass(frozen=True)
class Arrays:
    """One split held in memory.

    Args:
        values: `(n, ...)` inputs, tensor or array; integers are read as floats.
        labels: `(n,)` or `(n, positions)` classes from 0; of the task "multilabel" `(n, labels)`
            zeros and ones; of "regression" `(n,)` or `(n, outputs)` numbers; of "mean_variance"
            `(n,)` numbers. None where unknown.
        groups: `(n,)`; rows of one group are never divided between folds.
        names: one name a row; `0, 1, ...` by default.
        blank: the class that means "no character", for character strings only.
        task: "classification", "multilabel" (labels do not exclude each other), "regression", or
            "mean_variance" (a model says how sure it is of a number: see `losses.gaussian_nll`).

    Raises:
        DataError: no rows, lengths that differ, NaN or infinite inputs, labels that do not fit the
            task, an unknown task.

    Example:
        >>> Arrays(torch.zeros(3, 2), [0, 1, 0]).inputs(np.array([2])).shape
        torch.Size([1, 2])
        >>> Arrays(torch.zeros(3, 2), [0.5, 1.5, 2.0], task="regression").labels.dtype
        dtype('float32')
    """

    values: Any
    labels: Any = None
    groups: Any = None
    names: Sequence[str] = field(default=())
    blank: int | None = None
    task: TaskName = CLASSES

    def __post_init__(self) -> None:
        """Convert and check everything once."""
        rules_of(self.task)
        values = _floats(self.values)
        _check_values(values)
        convert = _LABELS[self.task]
        labels = None if self.labels is None else convert("labels", self.labels, len(values))
        groups = None if self.groups is None else _classes("groups", self.groups, len(values))
        if groups is not None and groups.ndim != 1:
            raise DataError(f"groups of shape {groups.shape}; give one whole number a row")
        names = list(self.names) or [str(i) for i in range(len(values))]
        if len(names) != len(values):
            raise DataError(f"{len(names)} names for {len(values)} rows; give one name a row")
        for name, value in {"values": values, "labels": labels, "groups": groups}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.values)

    def inputs(self, rows: Rows) -> Tensor:
        """Return rows of the inputs, float32."""
        taken: Tensor = self.values[torch.as_tensor(rows)]
        return taken

    def fingerprint(self) -> str:
        """Return a SHA-256 over inputs, labels, names and groups."""
        digest = hashlib.sha256(repr((tuple(self.values.shape), list(self.names))).encode())
        digest.update(self.values.contiguous().numpy().tobytes())
        for array in (self.labels, self.groups):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        if self.task != CLASSES:
            digest.update(self.task.encode())
        return digest.hexdigest()


def read_npz(*, path: str, blank: int | None = None, task: TaskName = CLASSES) -> Splits:
    """Read a data set from one `.npz` file.

    Args:
        path: holds `train_inputs`, `train_labels`, `val_inputs`, `val_labels`, `test_inputs`, and
            optionally `test_labels` and `train_groups`, `val_groups`, `test_groups`.
            Inputs of type uint8 with four axes are images: 0 to 255 is read as 0 to 1.
        blank: the class that means "no character", for character strings only.
        task: what the labels are: "classification", "multilabel", "regression" or "mean_variance".
            Of regression one number a row is read as one output, `(n, 1)`, as the models that
            recipes name give.

    Raises:
        DataError: no such file, no `.npz`, arrays missing, pickled, or of different lengths;
            labels that do not fit the task.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "mine.npz"
        >>> x, y = np.zeros((4, 2)), np.zeros(4, int)
        >>> np.savez(file, train_inputs=x, train_labels=y, val_inputs=x, val_labels=y,
        ...          test_inputs=x)
        >>> [len(split) for split in read_npz(path=str(file))]
        [4, 4, 4]
    """
    held = _members(Path(path))
    needed = ["train_inputs", "train_labels", "val_inputs", "val_labels", "test_inputs"]
    missing = [name for name in needed if name not in held]
    if missing:
        raise DataError(
            f"'{printable(path)}' lacks {', '.join(missing)}; "
            f"it has {printable(', '.join(sorted(held))) or 'nothing'}"
        )
    train, val, test = (_split(held, name, blank, task, path) for name in Splits._fields)
    return Splits(train, val, test)


def new_array(path: Path, shape: Sequence[int]) -> Arrays:
    """Read new, unlabelled inputs from a `.npy` file.

    Args:
        path: holds `(n, *shape)` numbers; for images `(n, height, width, 3)` will do, too. Of uint8
            images 0 to 255 is read as 0 to 1.
        shape: of one input of the run.

    Raises:
        DataError: no such file, no array, another shape, NaN.

    Example:
        >>> new_array(Path("/no/such.npy"), (4,))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such.npy': No such file or directory
    """
    array, shown = predictions.read(path), printable(path)
    wanted = tuple(shape)
    turned = array.ndim == 4 and (array.shape[3], *array.shape[1:3]) == wanted
    if turned and array.shape[1:] != wanted:
        array = np.moveaxis(array, -1, 1)
    if array.shape[1:] != wanted:
        raise DataError(f"'{shown}' has shape {array.shape}; the run takes (n, {str(wanted)[1:]}")
    try:
        return Arrays(np.ascontiguousarray(pixels(array)))
    except DataError as error:
        raise DataError(f"'{shown}': {error}") from None


def _split(
    held: dict[str, NDArray[Any]], name: str, blank: int | None, task: TaskName, path: str
) -> Arrays:
    labels, groups = held.get(f"{name}_labels"), held.get(f"{name}_groups")
    if task == "regression" and labels is not None and labels.ndim == 1:
        labels = labels[:, None]
    try:
        return Arrays(pixels(held[f"{name}_inputs"]), labels, groups, blank=blank, task=task)
    except DataError as error:
        raise DataError(f"'{printable(path)}', {name} split: {error}") from None


def pixels(array: NDArray[Any]) -> NDArray[Any]:
    """Return uint8 images, four axes, as floats from 0 to 1, and other arrays as they are.

    Example:
        >>> images = np.full((2, 3, 4, 4), 255, np.uint8)
        >>> float(pixels(images).max()), int(pixels(images[:, 0, 0]).max())
        (1.0, 255)
    """
    is_images = array.dtype == np.uint8 and array.ndim == 4
    return array / np.float32(255) if is_images else array


def _members(path: Path) -> dict[str, NDArray[Any]]:
    try:
        raw = durable.read_bytes(path, limit=LIMIT)
    except RunError as error:
        raise DataError(str(error)) from None
    held: dict[str, NDArray[Any]] = {}
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for entry in archive.infolist():
                total += entry.file_size
                if total > LIMIT:
                    raise DataError(f"'{printable(path)}' unpacks to more than {LIMIT:,} bytes")
                name = entry.filename.removesuffix(".npy")
                held[name] = predictions.parse(archive.read(entry), printable(f"{path}/{name}"))
    except FAULTS as error:
        raise DataError(
            f"'{printable(path)}' is not an .npz of plain numbers ({printable(error)}); "
            "write it with numpy.savez(path, train_inputs=..., train_labels=...)"
        ) from None
    return held


def _floats(given: Any) -> Tensor:
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"inputs must be numbers in one array ({printable(error)}); convert them: "
            "numpy.asarray(inputs, dtype='float32')"
        ) from None
    if values.is_complex():
        raise DataError("inputs are complex numbers; give their real parts or magnitudes")
    return values.float()


def _check_values(values: Tensor) -> None:
    if values.ndim < 1 or len(values) == 0:
        raise DataError(f"inputs of shape {tuple(values.shape)} have no rows; bring at least one")
    bad = (
        (~torch.isfinite(values)).flatten(1).any(1) if values.ndim > 1 else ~torch.isfinite(values)
    )
    if bad.any():
        first = torch.nonzero(bad).flatten()[:5].tolist()
        raise DataError(
            f"inputs hold NaN or infinity in {int(bad.sum())} of {len(values)} rows "
            f"(first: {first}); clean them, for example with numpy.nan_to_num"
        )


def _array(what: str, given: Any, rows: int) -> NDArray[Any]:
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{what} are no array ({printable(error)}); give one a row") from None
    if array.ndim < 1 or len(array) != rows:
        raise DataError(f"{what} of shape {array.shape} for {rows} rows of inputs; give one a row")
    return array


def _classes(what: str, given: Any, rows: int) -> Rows:
    array = _array(what, given, rows)
    if array.dtype.kind not in "iub" or array.size == 0:
        numbers = array.dtype.kind == "f" and what == "labels"
        raise DataError(
            f"{what} must be whole numbers from 0, got {array.dtype} of shape {array.shape}; "
            "map your classes to 0, 1, 2, ..."
            + (', or, if they are numbers to predict, say task="regression"' if numbers else "")
        )
    whole: Rows = array.astype(np.int64)
    if whole.min() < 0:  # uint64 beyond int64 is negative here, too
        raise DataError(
            f"{what} must be whole numbers from 0, but the smallest is {whole.min()}; "
            "map your classes to 0, 1, 2, ..."
        )
    return whole


def _yes_or_no(what: str, given: Any, rows: int) -> Labels:
    array = _array(what, given, rows)
    if array.ndim != 2 or array.dtype.kind not in "iubf" or array.size == 0:
        raise DataError(
            f"{what} of the task multilabel must be zeros and ones (rows, labels), got "
            f"{array.dtype} of shape {array.shape}; give a column to each label"
        )
    odd = (array != 0) & (array != 1)  # NaN is, too
    if odd.any():
        raise DataError(
            f"{what} of the task multilabel must be zeros and ones, but {int(odd.sum())} are not, "
            f"such as {array[odd][0]}; give 1 where a label applies and 0 where it does not"
        )
    return array.astype(np.float32)


def _numbers(what: str, given: Any, rows: int) -> Labels:
    array = _array(what, given, rows)
    if array.ndim > 2 or array.dtype.kind not in "iubf" or array.size == 0:
        raise DataError(
            f"{what} of the task regression must be numbers (rows,) or (rows, outputs), got "
            f"{array.dtype} of shape {array.shape}; convert them: labels.astype('float32')"
        )
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    bad = ~np.isfinite(narrow.reshape(rows, -1)).all(1)
    if bad.any():
        raise DataError(
            f"{what} hold NaN, infinity or more than float32 holds in {int(bad.sum())} of {rows} "
            f"rows (first: {np.flatnonzero(bad)[:5].tolist()}); leave out rows without a label"
        )
    return narrow


def _one_number(what: str, given: Any, rows: int) -> Labels:
    numbers = _numbers(what, given, rows)
    if numbers.ndim > 1:
        raise DataError(
            f"{what} of the task mean_variance must be one number a row, (rows,), got shape "
            f"{numbers.shape}; give labels[:, 0], or a run to each of them"
        )
    return numbers


_LABELS: dict[str, Callable[[str, Any, int], Labels]] = {
    "classification": _classes,
    "multilabel": _yes_or_no,
    "regression": _numbers,
    "mean_variance": _one_number,
}

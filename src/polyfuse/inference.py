"""Run a trained model: logits in eval mode, their time, and whether they fit the labels."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from polyfuse.data import ahead
from polyfuse.data.base import Labels, Rows, Split, task_of
from polyfuse.determinism import threads
from polyfuse.errors import DataError, TrainingError
from polyfuse.losses import LOSSES
from polyfuse.subspaces import Subspace
from polyfuse.tasks import CLASSES

PREDICT_BATCH = 256


class Heads(NamedTuple):
    """A model's outputs for rows of a split.

    Attributes:
        characters: `(n, ..., classes)` float32 logits, or numbers of a regression.
        lengths: `(n, positions + 1)` float32 logits of the lengths 0 to positions; None where the
            model has no length head.
    """

    characters: NDArray[np.float32]
    lengths: NDArray[np.float32] | None


def predict(model: nn.Module, split: Split, rows: Rows | None = None) -> NDArray[np.float32]:
    """Return a model's logits, or numbers of a regression, in eval mode, in batches of 256.

    Args:
        model: on any device; its mode is restored afterwards.
        split: the data.
        rows: all rows where None.

    Returns:
        `(rows, ..., classes)` float32; of a regression in the shape of the labels, or `(rows, 2)`
        mean and log-variance.

    Raises:
        TrainingError: the outputs hold NaN or infinity.

    Example:
        >>> from polyfuse import Arrays
        >>> predict(nn.Linear(4, 2), Arrays(torch.zeros(3, 4))).shape
        (3, 2)
    """
    return predict_heads(model, split, rows).characters


def predict_lengths(
    model: nn.Module, split: Split, rows: Rows | None = None
) -> NDArray[np.float32] | None:
    """Return the logits of a length head, as `predict` returns those of the characters.

    Args:
        model: on any device; its mode is restored afterwards.
        split: the data.
        rows: all rows where None.

    Returns:
        `(rows, positions + 1)` float32, of the lengths 0 to positions; None without such a head.

    Raises:
        TrainingError: the outputs hold NaN or infinity.

    Example:
        >>> from polyfuse import Arrays
        >>> predict_lengths(nn.Linear(4, 2), Arrays(torch.zeros(3, 4))) is None
        True
    """
    return predict_heads(model, split, rows).lengths


def predict_heads(model: nn.Module, split: Split, rows: Rows | None = None) -> Heads:
    """Return what `predict` and `predict_lengths` return, of one pass.

    Args:
        model: on any device; its mode is restored afterwards.
        split: the data.
        rows: all rows where None.

    Raises:
        TrainingError: the outputs hold NaN or infinity.

    Example:
        >>> from polyfuse import Arrays
        >>> predict_heads(nn.Linear(4, 2), Arrays(torch.zeros(3, 4))).characters.shape
        (3, 2)
    """
    chosen = np.arange(len(split)) if rows is None else rows
    device = _device(model)
    divided = np.array_split(chosen, max(1, math.ceil(len(chosen) / PREDICT_BATCH)))
    with evaluating(model):
        parts = [model(inputs.to(device)).float().cpu() for inputs in ahead.batches(split, divided)]
    logits = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the model predicts NaN or infinity; lower the learning rate or set clip"
        )
    return heads_of(model, logits)


def heads_of(model: nn.Module, outputs: NDArray[np.float32]) -> Heads:
    """Take a model's outputs apart: its characters, and its length head where it has one.

    Args:
        model: says by an attribute `length_head` that its last head is one of the length.
        outputs: `(n, positions + 1, classes)`, or without that head of any shape.

    Example:
        >>> heads_of(nn.Identity(), np.zeros((2, 3, 11), np.float32)).characters.shape
        (2, 3, 11)
    """
    if not has_length_head(model):
        return Heads(outputs, None)
    positions = outputs.shape[1] - 1
    parts = (outputs[:, :-1], outputs[:, -1, : positions + 1])
    return Heads(*map(np.ascontiguousarray, parts))


def lengths_of(heads: Mapping[str, Heads]) -> dict[str, NDArray[np.float32]]:
    """Return what length heads say, by split; nothing of models without one.

    Example:
        >>> lengths_of({"val": Heads(np.zeros((1, 2), np.float32), None)})
        {}
    """
    return {name: said.lengths for name, said in heads.items() if said.lengths is not None}


def has_length_head(model: nn.Module) -> bool:
    """Tell whether the last head of a model, or of the one that it wraps, is one of the length.

    Example:
        >>> has_length_head(nn.Linear(1, 1))
        False
    """
    wrapped = model.model if isinstance(model, Subspace) else model
    return bool(getattr(wrapped, "length_head", False))


def milliseconds_per_image(model: nn.Module, split: Split, *, batch: int = 64) -> float:
    """Return the median time of a forward pass on one CPU thread, in milliseconds a sample.

    Args:
        model: on any device.
        split: samples to time on.
        batch: samples a pass.

    Example:
        >>> from polyfuse import Arrays
        >>> milliseconds_per_image(nn.Linear(4, 2), Arrays(torch.zeros(3, 4))) > 0
        True
    """
    inputs = split.inputs(np.arange(min(batch, len(split)))).to(_device(model))
    times = []
    with threads(1), evaluating(model):
        for _ in range(6):
            start = time.perf_counter()
            model(inputs)
            times.append(time.perf_counter() - start)
    return 1000 * median(times[1:]) / len(inputs)


def check_labels(model: nn.Module, split: Split, rows: Rows) -> None:
    """Refuse a model whose output does not fit the labels, before any time is spent.

    Raises:
        DataError: unknown labels, another shape, labels that are out of range or NaN, or no labels
            of the task.

    Example:
        >>> from polyfuse import Arrays
        >>> check_labels(nn.Linear(4, 2), Arrays(torch.zeros(3, 4), [0, 1, 2]), np.arange(3))
        Traceback (most recent call last):
        polyfuse.errors.DataError: labels go up to 2, but the model has 2 classes (0 to 1); ...
    """
    if split.labels is None:
        raise DataError("the training split has no labels; bring one label a row")
    with evaluating(model):
        try:
            shape = tuple(model(split.inputs(rows[:2]).to(_device(model))).shape)
        except RuntimeError as error:
            raise DataError(f"the model does not take these inputs: {error}") from error
    task = task_of(split)
    if has_length_head(model):
        shape = _without_length_head(shape, split)
    _refuse_shape(task, shape, split.labels[rows[:2]].shape)
    if split.blank is not None and (
        task != CLASSES or split.labels.ndim != 2 or split.blank >= shape[-1]
    ):
        raise DataError(
            f"blank={split.blank} means strings of characters, but labels of the task {task} have "
            f"shape {split.labels.shape} and the model {shape[-1]} classes; leave blank out, or "
            "give labels (rows, positions) and a class for it"
        )
    _REFUSE[task](split.labels, shape)


def check_loss(model: nn.Module, loss: Callable[..., Any]) -> None:
    """Refuse a loss out of `LOSSES` that does not know what a length head is.

    Raises:
        DataError: the model has a length head, and the loss compares each head with a character.

    Example:
        >>> check_loss(nn.Linear(4, 2), LOSSES["cross_entropy"])
    """
    while isinstance(loss, partial):
        loss = loss.func
    fits = "character_cross_entropy"
    names = [name for name, known in LOSSES.items() if known is loss and name != fits]
    if names and has_length_head(model):
        raise DataError(
            f"the model has a length head, and the loss {names[0]} takes every head for one of a "
            f"character; name fit: {{loss: {fits}}}, or take length_head: false"
        )


def _refuse_shape(task: str, shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
    """Refuse outputs of another shape than that of the labels of these samples asks for."""
    fits = {
        "classification": shape[:-1] == labels,
        "multilabel": shape == labels and len(labels) == 2,
        "regression": shape == labels,
        "mean_variance": shape == (*labels, 2) and len(labels) == 1,
    }
    if fits[task]:
        return
    fixes = {
        "classification": f"the output must be {labels} followed by the number of classes",
        "multilabel": "the task multilabel takes labels (rows, labels) and one logit for each",
        "regression": "the task regression takes as many outputs as there are numbers to predict",
        "mean_variance": "the task mean_variance takes labels (rows,), and mean and log-variance "
        "of each, (rows, 2)",
    }
    fix = fixes[task]
    if task == "regression" and shape == (*labels, 1):
        fix = "give labels[:, None], or a model whose output is output.squeeze(-1)"
    raise DataError(
        f"the model maps {labels[0]} samples to {shape}, but their labels have shape {labels}; "
        + fix
    )


def _without_length_head(shape: tuple[int, ...], split: Split) -> tuple[int, ...]:
    """Return the shape of the characters alone; refuse a length head that cannot be one."""
    if split.blank is None:
        raise DataError(
            "the model has a length head, and these labels are no strings of characters: nothing "
            "says where one ends; give the data a blank class, or take length_head: false"
        )
    if len(shape) != 3 or shape[1] > shape[2]:
        raise DataError(
            f"the model says that it has a length head, and its output is {shape}; it must be "
            "(rows, positions + 1, classes) with more classes than positions, so that the last "
            "head has room for the lengths 0 to positions"
        )
    return (shape[0], shape[1] - 1, shape[2])


def _refuse_no_classes(labels: Labels, shape: tuple[int, ...]) -> None:
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype}, and classes are whole numbers from 0; convert them, or "
            'say what they are: task="regression" or task="multilabel"'
        )
    least, largest, last = int(labels.min()), int(labels.max()), shape[-1] - 1
    if least < 0:
        raise DataError(f"labels go down to {least}; number the classes from 0")
    if largest > last:
        raise DataError(
            f"labels go up to {largest}, but the model has {last + 1} classes (0 to {last}); "
            f"give it {largest + 1} classes or correct the labels"
        )


def _refuse_no_answers(labels: Labels, shape: tuple[int, ...]) -> None:
    if labels.dtype.kind not in "iubf" or not ((labels == 0) | (labels == 1)).all():
        raise DataError(
            "labels of the task multilabel must be zeros and ones, got "
            f"{labels.dtype} from {labels.min()} to {labels.max()}; give 1 where a label applies"
        )


def _refuse_no_numbers(labels: Labels, shape: tuple[int, ...]) -> None:
    if labels.dtype.kind != "f":
        raise DataError(
            f"labels that are numbers to predict are {labels.dtype}; convert them: "
            "labels.astype('float32')"
        )
    if not np.isfinite(labels).all():
        raise DataError(
            "labels that are numbers to predict hold NaN or infinity in "
            f"{int((~np.isfinite(labels.reshape(len(labels), -1)).all(1)).sum())} of {len(labels)} "
            "rows; leave out rows without a label"
        )


_REFUSE: dict[str, Callable[[Labels, tuple[int, ...]], None]] = {
    "classification": _refuse_no_classes,
    "multilabel": _refuse_no_answers,
    "regression": _refuse_no_numbers,
    "mean_variance": _refuse_no_numbers,
}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets its own mode back.

    Example:
        >>> net = nn.Dropout()
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))

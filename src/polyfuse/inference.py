"""Run a trained model: logits in eval mode, their time, and whether they fit the labels."""

import contextlib
import math
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from polyfuse.data.base import Rows, Split
from polyfuse.determinism import threads
from polyfuse.errors import DataError, TrainingError

PREDICT_BATCH = 256


def predict(model: nn.Module, split: Split, rows: Rows | None = None) -> NDArray[np.float32]:
    """Return a model's logits in eval mode, in batches of 256.

    Args:
        model: on any device; its mode is restored afterwards.
        split: the data.
        rows: all rows where None.

    Returns:
        `(rows, ..., classes)` float32.

    Raises:
        TrainingError: the logits hold NaN or infinity.

    Example:
        >>> from polyfuse import Arrays
        >>> predict(nn.Linear(4, 2), Arrays(torch.zeros(3, 4))).shape
        (3, 2)
    """
    chosen = np.arange(len(split)) if rows is None else rows
    device = _device(model)
    with evaluating(model):
        parts = [
            model(split.inputs(part).to(device)).float().cpu()
            for part in np.array_split(chosen, max(1, math.ceil(len(chosen) / PREDICT_BATCH)))
        ]
    logits = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the model predicts NaN or infinity; lower the learning rate or set clip"
        )
    return logits


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
        DataError: unknown labels, another shape, or labels out of range.

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
    wanted = split.labels[rows[:2]].shape
    if shape[:-1] != wanted:
        raise DataError(
            f"the model maps {wanted[0]} samples to {shape}, but their labels have shape {wanted}; "
            f"the output must be {wanted} followed by the number of classes"
        )
    if split.blank is not None and (split.labels.ndim != 2 or split.blank >= shape[-1]):
        raise DataError(
            f"blank={split.blank} means strings of characters, but labels have shape "
            f"{split.labels.shape} and the model {shape[-1]} classes; leave blank out, or give "
            "labels (rows, positions) and a class for it"
        )
    largest = int(split.labels.max())
    if largest >= shape[-1]:
        raise DataError(
            f"labels go up to {largest}, but the model has {shape[-1]} classes "
            f"(0 to {shape[-1] - 1}); give it {largest + 1} classes or correct the labels"
        )


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

"""Scikit-learn's bundled diabetes study as a data set: a regression of 442 patients, embedded."""

import numpy as np
import torch
from numpy.typing import NDArray

from polyfuse.classical import bundled_diabetes
from polyfuse.data.arrays import Arrays
from polyfuse.data.base import Splits
from polyfuse.errors import DataError
from polyfuse.tasks import TaskName

SHARES = (0.6, 0.8)  # where validation and test begin


def diabetes(*, task: TaskName = "regression", seed: int = 0) -> Splits:
    """Divide 442 patients into 265 to train on, 88 to choose on and 89 to test on.

    Inputs and labels are in deviations from the mean of the training rows; so an RMSE of 1 is what
    that mean achieves as a prediction.

    Args:
        task: "regression", whose labels are `(n, 1)`; or "mean_variance", `(n,)`.
        seed: deals the patients.

    Returns:
        Three `Arrays` with inputs `(n, 10)`: age, sex, body mass index, blood pressure and six
        measures of blood serum; the label is the progression of the disease a year later.

    Raises:
        DataError: another task.

    Example:
        >>> splits = diabetes()
        >>> [len(split) for split in splits], splits.train.labels.shape
        ([265, 88, 89], (265, 1))
    """
    if task not in ("regression", "mean_variance"):
        raise DataError(f"task='{task}': the diabetes study has numbers; type regression")
    inputs, labels = bundled_diabetes()
    order = np.random.default_rng(seed).permutation(len(labels))
    train, val, test = np.split(order, [int(share * len(order)) for share in SHARES])
    numbers = labels[:, None] if task == "regression" else labels
    scaled, truth = _deviations(inputs, train), _deviations(numbers, train)
    made = (
        Arrays(torch.from_numpy(scaled[rows]), truth[rows], names=list(map(str, rows)), task=task)
        for rows in (train, val, test)
    )
    return Splits(*made)


def _deviations(values: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return values in standard deviations from the mean of these rows."""
    mean, deviation = values[rows].mean(0), values[rows].std(0)
    scaled: NDArray[np.float32] = ((values - mean) / deviation).astype(np.float32)
    return scaled

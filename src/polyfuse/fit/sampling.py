"""Which learning rows come in which batch of which epoch, and how much each weighs."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.base import Rows
from polyfuse.errors import TrainingError
from polyfuse.fit.base import FitOptions

Floats = NDArray[np.floating[Any]]


class Order:
    """The order of the learning rows, epoch by epoch; decided by the seed and the epoch alone.

    Args:
        learn: the learning rows.
        labels: one a learning row.
        options: batch size, accumulation, sampler.
        seed: of the member.

    Raises:
        TrainingError: a sampler that gives no places.

    Example:
        >>> order = Order(np.arange(5), np.zeros(5, int), FitOptions(batch_size=2), 0)
        >>> [len(places) for places in order.batches(0)], order.steps
        ([2, 2, 1], 3)
    """

    def __init__(self, learn: Rows, labels: NDArray[Any], options: FitOptions, seed: int) -> None:
        """Ask the sampler once how many rows an epoch has."""
        self.learn, self.labels, self.options = learn, labels, options
        self.seed = seed if options.order_seed is None else options.order_seed
        self.rows = len(learn)
        self.rows = len(self.places(0))
        self.count = math.ceil(self.rows / options.batch_size)
        self.steps = math.ceil(self.count / options.accumulate)

    def places(self, epoch: int) -> Rows:
        """Return places among the learning rows, in the order of an epoch, from 0."""
        generator = np.random.default_rng([self.seed, epoch])
        if self.options.sampler is None:
            return generator.permutation(len(self.learn))
        return self._sampled(epoch, generator)

    def batches(self, epoch: int) -> list[Rows]:
        """Return the places batch by batch; sizes differ by one at most."""
        return np.array_split(self.places(epoch), self.count)

    def share(self, batch: int) -> int:
        """Return how many batches this one's step accumulates; the last step may have fewer."""
        return min(self.options.accumulate, self.count - self._first(batch))

    def ends_step(self, batch: int) -> bool:
        """Tell whether the optimiser steps after this batch."""
        return batch + 1 == self._first(batch) + self.share(batch)

    def step(self, epoch: int, batch: int) -> int:
        """Return the number of the step that a batch belongs to, from 0, over all epochs."""
        return epoch * self.steps + batch // self.options.accumulate

    def _first(self, batch: int) -> int:
        return batch - batch % self.options.accumulate

    def _sampled(self, epoch: int, generator: np.random.Generator) -> Rows:
        assert self.options.sampler is not None
        places = np.asarray(self.options.sampler(self.learn, self.labels, generator))
        fault = ""
        if places.ndim != 1 or places.dtype.kind not in "iu" or not len(places):
            fault = f"{places.dtype} of shape {places.shape}"
        elif places.min() < 0 or places.max() >= len(self.learn):
            fault = f"places from {places.min()} to {places.max()}"
        elif epoch and len(places) != self.rows:
            fault = f"{len(places)} places in epoch {epoch + 1}, and {self.rows} in the first"
        if fault:
            raise TrainingError(
                f"sampler: it gives {fault}; it must return places among the {len(self.learn)} "
                "learning rows, one whole number a row of the epoch, as many in every epoch"
            )
        return places.astype(np.int64)


def balanced(rows: Rows, labels: NDArray[Any], generator: np.random.Generator) -> Rows:
    """Draw every class equally often: as many rows an epoch as there are learning rows.

    Of a class with too many rows, others are drawn in every epoch; the rows of a class with too
    few come again, but only after all of them have come. Classes differ by one row at most.

    Args:
        rows: the learning rows.
        labels: `(n,)` classes.
        generator: draws.

    Returns:
        Places among the rows, `(n,)` int64.

    Raises:
        TrainingError: labels that are no classes, one a row.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 0, 1])
        >>> drawn = balanced(np.arange(6), labels, np.random.default_rng(0))
        >>> np.bincount(labels[drawn]).tolist()
        [3, 3]
    """
    classes = _classes(labels, "sampler: balanced")
    kinds = generator.permutation(np.unique(classes))  # who gets one more is drawn, too
    drawn = [
        _again_and_again(np.flatnonzero(classes == kind), len(part), generator)
        for kind, part in zip(kinds, np.array_split(rows, len(kinds)), strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))


SAMPLERS: dict[str, Callable[..., Rows]] = {"balanced": balanced}


def row_weights(
    options: FitOptions, labels: NDArray[Any], weights: Floats | None
) -> NDArray[np.float32] | None:
    """Return what each learning row weighs, with a mean of 1; None where all weigh alike.

    A class that is "balanced" weighs `n / (classes n_class)`, where a row counts as much as it
    weighs: twice where it is there twice (King and Zeng 2001; scikit-learn's `class_weight`).

    Args:
        options: the loss, and the class weights.
        labels: one a learning row.
        weights: one a learning row, 0 or more; None weighs all alike.

    Raises:
        TrainingError: weights that are none, or a loss that takes none.

    Example:
        >>> row_weights(FitOptions(class_weights="balanced"), np.array([0, 0, 0, 1]), None).tolist()
        [0.6666666865348816, 0.6666666865348816, 0.6666666865348816, 2.0]
    """
    if weights is None and options.class_weights is None:
        return None
    if weights is not None:
        _refuse_no_weights(weights, len(labels))
    _refuse_no_place_for_weights(options.loss)
    each = np.ones(len(labels)) if weights is None else weights
    if options.class_weights is not None:
        each = each * _of_classes(options.class_weights, labels, each)
    if not each.sum() > 0:
        raise TrainingError("all weights of the learning rows are 0; there is nothing to learn")
    scaled: NDArray[np.float32] = (each / each.mean(dtype=np.float64)).astype(np.float32)
    return scaled


def _of_classes(given: Any, labels: NDArray[Any], weights: Floats) -> Floats:
    """Return the weight of each row's class."""
    classes = _classes(labels, "class_weights")
    if not isinstance(given, str):
        if len(given) <= classes.max():
            raise TrainingError(
                f"class_weights: {len(given)} numbers, but labels go up to {classes.max()}; type "
                f"{classes.max() + 1} or more"
            )
        chosen: Floats = np.asarray(given, np.float64)[classes]
        return chosen
    there, which = np.unique(classes, return_inverse=True)
    mass = np.bincount(which, weights)
    if not mass.all():
        raise TrainingError(
            f"class_weights: the rows of class {there[mass == 0][0]} weigh 0, so nothing balances "
            "them; leave them out, or type a list of a number a class"
        )
    of_classes: Floats = mass.sum() / (len(there) * mass)
    return of_classes[which]


def _classes(labels: NDArray[Any], what: str) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TrainingError(
            f"{what} needs one class a row, int64 labels (n,); got {labels.dtype} of shape "
            f"{labels.shape}; leave it out"
        )
    return labels.astype(np.int64)


def _again_and_again(places: Rows, count: int, generator: np.random.Generator) -> Rows:
    """Draw so many places: all of them in a new order, then all again, ..."""
    rounds = [generator.permutation(places) for _ in range(math.ceil(count / len(places)))]
    return np.concatenate([places[:0], *rounds])[:count]


def _refuse_no_weights(weights: Floats, rows: int) -> None:
    if weights.shape != (rows,) or not np.isfinite(weights).all() or weights.min() < 0:
        raise TrainingError(
            f"weights must be {rows} finite numbers of 0 and more, one a learning row; got "
            f"{weights.dtype} of shape {weights.shape}"
        )


def _refuse_no_place_for_weights(loss: Callable[..., Any]) -> None:
    if "weights" not in inspect.signature(loss).parameters:
        raise TrainingError(
            "rows are weighted here, and the loss takes no weights; give it a parameter: "
            "loss(outputs, labels, *, weights=None) -> mean of the samples' losses times weights"
        )

"""Scores that are weighted by counts, so that a bootstrap never re-indexes samples.

A metric maps `(prediction, labels)` to a score. Most decompose into `Terms`: a numerator and a
denominator a sample, whose value is `sum numerator / sum denominator`. The others (AUROC, AURC, F1,
balanced accuracy, ECE) keep what a replicate needs: an order, cells or bins. Each has its `value`,
and `replicates(counts)` for how often each sample was drawn. `METRICS` lists them; `metrics_for`
picks those that fit a task.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from numpy.typing import NDArray

from polyfuse.metrics.base import Floats, Labels, Root, Score, Terms
from polyfuse.metrics.bootstrap import (
    Interval,
    bootstrap_counts,
    draw_counts,
    interval,
    paired_interval,
    percentiles,
    replicate_scores,
)
from polyfuse.metrics.calibration_error import ece
from polyfuse.metrics.confusion import balanced_accuracy, f1, f1_by_class
from polyfuse.metrics.custom import scored_by
from polyfuse.metrics.decided import accuracy, character_accuracy, string_accuracy
from polyfuse.metrics.probabilistic import brier, nll
from polyfuse.metrics.ranking import aurc, auroc
from polyfuse.metrics.regression import crps, mae, pinball, rmse

__all__ = [
    "FOR_NUMBERS",
    "LOWER_IS_BETTER",
    "METRICS",
    "NEEDS_PROBABILITIES",
    "Floats",
    "Interval",
    "Labels",
    "Root",
    "Score",
    "Terms",
    "accuracy",
    "aurc",
    "auroc",
    "balanced_accuracy",
    "bootstrap_counts",
    "brier",
    "character_accuracy",
    "crps",
    "draw_counts",
    "ece",
    "f1",
    "f1_by_class",
    "interval",
    "mae",
    "metrics_for",
    "nll",
    "paired_interval",
    "percentiles",
    "pinball",
    "replicate_scores",
    "rmse",
    "scored_by",
    "string_accuracy",
]

METRICS: dict[str, Callable[..., Score]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "auroc": auroc,
    "nll": nll,
    "brier": brier,
    "ece": ece,
    "ece_equal_mass": partial(ece, equal="mass"),
    "aurc": aurc,
    "string_accuracy": string_accuracy,
    "character_accuracy": character_accuracy,
    "rmse": rmse,
    "mae": mae,
    "pinball": pinball,
    "crps": crps,
}
FOR_NUMBERS = frozenset({"rmse", "mae", "pinball", "crps"})
NEEDS_PROBABILITIES = frozenset({"nll", "brier", "ece", "ece_equal_mass", "aurc", "auroc"})
LOWER_IS_BETTER = (NEEDS_PROBABILITIES - {"auroc"}) | FOR_NUMBERS


def metrics_for(blank: int | None, task: str = "classification") -> dict[str, Callable[..., Score]]:
    """Return the metrics that fit a task by name, the one that decides first.

    That one is a mean over samples, or its root. Of labels that do not exclude each other it is the
    NLL, which is proper and sees rare labels; of classes the share that is right.

    Args:
        blank: the class that means "no character"; None outside character strings.
        task: "classification", "multilabel", "regression" or "mean_variance".

    Example:
        >>> list(metrics_for(None)), list(metrics_for(10))[0]
        (['accuracy', 'nll'], 'string_accuracy')
        >>> list(metrics_for(None, "regression"))
        ['rmse', 'mae']
    """
    if task == "regression":
        return {"rmse": rmse, "mae": mae}
    if task == "mean_variance":
        return {"crps": crps, "rmse": partial(_of_mean, rmse), "mae": partial(_of_mean, mae)}
    if task == "multilabel":
        return {"nll": nll, "brier": brier, "f1": partial(f1, multilabel=True)}
    if blank is None:
        return {"accuracy": accuracy, "nll": nll}
    return {
        "string_accuracy": partial(string_accuracy, blank=blank),
        "character_accuracy": partial(character_accuracy, blank=blank),
        "nll": nll,
    }


def _of_mean(metric: Callable[..., Score], prediction: NDArray[Any], labels: Labels) -> Score:
    """Score the means alone of `(n, 2)` means and variances."""
    return metric(prediction[..., 0], labels)

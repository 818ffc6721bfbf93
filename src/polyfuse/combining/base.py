"""The kinds of tasks: how their predictions are laid out, scored, and handed back.

Inside, exclusive classes, binary answers and labels of their own all have a last axis of classes
that sums to one: a lone probability p is worked on as the pair (1 - p, p), and goes out as p.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics import METRICS, Score

Array = NDArray[Any]
Metric = Callable[[Array, Array], Score]


class Kind(NamedTuple):
    """One kind of task.

    Attributes:
        says: what a member's predictions are.
        metrics: that fit, by name, the default first.
        shown: a second one that is always shown.
        classes: members predict probabilities of classes.
        pairs: each number is the probability of "yes", worked on as (no, yes).
        axes: of one member's predictions, as they come.
    """

    says: str
    metrics: tuple[str, ...]
    shown: str | None = None
    classes: bool = True
    pairs: bool = False
    axes: int = 2


_CURVES = ("balanced_accuracy", "f1", "auroc", "ece", "ece_equal_mass", "aurc")
_EXCLUSIVE = ("accuracy", "nll", "brier", *_CURVES)
KINDS: dict[str, Kind] = {
    "multiclass": Kind("probabilities (row, class) of classes", _EXCLUSIVE, "nll"),
    "binary": Kind("one probability a row (row,)", _EXCLUSIVE, "nll", pairs=True, axes=1),
    "multilabel": Kind(
        "probabilities (row, label) of labels that do not exclude each other",
        ("f1", "accuracy", "string_accuracy", "nll", "brier", "auroc"),
        "nll",
        pairs=True,
    ),
    "multi_head": Kind(
        "probabilities (row, head, class)",
        ("string_accuracy", "character_accuracy", "accuracy", "nll", "brier"),
        "character_accuracy",
        axes=3,
    ),
    "regression": Kind("numbers (row, ...)", ("rmse", "mae"), "mae", classes=False, axes=1),
    "mean_variance": Kind(
        "mean and variance (row, 2)", ("crps", "rmse", "mae"), "rmse", classes=False
    ),
    "quantiles": Kind("quantiles (row, level)", ("pinball",), classes=False),
}


@dataclass(frozen=True)
class Rows:
    """The rows of one split: what every member says, and what is true.

    Attributes:
        said: `(member, row, ...)`: probabilities over the last axis, or numbers.
        labels: `(row, ...)`, or None where they are unknown.
        ids: of the rows, or None.
        groups: `(row,)` integers, or None.
    """

    said: Array
    labels: Array | None = None
    ids: Sequence[str] | None = None
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.said.shape[1])


@dataclass(frozen=True, kw_only=True)
class Given:
    """All that a combination is made of, checked.

    Attributes:
        kind: name in `KINDS`.
        names: of the members.
        fingerprints: of the members' validation files.
        spaces: that the members came in.
        val: the rows that combinations are fitted on and chosen by.
        test: the rows that nothing is chosen by, or None.
        classes: names of the classes, labels or levels, or None.
        decided: members say classes, not probabilities.
        costs: `(member,)`; ones where nothing is known.
        priced: costs were given.
        trained: `(member, row)` booleans of `val`, or None.
        blank: the class that means "no character", or None.
        levels: of quantiles.
        columns: what answers are headed by: the ids, and the one other column where there is one.
        notes: what a reader must know.
    """

    kind: str
    names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    spaces: tuple[str, ...]
    val: Rows
    costs: NDArray[np.float64]
    test: Rows | None = None
    classes: tuple[str, ...] | None = None
    decided: bool = False
    priced: bool = False
    trained: NDArray[np.bool_] | None = None
    blank: int | None = None
    levels: tuple[float, ...] = ()
    columns: tuple[str, ...] = ("id",)
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> Mapping[str, Rows]:
        """The splits by name."""
        return {"val": self.val} | ({"test": self.test} if self.test is not None else {})


def outward(kind: str, prediction: Array) -> Array:
    """Return a prediction as it goes out: pairs as the probability of "yes".

    Example:
        >>> outward("binary", np.array([[0.25, 0.75]])).tolist()
        [0.75]
    """
    return prediction[..., 1] if KINDS[kind].pairs and prediction.dtype.kind == "f" else prediction


def metric_of(name: str, kind: str, *, blank: int | None, levels: Sequence[float]) -> Metric:
    """Return a metric of `KINDS` as a function of (prediction as it goes out, labels).

    Example:
        >>> score = metric_of("accuracy", "binary", blank=None, levels=())
        >>> score(np.array([0.2, 0.9]), np.array([0, 0])).value
        0.5
    """
    metric = METRICS[name]
    if name in ("string_accuracy", "character_accuracy"):
        return partial(_decoded, partial(metric, blank=-1 if blank is None else blank))
    if name == "f1" and kind == "multilabel":
        return partial(metric, multilabel=True)
    if name == "pinball":
        return partial(metric, quantiles=tuple(levels))
    if kind == "mean_variance" and name != "crps":
        return lambda prediction, labels: metric(prediction[..., 0], labels)
    return metric


def _decoded(metric: Metric, prediction: Array, labels: Array) -> Score:
    """Score whole rows; probabilities of "yes" are decided first."""
    if prediction.dtype.kind == "f" and prediction.shape == labels.shape:
        prediction = (prediction > 0.5).astype(np.int64)
    return metric(prediction, labels)

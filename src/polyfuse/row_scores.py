"""Scores of a scoreboard's rows: their intervals, and their difference to the best member."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, refuse_unknown
from polyfuse.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    NEEDS_PROBABILITIES,
    Score,
    bootstrap_counts,
    interval,
    metrics_for,
    paired_interval,
)
from polyfuse.population import Population
from polyfuse.significance import LEVEL, compare_pairs

_MORE = ("accuracy", "balanced_accuracy", "f1", "auroc", "brier", "ece", "ece_equal_mass", "aurc")
MORE_METRICS: dict[str, Callable[..., Score]] = {name: METRICS[name] for name in _MORE}
_FIT: dict[str, tuple[str, ...]] = {
    "classification": _MORE,
    "multilabel": ("accuracy", "auroc"),
    "regression": (),
    "mean_variance": (),
}

Scores = Mapping[str, Mapping[str, Score | None]]  # row name -> metric -> score


def all_metrics(
    blank: int | None, more: Sequence[str] = (), task: str = "classification"
) -> dict[str, Callable[..., Score]]:
    """Return the metrics of a task by name, the one that decides first, and more of them.

    Args:
        blank: the class that means "no character"; None outside character strings.
        more: names out of `MORE_METRICS`.
        task: "classification", "multilabel", "regression" or "mean_variance".

    Raises:
        PolyfuseError: an unknown name.
        DataError: metrics that do not fit the task, all at once.

    Example:
        >>> list(all_metrics(None, ["brier"]))
        ['accuracy', 'nll', 'brier']
    """
    refuse_unknown("scoreboard.metrics", more, list(MORE_METRICS))
    own = metrics_for(blank, task)
    if odd := [name for name in more if name not in _FIT[task] and name not in own]:
        raise DataError(
            f"scoreboard.metrics: {', '.join(odd)} do not fit the task {task}, which has "
            f"{', '.join(own)}, and takes {', '.join(_FIT[task]) or 'no more'}"
        )
    return own | {name: MORE_METRICS[name] for name in more if name not in own}


def score_rows(
    said: Mapping[str, NDArray[Any]],
    labels: NDArray[Any] | None,
    metrics: Mapping[str, Callable[..., Score]],
) -> Scores:
    """Return all rows' scores on a split; nothing where its labels are unknown.

    Args:
        said: by row, `(sample, ..., class)` probabilities, `(sample, ...)` classes or numbers.
        labels: `(sample, ...)`.
        metrics: by name.

    Returns:
        By row and metric; None where a vote has no probabilities to score.

    Raises:
        DataError: predictions that do not fit the labels or the metric.

    Example:
        >>> said = {"member 0": np.array([[0.9, 0.1]])}
        >>> score_rows(said, np.array([0]), all_metrics(None))["member 0"]["accuracy"].value
        1.0
    """
    if labels is None:
        return {}
    return {
        row: {name: _score(name, metric, answer, labels) for name, metric in metrics.items()}
        for row, answer in said.items()
    }


def _score(
    name: str,
    metric: Callable[..., Score],
    prediction: NDArray[Any],
    labels: NDArray[Any],
) -> Score | None:
    if name in NEEDS_PROBABILITIES and prediction.dtype.kind != "f":
        return None
    return metric(prediction, labels)


def draw(population: Population, split: str, replicates: int, seed: int) -> NDArray[np.float32]:
    """Return how often each sample of a split is in each replicate; whole groups are drawn.

    Example:
        >>> draw.__name__
        'draw'
    """
    rows = population.index["splits"][split]["rows"]
    return bootstrap_counts(rows, replicates, seed=seed, groups=population.groups(split))


def choose(rows: Sequence[Mapping[str, Any]], val: Scores, metric: str) -> str:
    """Return the name of the row that is best on validation; among equals the cheapest.

    Args:
        rows: `name` and `models` of each, and `views` where it has some.
        val: their scores.
        metric: that decides.

    Raises:
        DataError: no scores: the labels are unknown.

    Example:
        >>> from polyfuse.metrics import accuracy
        >>> score = {"accuracy": accuracy(np.array([1]), np.array([1]))}
        >>> rows = [{"name": "mean", "models": 2}, {"name": "member 0", "models": 1}]
        >>> choose(rows, {"mean": score, "member 0": score}, "accuracy")
        'member 0'
    """
    if not val:
        raise DataError("the validation split has no labels, so nothing can be chosen; bring them")
    sign = -1 if metric in LOWER_IS_BETTER else 1

    def merit(row: Mapping[str, Any]) -> tuple[float, int]:
        score = val[row["name"]][metric]
        passes = row["models"] * row.get("views", 1)
        return (sign * score.value if score else -np.inf, -passes)

    return str(max(rows, key=merit)["name"])


def judge(
    population: Population,
    split: str,
    rows: Sequence[dict[str, Any]],
    scores: Scores,
    document: Mapping[str, Any],
) -> None:
    """Put into each row its scores on a split, and its difference to the best member.

    The differences of a split are corrected together, for all rows that are compared.

    Args:
        population: whose split it is.
        split: its name.
        rows: of the scoreboard; each gains an entry of the split's name.
        scores: of the rows on this split.
        document: `interval`, `metric` and `best_member` of the scoreboard.

    Example:
        >>> judge.__name__
        'judge'
    """
    _, replicates, seed = document["interval"].values()
    counts = draw(population, split, replicates, seed)
    metric, reference = document["metric"], document["best_member"]
    ours = deciding(scores, metric)
    draws = {"replicates": replicates, "seed": seed, "groups": population.groups(split)}
    pairs = compare_pairs(ours, reference=reference, **draws) if len(ours) > 1 else ()
    corrected = {pair.a: pair.corrected for pair in pairs}
    for row in rows:
        name = row["name"]
        own = {m: _interval(score, counts) for m, score in scores[name].items()}
        row[split] = {**own, "difference": None}
        if name in ours:  # a vote has no probabilities, and no difference where these decide
            gain = paired_interval(ours[name], ours[reference], counts)
            p = corrected.get(name)  # none of the best member, which is compared with itself
            apart = gain.high < 0 if metric in LOWER_IS_BETTER else gain.low > 0
            better = apart and p is not None and p <= LEVEL
            row[split]["difference"] = {**gain._asdict(), "better": better, "p": p}


def deciding(scores: Scores, metric: str) -> dict[str, Score]:
    """Return each row's score by the metric that decides, which fits every row.

    Example:
        >>> deciding({"member 0": {"accuracy": None}}, "accuracy")
        {}
    """
    return {name: score for name, own in scores.items() if (score := own[metric]) is not None}


def _interval(score: Score | None, counts: NDArray[np.float32]) -> dict[str, Any] | None:
    """Return a score with its interval as JSON has it, whose numbers are finite; None without."""
    if score is None or np.isnan(score.value):
        return None
    found = interval(score, counts)._asdict()
    return {key: value if np.isfinite(value) else None for key, value in found.items()}

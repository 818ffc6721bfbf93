"""Combine what several members say: every method, honest scores, a recommendation, files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polyfuse.combining.base import KINDS, Given, Metric, metric_of
from polyfuse.combining.combination import Combination
from polyfuse.combining.given import given_of
from polyfuse.combining.judging import Judge
from polyfuse.combining.making import Progress, member_rows, method_rows
from polyfuse.combining.methods import METHODS, Wish, chosen_methods, options_of
from polyfuse.combining.saved import SavedCombination, is_combination
from polyfuse.combining.summing_up import scoreboard_of, used_row
from polyfuse.errors import DataError
from polyfuse.metrics import LOWER_IS_BETTER, scored_by
from polyfuse.parameters import one_of

__all__ = [
    "KINDS",
    "METHODS",
    "Combination",
    "SavedCombination",
    "combine_predictions",
    "is_combination",
]


def combine_predictions(
    predictions: Any,
    labels: Any,
    *,
    test: Any = None,
    test_labels: Any = None,
    method: str | Sequence[str] = "mean",
    metric: str | Callable[[Any, Any], float] | None = None,
    higher_is_better: bool = True,
    groups: Any = None,
    test_groups: Any = None,
    costs: Any = None,
    trained: Any = None,
    task: str | None = None,
    space: str | None = None,
    classes: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    blank: int | None = None,
    uncovered: str = "error",
    rows: str = "error",
    ordered: bool = False,
    folds: int = 5,
    options: Mapping[str, Any] | None = None,
    calibrate: bool | str = False,
    use: str | None = None,
    replicates: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Combination:
    """Combine the predictions of several members, and say whether that is really better.

    Combinations are fitted on `predictions` and `labels`, which no member may have trained on.
    Their scores there are cross-fitted: each row is predicted by a fit without it. On `test`
    nothing is fitted or chosen.

    Args:
        predictions: one entry a member: paths, arrays or tensors `(row, ...)`; by name in a
            mapping; or one array `(member, row, ...)`. NaN where a member has no say.
        labels: a path, an array or tensor `(row, ...)`, or a list of names.
        test: predictions of the same members on other rows.
        test_labels: their labels, where they are known.
        method: a name in `METHODS`, several, or "all" that fit the task.
        metric: that decides: a name in `polyfuse.metrics.METRICS` that fits the task, or a
            function of (prediction, labels); by default the first of the task's.
        higher_is_better: of a function.
        groups: one a row; rows of one group are neither cut over folds nor drawn apart.
        test_groups: of the rows of `test`.
        costs: one number a member, such as milliseconds; a mapping or a file by name.
        trained: `(member, row)` booleans: which rows each member learned from or was stopped on.
        task: name in `KINDS`, where shapes and labels do not tell it.
        space: "prob", "logit" or "log_prob", where the numbers do not tell it.
        classes: names of the columns, in order.
        levels: of quantiles.
        blank: of character strings, the class that means "no character".
        uncovered: "error", or "leave_out" for rows that some member has no say on.
        rows: "error" where the files' ids differ, or "shared" to keep the rows that all have.
        ordered: rows come in the order of time; fits see earlier rows only.
        folds: of cross-fitting.
        options: of methods: `{"caruana.rounds": 50}`, or `{"rounds": 50}` for all that take it.
        calibrate: try each method calibrated, too; True is "temperature".
        use: the row whose predictions are kept; by default the one method that was asked for, or
            of several the recommended row.
        replicates: of the bootstrap.
        seed: of whatever draws.
        progress: called with (name, done, total, note).

    Returns:
        The combination: scoreboard, weights, predictions; `save(folder)` writes them.

    Raises:
        DataError: what does not fit, all faults at once: rows, ids, classes, labels in another
            coding, numbers that are no probabilities, rows that a member trained on.

    Example:
        >>> import numpy as np
        >>> labels = np.tile([0, 1, 2], 20)
        >>> good = np.full((60, 3), 0.1) + 0.7 * np.eye(3)[labels]
        >>> poor = np.random.default_rng(0).dirichlet(np.ones(3), 60)
        >>> done = combine_predictions({"good": good, "poor": poor}, labels, method="caruana")
        >>> done.weights["caruana"], done.recommended
        ({'good': 1.0, 'poor': 0.0}, 'good')
    """
    given = given_of(
        predictions,
        labels,
        test=test,
        test_labels=test_labels,
        groups=groups,
        test_groups=test_groups,
        costs=costs,
        trained=trained,
        task=task,
        space=space,
        classes=classes,
        levels=levels,
        blank=blank,
        uncovered=uncovered,
        rows=rows,
    )
    judge = _judge(given, metric, higher_is_better, replicates, seed)
    methods = chosen_methods(method, given.kind, given.decided)
    own, calibration = _settings(options or {}, methods, calibrate)
    wish = Wish(
        kind=given.kind,
        metric=judge.metrics[judge.metric],
        metric_name=judge.metric,
        lower_is_better=judge.lower_is_better,
        costs=given.costs,
        seed=seed,
        folds=folds,
        blank=blank,
    )
    several = len(methods) > 1 or bool(calibrate)
    fused, failed = method_rows(
        given,
        methods,
        own,
        wish,
        ordered=ordered,
        lenient="all" in ([method] if isinstance(method, str) else method),
        calibrate=calibration,
        progress=progress,
    )
    entries = [*member_rows(given), *fused]
    board = scoreboard_of(given, entries, judge, [*given.notes, *failed], folds=folds)
    settings = {"folds": folds, "seed": seed, "ordered": ordered, "options": dict(options or {})}
    kept = used_row(board, entries, use, several)
    return Combination(board, kept, given, {row.name: row for row in entries}, settings)


def _judge(
    given: Given,
    metric: str | Callable[[Any, Any], float] | None,
    higher_is_better: bool,
    replicates: int,
    seed: int,
) -> Judge:
    """Return the metrics of the task, the one that decides first."""
    kind = KINDS[given.kind]
    name = metric if isinstance(metric, str) else kind.metrics[0]
    one_of("metric", name, kind.metrics)
    shown = [m for m in dict.fromkeys([name, kind.metrics[0], kind.shown]) if m is not None]
    metrics: dict[str, Metric] = {
        m: metric_of(m, given.kind, blank=given.blank, levels=given.levels) for m in shown
    }
    if metric is None or isinstance(metric, str):
        return Judge(metrics, name in LOWER_IS_BETTER, replicates, seed)
    own = {getattr(metric, "__name__", "metric"): scored_by(metric)}
    return Judge(own | metrics, not higher_is_better, replicates, seed)


def _settings(
    options: Mapping[str, Any], methods: Mapping[str, Any], calibrate: bool | str
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Return each method's options, and those of the calibration, if there is one."""
    own = {k: v for k, v in options.items() if not k.startswith("calibrate.")}
    calibration = {k.removeprefix("calibrate."): v for k, v in options.items() if k not in own}
    if not calibrate and calibration:
        raise DataError("options of a calibration are set, and none is asked for: --calibrate")
    if isinstance(calibrate, str):
        calibration["method"] = calibrate
    return options_of(own, methods), calibration if calibrate else None

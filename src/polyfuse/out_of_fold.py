"""How training rows are predicted by the members that did not see them, beside the test rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics import Root, Score, Terms, interval
from polyfuse.population import Population
from polyfuse.row_scores import Scores, draw
from polyfuse.tasks import mean_of, mean_said, meant

Metric = Callable[..., Score]


def score_out_of_fold(
    population: Population,
    metrics: Mapping[str, Metric],
    test: Scores,
    *,
    replicates: int,
    seed: int,
) -> dict[str, Any] | None:
    """Score every training row by the members that did not see it, beside these members on test.

    Args:
        population: its members; those that were added are left out.
        metrics: by name; the first one is taken.
        test: scores of the members on test; none where its labels are unknown.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Rows that were predicted, the metric, and with their intervals: `train`, what a member
        scores on rows that it did not see; `test`, what the same members score on test, each alone;
        and, where a row has several predictions, `together`, the score of their mean (out of bag,
        or out of repeated folds). None where no member held a row out.

    Example:
        >>> score_out_of_fold.__name__
        'score_out_of_fold'
    """
    population = population.trained_here
    labels = population.labels("train") if population.members else None
    if labels is None:
        return None
    outputs = population.stack("train")
    heard = np.asarray(np.isfinite(outputs.reshape(*outputs.shape[:2], -1)).all(-1))
    said = np.asarray(heard.any(0))
    if not said.any():
        return None
    task, (name, metric) = population.task, next(iter(metrics.items()))
    counts = draw(population, "train", replicates, seed)[:, said]
    each = [
        (rows, metric(mean_of(task, told[rows][None]), labels[rows]))
        for rows, told in zip(heard, outputs, strict=True)
        if rows.any()
    ]
    result: dict[str, Any] = {"rows": int(said.sum()), "metric": name}
    result["train"] = interval(_of_rows(each, said), counts)._asdict()
    if heard.sum(0).max() > 1:
        score = metric(mean_said(task, meant(task, outputs))[said], labels[said])
        result["together"] = interval(score, counts)._asdict()
    if test:
        speaking = [m for m, rows in zip(population.members, heard, strict=True) if rows.any()]
        mean = _mean([test[member.name][name] for member in speaking])
        result["test"] = interval(mean, draw(population, "test", replicates, seed + 1))._asdict()
    return result


def _of_rows(each: Sequence[tuple[NDArray[np.bool_], Score]], said: NDArray[np.bool_]) -> Score:
    """Return, of each row, the mean of its scores by the members that did not see it."""
    sums, counts = np.zeros((2, len(said))), np.zeros(len(said))
    for rows, score in each:
        sums[:, rows] += np.stack(_terms(score))
        counts[rows] += 1
    mean = Terms(*(sums[:, said] / counts[said]))
    return Root(mean) if any(isinstance(score, Root) for _, score in each) else mean


def _mean(scores: Sequence[Score | None]) -> Score:
    """Return the mean of scores; the metric that decides is a mean over samples, or its root."""
    known = [score for score in scores if score is not None]
    mean = Terms(*np.mean([np.stack(_terms(score)) for score in known], 0))
    return Root(mean) if any(isinstance(score, Root) for score in known) else mean


def _terms(score: Score) -> Terms:
    terms = score.square if isinstance(score, Root) else score
    assert isinstance(terms, Terms)  # metrics that decide are
    return terms

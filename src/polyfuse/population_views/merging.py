"""Merge what a member says of its views, in the outputs of the task: heads, and length heads."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import Floats
from polyfuse.inference import Heads
from polyfuse.members import Member
from polyfuse.metrics import LOWER_IS_BETTER, metrics_for
from polyfuse.population import Population
from polyfuse.population_views.base import Chosen
from polyfuse.population_views.store import ViewStore
from polyfuse.tasks import mean_said, meant
from polyfuse.tta.choosing import ViewChoice, merged, merged_by_row
from polyfuse.tta.guard import Guarded

Array = NDArray[Any]
Combiner = Callable[..., Any]
_LEAST = float(np.finfo(np.float32).min)  # the logarithm of what is ruled out
_TINY = np.finfo(np.float32).tiny


def merge_heads(
    population: Population, chosen: Chosen, said: Sequence[Heads], combiner: Combiner | None = None
) -> Heads:
    """Merge what one member says of new rows.

    Args:
        population: that the views were chosen for.
        chosen: the choice.
        said: of each of `chosen.names`, in order.
        combiner: as for `choose_views`.

    Returns:
        Outputs as `stack_with_views` has them, `(sample, ..., class)`; lengths likewise.

    Example:
        >>> merge_heads.__name__
        'merge_heads'
    """
    task, choice = population.task, choice_for(population, chosen.choose, combiner)
    weights = chosen.weights[list(chosen.kept)]
    lengths = [heads.lengths for heads in said if heads.lengths is not None]
    outputs = as_classes(task, np.stack([heads.characters for heads in said]))
    return Heads(
        _as_outputs(task, merged(outputs, weights, choice, returns="log_prob")),
        _logs(merged(np.stack(lengths), _of_views(weights), choice, returns="log_prob"))
        if lengths
        else None,
    )


def choice_for(population: Population, choose: str, combiner: Combiner | None) -> ViewChoice:
    """Return how a population's views are chosen and merged: judged by the metric of its task.

    Args:
        population: of the run.
        choose: see `ViewChoice`.
        combiner: likewise.

    Raises:
        DataError: a task whose outputs of several views are not merged.

    Example:
        >>> choice_for.__name__
        'choice_for'
    """
    task, blank = population.task, population.index["blank"]
    refuse_task(task)
    loss = "rmse" if task == "regression" else "calibrated_nll"
    name, metric = next(iter(metrics_for(blank, task).items()))
    return ViewChoice(
        choose=choose,
        loss=loss,
        combiner=combiner,
        metric=None if name in ("rmse", "nll") else metric,  # the loss says as much
        higher_is_better=name not in LOWER_IS_BETTER,
        members=combiner is not None,  # the mean over members may be taken before that over views
    )


def refuse_task(task: str) -> None:
    """Refuse a task whose outputs of several views are not merged.

    Raises:
        DataError: means and variances.

    Example:
        >>> refuse_task("regression")
    """
    if task == "mean_variance":
        raise DataError(
            "views do not go with the task mean_variance: all views of an input have one noise, "
            "which a mixture of them would count again; leave tta out"
        )


def for_choice(store: ViewStore, views: Sequence[str], choice: ViewChoice) -> Array:
    """Return what members say of validation, as the guard takes it.

    Returns:
        `(view, sample, ..., class)` log-probabilities of the members' mean, or numbers; of a choice
        with `members` `(view, sample, member, ..., class)`.

    Example:
        >>> for_choice.__name__
        'for_choice'
    """
    members = store.population.for_fusions.members
    each = (
        [_characters(store, member, "val", views, place) for member in members]
        for place in range(len(views))
    )
    if choice.members:
        return np.stack([np.stack(said, 1) for said in each])
    task = "regression" if choice.of_numbers else "classification"
    means = np.stack([mean_said(task, meant(task, np.stack(said))) for said in each])
    return means if choice.of_numbers else np.log(np.maximum(means, _TINY))


def merged_member(
    store: ViewStore, views: Sequence[str], guarded: Guarded, member: Member, split: str
) -> Heads:
    """Return what a member's views merge to; of validation by choices that did not see the row.

    Args:
        store: that has what it says of each view.
        views: their names; of the first one the member's own predictions are.
        guarded: what the guard lets through.
        member: with the weights that are meant.
        split: "val" or "test".

    Example:
        >>> merged_member.__name__
        'merged_member'
    """
    held_out = split == "val"
    weights = guarded.row_weights if held_out else guarded.choice.weights_
    used = np.flatnonzero(np.atleast_2d(_of_views(weights, held_out)).any(0)).tolist()
    merge = merged_by_row if held_out else merged

    def together(read: Callable[..., Array], weights: Floats) -> Array:
        each = np.stack([read(store, member, split, views, place) for place in used])
        own = weights[:, used] if held_out else weights[used]
        return merge(each, own, guarded.choice, returns="log_prob")

    characters = _as_outputs(store.population.task, together(_characters, weights))
    if not member.has_lengths:
        return Heads(characters, None)
    return Heads(characters, _logs(together(_lengths, _of_views(weights, held_out))))


def as_classes(task: str, outputs: Array) -> Array:
    """Return outputs as the guard takes them: of labels that apply or not, two classes each.

    Example:
        >>> as_classes("multilabel", np.array([[1.5]])).tolist()
        [[[0.0, 1.5]]]
    """
    return np.stack([np.zeros_like(outputs), outputs], -1) if task == "multilabel" else outputs


def _characters(
    store: ViewStore, member: Member, split: str, views: Sequence[str], place: int
) -> Array:
    said = store.read(member, split, views[place]) if place else member.predictions(split)
    return as_classes(store.population.task, said)


def _lengths(
    store: ViewStore, member: Member, split: str, views: Sequence[str], place: int
) -> Array:
    return store.read_lengths(member, split, views[place]) if place else member.lengths(split)


def _of_views(weights: Floats, by_row: bool = False) -> Floats:
    """Return weights `([row,] view)`: those of classes are averaged."""
    return weights.mean(-1) if weights.ndim > 1 + by_row else weights


def _logs(answers: Array) -> NDArray[np.float32]:
    return np.maximum(answers, _LEAST).astype(np.float32)


def _as_outputs(task: str, answers: Array) -> NDArray[np.float32]:
    """Return merged answers as outputs of the task."""
    if task == "regression":
        return answers.astype(np.float32)
    logs = _logs(answers)
    return logs[..., 1] - logs[..., 0] if task == "multilabel" else logs

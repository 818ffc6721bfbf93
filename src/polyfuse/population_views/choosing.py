"""Choose the views of a population on validation, and keep the choice and what it merges to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable, records
from polyfuse.errors import DataError
from polyfuse.inference import Heads
from polyfuse.members import write_arrays
from polyfuse.metrics import metrics_for
from polyfuse.population import Population
from polyfuse.population_views.base import SCHEMA, Chosen, chosen_views
from polyfuse.population_views.merging import choice_for, for_choice, merged_member
from polyfuse.population_views.store import ViewStore
from polyfuse.tta.guard import Guarded, guard_views

SPLITS = ("val", "test")
Array = NDArray[Any]


def choose_views(
    population: Population,
    views: Sequence[str],
    *,
    average: str | None = None,
    choose: str = "greedy",
    combiner: Callable[..., Any] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Chosen:
    """Choose views on validation; keep the choice, and what each member's kept views merge to.

    Views are judged by the mean of what all members say. A row of validation is merged by a choice
    that did not see it.

    Args:
        population: the store has what those that were trained here say of each view.
        views: names; the first one is the input as it is, the others are in the store.
        average: whose weights the members have; their own where None.
        choose: see `ViewChoice`.
        combiner: merges views, outputs of the task to answers; the plain mean where None.
        folds: of cross-fitting.
        seed: deals rows into folds.

    Returns:
        What `chosen_views` returns from now on.

    Raises:
        DataError: no labels, a task whose outputs are not merged; predictions of views that are
            missing, stale or foreign.

    Example:
        >>> choose_views.__name__
        'choose_views'
    """
    own = population.trained_here if average is None else population.averaged(average)
    labels = own.labels("val")
    if labels is None:
        raise DataError("the labels of val are unknown, so no view can be chosen on it")
    store, choice = ViewStore(own), choice_for(own, choose, combiner)
    guarded = guard_views(
        for_choice(store, views, choice),
        labels,
        choice,
        folds=folds,
        groups=own.groups("val"),
        seed=seed,
    )
    facts = {"average": average, "views": list(views), "folds": folds, "seed": seed}
    _write(store, guarded, facts)
    chosen = chosen_views(population)
    assert chosen is not None  # it was written just now
    return chosen


def _write(store: ViewStore, guarded: Guarded, facts: Mapping[str, Any]) -> None:
    """Keep a choice and what it merges to, in place of another one."""
    population, views = store.population, facts["views"]
    heads = {
        split: [
            merged_member(store, views, guarded, member, split) for member in population.members
        ]
        for split in SPLITS
    }
    folder = population.path / "views" / "chosen"
    durable.make_folder(folder.parent)
    with durable.new_folder(folder) as fresh:
        outputs = {split: np.stack([h.characters for h in said]) for split, said in heads.items()}
        write_arrays(fresh / "outputs", outputs)
        if any(h.lengths is not None for h in heads["val"]):
            lengths = {split: _stacked(said) for split, said in heads.items()}
            write_arrays(fresh / "lengths", lengths)
        record = {**facts, **_facts(population, guarded, views), "files": records.digests(fresh)}
        durable.write_json(fresh / "chosen.json", record)
        durable.remove_folder(folder)


def _facts(population: Population, guarded: Guarded, views: Sequence[str]) -> dict[str, Any]:
    """Return what the record says of a choice."""
    choice = guarded.choice
    figures = {name: getattr(guarded, name)._asdict() for name in ("before", "after", "outside")}
    metric = next(iter(metrics_for(population.index["blank"], population.task)))
    return {
        "schema": SCHEMA,
        "members": [member.index for member in population.members],
        "choose": choice.choose,
        "kept": list(choice.kept_),
        "weights": choice.weights_.tolist(),
        "figures": {**figures, "refused": guarded.refused},
        "report": guarded.report(views, metric=metric),
        "inputs": Population.open(population.path).trained_here.fingerprint(),
    }


def _stacked(said: Sequence[Heads]) -> NDArray[np.float32]:
    """Return what length heads say, a member each; NaN of those without."""
    known = [heads.lengths for heads in said if heads.lengths is not None]
    silent = np.full_like(known[0], np.nan)
    return np.stack([silent if heads.lengths is None else heads.lengths for heads in said])

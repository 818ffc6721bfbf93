"""Test-time augmentation in a recipe: its views, what members say of them, and the guard."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from polyfuse.combine import CLASS_COMBINERS
from polyfuse.data.base import Rows, Split, Splits, task_of
from polyfuse.determinism import seeded, threads
from polyfuse.errors import DataError, PolyfuseError, RecipeError, RunError, printable
from polyfuse.inference import PREDICT_BATCH, Heads, predict_heads
from polyfuse.members import Member
from polyfuse.population import Population
from polyfuse.population_views import (
    ViewStore,
    choose_views,
    chosen_views,
    merge_heads,
    refuse_task,
)
from polyfuse.recipes.components import Kind, Strict, Trusted, limits, resolve, validated
from polyfuse.recipes.source import Path_, Source, unknown
from polyfuse.tasks import FUSIONS, fusion_for
from polyfuse.tta import VIEWS, Identity, View, as_views
from polyfuse.tta.choosing import CHOICES, LEARNED

_PATH: Path_ = ("tta",)
_VOTES = ("soft_vote", "hard_vote", "rank_mean")  # what they give is no distribution to go on with
MERGES = {n: f for n, f in FUSIONS.items() if n in {*CLASS_COMBINERS, "mean_value"} - {*_VOTES}}
VIEW_KINDS = {"tta.views": Kind(VIEWS, 0), "tta.merge": Kind(MERGES, 1)}
Make = Callable[[], nn.Module]


class _Tta(Strict):
    views: list[Any]
    average: str | None = None
    merge: Any = None
    choose: str = "greedy"
    folds: Annotated[int, limits(ge=2)] = 5


class Views(NamedTuple):
    """What a recipe says of test-time augmentation.

    Attributes:
        views: to be tried; the first is the input as it is.
        average: whose weights the members have; their own where None.
        merge: merges views; the plain mean of the task where None.
        choose: see `polyfuse.tta.choosing.ViewChoice`.
        folds: of cross-fitting.
    """

    views: tuple[View, ...]
    average: str | None = None
    merge: Callable[..., Any] | None = None
    choose: str = "greedy"
    folds: int = 5

    @property
    def names(self) -> list[str]:
        """The names of the views."""
        return [view.name for view in self.views]

    def combiner(self, task: str) -> Callable[..., Any] | None:
        """Return what merges the views of a task; labels that apply or not are two classes each.

        Raises:
            DataError: it does not fit the task.
        """
        if self.merge is None:
            return None
        of = "classification" if task == "multilabel" else task
        return fusion_for(of, "tta.merge", self.merge)


def listed_views(source: Source, trusted: Trusted) -> Views | None:
    """Return what a recipe says of test-time augmentation; faults go to the source.

    Args:
        source: the recipe.
        trusted: which code of its may be imported.

    Example:
        >>> from polyfuse.recipes.source import parse
        >>> source = parse("tta: {views: [{name: shifts, down: 0}]}", "mine.yaml")
        >>> listed_views(source, False).names
        ['identity', 'shift-across=-1', 'shift-across=1']
    """
    given = source.tree.get("tta")
    if given is None:
        return None
    outline = validated(_Tta, given, _PATH, source)
    spec: Mapping[str, Any] = given if isinstance(given, dict) else {}
    average, choose, merge = spec.get("average"), spec.get("choose", "greedy"), spec.get("merge")
    averages = list(source.tree.get("averaging") or ())
    if isinstance(average, str) and average not in averages:
        none = "the recipe tracks none; add averaging: {ema: {decay: 0.999}}"
        source.blame((*_PATH, "average"), unknown(average, averages) if averages else none)
    if isinstance(choose, str) and choose not in CHOICES:
        source.blame((*_PATH, "choose"), unknown(choose, CHOICES))
    if merge is not None and choose in LEARNED:
        fact = f"choose: {choose} learns the weights of the plain mean"
        source.blame((*_PATH, "merge"), f"{fact}; leave merge out, or take choose: greedy")
    combiner = None
    if merge is not None:
        combiner = resolve(source, (*_PATH, "merge"), merge, VIEW_KINDS["tta.merge"], trusted)
    views = _views(source, spec.get("views"), trusted)
    if outline is None or not views:
        return None
    return Views(tuple(views), average, combiner, choose, outline.folds)


def _views(source: Source, specs: Any, trusted: Trusted) -> list[View]:
    """Build the views that are listed; the input as it is comes first, listed or not."""
    if not isinstance(specs, list):
        return []  # the outline tells
    path: Path_ = (*_PATH, "views")
    if not specs:
        source.blame(path, "is empty; name one: " + ", ".join(VIEWS))
    found: list[View] = []
    for i, spec in enumerate(specs):
        found += [view for view in _built(source, (*path, i), spec, trusted) if not _plain(view)]
    try:
        return as_views([Identity(), *found])
    except DataError as error:
        source.blame(path, str(error))
        return []


def _plain(view: Any) -> bool:
    return isinstance(view, Identity)


def _built(source: Source, path: Path_, spec: Any, trusted: Trusted) -> list[View]:
    """Build what one entry of the list names: a view, or a list of them."""
    function = spec.get("function") if isinstance(spec, dict) else None
    own = ("function",) if isinstance(function, str) and ":" in function else ()
    make = resolve(source, path, spec, Kind(VIEWS, 0, code=own), trusted)
    if make is None:
        return []
    try:
        return as_views([make()])
    except Exception as error:  # a user's function may raise anything
        odd = "" if isinstance(error, PolyfuseError) else f"{type(error).__name__}: "
        source.blame(path, f"cannot be made: {odd}{printable(error)}")
        return []


def refuse_unfit_views(
    asked: Views | None, factories: Sequence[Make], splits: Splits, *, seed: int
) -> None:
    """Refuse views that do not fit the data or a model, before anything is trained.

    Raises:
        RecipeError: no labels to choose on, a task or a combiner that does not fit, inputs that are
            no images, views of a size that a model does not take; all at once.

    Example:
        >>> refuse_unfit_views(None, [], None, seed=0)
    """
    if asked is None:
        return
    task, faults = task_of(splits.train), _val_faults(asked, splits.val)
    for check in (refuse_task, asked.combiner):
        try:
            check(task)
        except DataError as error:
            faults += [str(error)]
    inputs = splits.val.inputs(np.arange(min(2, len(splits.val))))
    for number, factory in enumerate(factories):
        with seeded(seed):
            model = factory()
        which = f"model {number}: " if len(factories) > 1 else ""
        faults += [f"views: {which}{fault}" for fault in _misfits(asked.views, model, inputs)]
    if faults:
        raise RecipeError("\n".join(f"tta: {fault}" for fault in dict.fromkeys(faults)))


def _val_faults(asked: Views, val: Split) -> list[str]:
    """Say why views cannot be chosen on a validation split."""
    if val.labels is None:
        return ["the validation split has no labels to choose views on"]
    units, count = "rows", len(val)
    if val.groups is not None:
        units, count = "groups", len(np.unique(val.groups))
    if asked.choose != "all" and count < asked.folds:
        return [f"folds: {asked.folds} are more than the validation split's {count} {units}"]
    return []


def _misfits(views: Sequence[View], model: nn.Module, inputs: Tensor) -> list[str]:
    """Say which views a model does not take, or answers in another shape."""
    wanted, faults = predict_heads(model, _Given(inputs)).characters.shape, []
    for view in views:
        try:
            shape = predict_heads(model, _Given(view.apply(inputs))).characters.shape
        except Exception as error:  # a user's view or model may raise anything
            faults.append(f"{view.name} does not fit: {printable(error, 200)}")
            continue
        if shape != wanted:
            faults.append(f"{view.name} makes the model answer {shape}, not {wanted}")
    return faults


def make_views(
    population: Population,
    asked: Views | None,
    splits: Splits,
    factory_of: Callable[[Member], Make],
    *,
    seed: int,
    cpus: int,
    progress: Callable[[str, float, float, str], None],
) -> None:
    """Predict what is not kept yet, a view and split at a time, and choose among the views.

    The inputs of a view are made once for all members.

    Args:
        population: all its members are trained.
        asked: by the recipe; None makes nothing.
        splits: val and test are predicted.
        factory_of: makes a member's model.
        seed: deals rows into the folds of cross-fitting.
        cpus: threads of one model.
        progress: called with ("views", views done, all, name).

    Raises:
        DataError: predictions of views that are stale or foreign.
        DiskError: the file system refused.

    Example:
        >>> make_views.__name__
        'make_views'
    """
    if asked is None or has_views(population, asked):
        return
    own = population.trained_here if asked.average is None else population.averaged(asked.average)
    store = ViewStore(own)
    for done, view in enumerate(asked.views, 1):
        for split in ("val", "test") if done > 1 else ():
            lacking = [m for m in own.members if not store.has(m, split, view.name)]
            if not lacking:
                continue
            models = [member.model(factory_of(member)) for member in lacking]
            with threads(cpus):
                heads = _predicted(models, [view], getattr(splits, split))
            for member, (said,) in zip(lacking, heads, strict=True):
                store.write(member, split, view.name, said)
        progress("views", done, len(asked.views), view.name)
    choose_views(
        population,
        asked.names,
        average=asked.average,
        choose=asked.choose,
        combiner=asked.combiner(population.task),
        folds=asked.folds,
        seed=seed,
    )


def has_views(population: Population, asked: Views | None) -> bool:
    """Tell whether a choice among these views is kept, of the members of now.

    Example:
        >>> has_views(None, None)
        True
    """
    if asked is None:
        return True
    try:
        chosen = chosen_views(population)
    except RunError:  # damaged: made again, from the predictions that are kept
        return False
    return chosen is not None and (chosen.average, chosen.choose, list(chosen.views)) == (
        asked.average,
        asked.choose,
        asked.names,
    )


def predict_row(
    row: Mapping[str, Any],
    population: Population,
    asked: Views | None,
    models: Sequence[nn.Module],
    split: Split,
) -> list[Heads]:
    """Return what the models of a row of the scoreboard say of new inputs.

    An input is made once for all models and views.

    Args:
        row: its models' views are merged where it has `views`.
        population: of the run.
        asked: what its recipe says of views.
        models: of the row.
        split: the new inputs.

    Raises:
        RunError: the run has other views than the recipe.

    Example:
        >>> predict_row({"name": "mean_probability"}, None, None, [], None)
        []
    """
    if "views" not in row:
        return [said[0] for said in _predicted(models, [Identity()], split)]
    chosen = chosen_views(population)
    known = {view.name: view for view in asked.views} if asked else {}
    if asked is None or chosen is None or not set(chosen.names) <= known.keys():
        raise RunError(
            f"'{printable(row['name'])}' needs the views that were chosen for the members of now, "
            "and this run has none, or not those that its recipe names; run the recipe again"
        )
    combiner = asked.combiner(population.task)
    views = [known[name] for name in chosen.names]
    return [
        merge_heads(population, chosen, said, combiner) for said in _predicted(models, views, split)
    ]


def _predicted(
    models: Sequence[nn.Module], views: Sequence[View], split: Split
) -> list[list[Heads]]:
    """Return what each model says of each view of a split; each input is made once."""
    if not models:
        return []
    said: list[list[list[Heads]]] = [[[] for _ in views] for _ in models]
    for part in np.array_split(np.arange(len(split)), max(1, -(-len(split) // PREDICT_BATCH))):
        inputs = split.inputs(part)
        for place, view in enumerate(views):
            seen = _Given(view.apply(inputs))
            for own, model in zip(said, models, strict=True):
                own[place].append(predict_heads(model, seen))
    return [[_joined(parts) for parts in own] for own in said]


def _joined(parts: Sequence[Heads]) -> Heads:
    lengths = [part.lengths for part in parts if part.lengths is not None]
    characters = np.concatenate([part.characters for part in parts])
    return Heads(characters, np.concatenate(lengths) if lengths else None)


class _Given:
    """Inputs that are made already, as a split without labels."""

    labels = groups = blank = None
    names: Sequence[str] = ()

    def __init__(self, inputs: Tensor) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def inputs(self, rows: Rows) -> Tensor:
        return self._inputs[rows]

    def fingerprint(self) -> str:
        return ""

"""Fusions that a recipe has fitted once its members are trained: stacking, blending, selection."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyfuse.combining import METHODS
from polyfuse.combining.methods import chosen_methods
from polyfuse.compare import FUSIONS
from polyfuse.data.base import Splits, task_of
from polyfuse.errors import PolyfuseError, RecipeError, printable
from polyfuse.fitted_fusions import ON, kind_of
from polyfuse.population import Population
from polyfuse.population_fits import called, fit_population, wish_for
from polyfuse.recipes.source import Source, unknown
from polyfuse.training.base import Job, Strategy

_OWN = ("name", "on", "folds")


class Fit(NamedTuple):
    """One fusion that is to be fitted.

    Attributes:
        method: a name in `METHODS`.
        on: "val", or "train" out of fold.
        folds: of cross-fitting.
        options: of the method.
    """

    method: str
    on: str = "val"
    folds: int = 5
    options: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        """The name of the fusion."""
        return called(self.method, self.on)


def listed_fits(source: Source) -> tuple[Fit, ...]:
    """Return the fits that a recipe lists; faults go to the source.

    Example:
        >>> from polyfuse.recipes.source import parse
        >>> text = "combine: [caruana, {name: stack, on: train}]"
        >>> [fit.name for fit in listed_fits(parse(text, "mine.yaml"))]
        ['caruana', 'stack, out of fold']
    """
    specs = source.tree.get("combine", [])
    found: dict[str, Fit] = {}
    for i, spec in enumerate(specs if isinstance(specs, list) else []):  # else the outline tells
        fit = _fit(source, i, {"name": spec} if isinstance(spec, str) else spec)
        if fit is None:
            continue
        if fit.name in found:
            source.blame(("combine", i), f"'{fit.name}' is given twice; keep one")
        elif fit.name in FUSIONS:
            fact = f"'{fit.name}' is a fusion that is not fitted"
            source.blame(("combine", i), f"{fact}; list it under fusions")
        found[fit.name] = fit
    return tuple(found.values())


def _fit(source: Source, i: int, spec: Any) -> Fit | None:
    path = ("combine", i)
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        source.blame(path, f"expected a name, or a mapping with one; got {printable(spec)}")
        return None
    name, on, folds = spec["name"], spec.get("on", "val"), spec.get("folds", 5)
    if name not in METHODS:
        source.blame((*path, "name"), unknown(name, list(METHODS)))
        return None
    if on not in ON:
        source.blame((*path, "on"), unknown(str(on), ON))
    if type(folds) is not int or folds < 2:
        source.blame((*path, "folds"), f"must be a whole number, 2 or more; got {printable(folds)}")
    options = {key: value for key, value in spec.items() if key not in _OWN}
    for key in options.keys() - set(METHODS[name].options):
        source.blame(
            (*path, key), unknown(key, list(dict.fromkeys([*_OWN[1:], *METHODS[name].options])))
        )
    return Fit(name, on, folds, options)


def refuse_unfit(fits: Sequence[Fit], strategy: Strategy, splits: Splits) -> None:
    """Refuse fits that the members to be trained could not be given to, before they are trained.

    Raises:
        RecipeError: methods that do not fit the task, or no two voices to combine; all at once.

    Example:
        >>> refuse_unfit.__name__
        'refuse_unfit'
    """
    faults = _method_faults(fits, strategy, splits)
    faults += _voice_faults([fit.name for fit in fits if fit.on == "train"], strategy)
    single = [fit.name for fit in fits if fit.on == "val"] if strategy.size([]) < 2 else []
    if single:
        faults.append(f"{', '.join(single)}: one member is nothing to combine; train more")
    if faults:
        raise RecipeError("\n".join(f"combine: {fault}" for fault in faults))


def _method_faults(fits: Sequence[Fit], strategy: Strategy, splits: Splits) -> list[str]:
    """Say which methods do not fit the task, or cannot be made with these options."""
    labels, blank, faults = splits.val.labels, splits.val.blank, []
    if labels is None:
        return ["the validation split has no labels"] if fits else []
    kind = kind_of(task_of(splits.train), labels)
    for fit in fits:
        try:
            (method,) = chosen_methods(fit.method, kind, decided=False).values()
            costs = np.ones(strategy.size([]))
            wish = wish_for(kind, blank=blank, costs=costs, priced=True, folds=fit.folds, seed=0)
            method.make(wish, **fit.options)
        except Exception as error:  # an option of another type may raise anything
            faults += [f"{fit.name}: {line}" for line in printable(error).split("\n")]
    return faults


def _voice_faults(names: Sequence[str], strategy: Strategy) -> list[str]:
    """Say why nothing can be fitted out of fold; what later rounds hold out is not known yet."""
    jobs = strategy.jobs([])
    if not names:
        return []
    voices = {_voice(job) for job in jobs if len(job.held_out)}
    if len(voices) > 1:
        return []
    what = "no row is held out" if not voices else "the folds of one model are one voice"
    return [
        f"{', '.join(names)}: {what}, and a fit on train needs out-of-fold predictions of two "
        "models; list several models and name training: {name: heterogeneous, folds: 5}, or fit "
        "on val"
    ]


def _voice(job: Job) -> object:
    """Tell which base model a job's members belong to, as `Population.base_models` does."""
    return job.factory if job.facts.keys() & {"folds", "bag"} else (job.index,)


def make_fits(
    population: Population,
    fits: Sequence[Fit],
    *,
    seed: int,
    progress: Callable[[str, float, float, str], None],
) -> list[str]:
    """Fit what is not kept of these members yet.

    Args:
        population: all its members are trained.
        fits: what is to be fitted.
        seed: of whatever draws.
        progress: called with ("fits", fits done, all, name).

    Returns:
        What could not be fitted, and why, a sentence each: it costs the run nothing else.

    Example:
        >>> make_fits(Population.open("."), [], seed=0, progress=print)
        []
    """
    notes = []
    for done, fit in enumerate(fits, 1):
        if not population.fits.get(fit.name):
            options = {f"{fit.method}.{key}": value for key, value in fit.options.items()}
            try:
                fit_population(
                    population, fit.method, on=fit.on, options=options, folds=fit.folds, seed=seed
                )
            except PolyfuseError as error:
                told = "; ".join(str(error).split("\n"))
                notes.append(f"Not fitted: {fit.name}, because {told}")
        progress("fits", done, len(fits), fit.name)
    return notes


def has_fits(population: Population, fits: Sequence[Fit]) -> bool:
    """Tell whether all are kept, of the members of now.

    Example:
        >>> has_fits.__name__
        'has_fits'
    """
    kept = population.fits
    return all(kept.get(fit.name, False) for fit in fits)

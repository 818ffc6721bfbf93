"""Fit combinations on a population's held-out rows, and compare them with all its other fusions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polyfuse import durable
from polyfuse.combining.making import Progress
from polyfuse.compare import compare_fusions
from polyfuse.population import Population
from polyfuse.population_fits import fit_population, refuse_elsewhere
from polyfuse.recipes.folder import Run, plan_of
from polyfuse.recipes.refresh import refresh
from polyfuse.scoreboard import Scoreboard, read_scoreboard


class Fitted(NamedTuple):
    """What was fitted, and how it compares.

    Attributes:
        names: of the fusions that are kept now.
        members: by name, the indices of the members that have a say.
        notes: what could not be made.
        scoreboard: of all members and fusions.
    """

    names: tuple[str, ...]
    members: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    scoreboard: Scoreboard


def combine_population(
    run: Run | Population | str | Path,
    method: str | Sequence[str] = "caruana",
    *,
    on: str = "val",
    options: Mapping[str, Any] | None = None,
    calibrate: bool = False,
    folds: int = 5,
    seed: int = 0,
    recipe: str | Path | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit combinations on rows that no member trained on; keep them as fusions of the run.

    Each is kept in `fusions/NAME/`: what was fitted, and what it says of val and test. Its score on
    validation is of fits that did not see the row: cross-fitted where it is fitted on validation.

    Args:
        run: a RUN folder.
        method: a name in `polyfuse.combining.METHODS`, several, or "all" that fit the task.
        on: "val", where every member speaks for each row; or "train", where the out-of-fold
            predictions of base models do: the folds of one model are one voice.
        options: of methods: `{"caruana.rounds": 50}`, or `{"rounds": 50}` for all that take it.
        calibrate: make each method calibrated by a temperature, too.
        folds: of cross-fitting.
        seed: of whatever draws.
        recipe: the run's recipe, needed only where it names the user's own code.
        progress: called with (name, done, total, note).

    Raises:
        DataError: unknown methods or options, rows that a member trained on, fewer than two voices,
            names that are taken.
        RecipeError: the recipe names code, and `recipe` was not given.
        RunError: no RUN folder, or the run has not come so far as to be compared.

    Example:
        >>> combine_population("/no/such/run")
        Traceback (most recent call last):
        polyfuse.errors.RunError: there is no RUN folder '/no/such/run'; make one: polyfuse demo
    """
    root = Path(run) if isinstance(run, str | Path) else run.path
    Population.open(root)
    refuse_elsewhere(on)
    with durable.locked(root):
        durable.remove_leftovers(root)
        population = Population.open(root)
        _refuse_unready(root, recipe)
        fits = fit_population(
            population,
            method,
            on=on,
            options=options,
            calibrate=calibrate,
            folds=folds,
            seed=seed,
            progress=progress,
        )
        board = _compared(root, recipe)
    return Fitted(tuple(fits.members), fits.members, fits.notes, board)


def _has_recipe(root: Path) -> bool:
    return (root / "run.json").is_file()


def _refuse_unready(root: Path, recipe: str | Path | None) -> None:
    """Refuse what could not be compared afterwards, before any time is spent."""
    if _has_recipe(root):
        plan_of(Run(root), recipe)
        read_scoreboard(root)


def _compared(root: Path, recipe: str | Path | None) -> Scoreboard:
    if _has_recipe(root):
        return refresh(Run(root), recipe=recipe)
    return compare_fusions(Population.open(root))

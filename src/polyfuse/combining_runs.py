"""Fit combinations on a population's held-out rows, and compare them with all its other fusions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polyfuse import durable
from polyfuse.combining.base import Given, metric_of
from polyfuse.combining.making import Progress, method_rows
from polyfuse.combining.methods import Method, Wish, chosen_methods, options_of
from polyfuse.compare import compare_fusions
from polyfuse.errors import DataError, printable
from polyfuse.fitted_fusions import ON, given_of, keep
from polyfuse.metrics import LOWER_IS_BETTER, metrics_for
from polyfuse.population import FITTED, Population
from polyfuse.recipes.folder import Run, plan_of
from polyfuse.recipes.refresh import refresh
from polyfuse.scoreboard import Scoreboard, read_scoreboard

OUT_OF_FOLD = "out of fold"  # is appended to the name of what was fitted on train


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
    if on not in ON:
        raise DataError(
            f"on='{printable(on)}' is none of {', '.join(ON)}"
            + ("; nothing is ever fitted on test" if on == "test" else "")
        )
    with durable.locked(root):
        durable.remove_leftovers(root)
        population = Population.open(root)
        _refuse_unready(root, recipe)
        given = given_of(population, on)
        methods = _methods(population, method, given.kind, on)
        rows, failed = method_rows(
            given,
            methods,
            options_of(options or {}, methods),
            _wish(given, folds, seed),
            lenient="all" in ([method] if isinstance(method, str) else method),
            calibrate={} if calibrate else None,
            progress=progress,
        )
        told = {"folds": folds, "seed": seed, "options": _plain(options or {})}
        kept = {
            _called(row.name, on): keep(
                population, _called(row.name, on), on, row, {"method": row.name, **told}
            )
            for row in rows
        }
        board = _compared(root, recipe)
    return Fitted(tuple(kept), kept, tuple(failed), board)


def _has_recipe(root: Path) -> bool:
    return (root / "run.json").is_file()


def _refuse_unready(root: Path, recipe: str | Path | None) -> None:
    """Refuse what could not be compared afterwards, before any time is spent."""
    if _has_recipe(root):
        plan_of(Run(root), recipe)
        read_scoreboard(root)


def _called(method: str, on: str) -> str:
    """Return the name of a fusion."""
    return method if on == "val" else f"{method}, {OUT_OF_FOLD}"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON has them; objects by what they call themselves."""
    kinds = (bool, int, float, str, list, type(None))
    return {k: v if isinstance(v, kinds) else repr(v) for k, v in options.items()}


def _compared(root: Path, recipe: str | Path | None) -> Scoreboard:
    if _has_recipe(root):
        return refresh(Run(root), recipe=recipe)
    return compare_fusions(Population.open(root))


def _wish(given: Given, folds: int, seed: int) -> Wish:
    """Return what a combination is made for: the metric by which the run chooses."""
    name = next(iter(metrics_for(given.blank, given.kind)))
    return Wish(
        kind=given.kind,
        metric=metric_of(name, given.kind, blank=given.blank, levels=()),
        metric_name=name,
        lower_is_better=name in LOWER_IS_BETTER,
        costs=given.costs,
        seed=seed,
        folds=folds,
        blank=given.blank,
        priced=given.priced,
    )


def _methods(
    population: Population, asked: str | Sequence[str], kind: str, on: str
) -> dict[str, Method]:
    """Return methods by name; "all" without those that are fusions of the run already.

    Raises:
        DataError: unknown ones, and names that are taken.
    """
    found = chosen_methods(asked, kind, decided=False)
    taken = {name: why for name in found if (why := _taken(population, _called(name, on)))}
    if "all" in ([asked] if isinstance(asked, str) else asked):
        return {name: method for name, method in found.items() if name not in taken}
    if taken:
        raise DataError("\n".join(taken.values()))
    return found


def _taken(population: Population, name: str) -> str:
    """Say what else has a name; "" where nothing has."""
    if name in [member.name for member in population.members]:
        return f"there is a member '{name}'; a fusion cannot be called so"
    there = (population.path / "fusions" / name).is_dir()
    if there and population.fusion(name).get("kind") != FITTED:
        return f"'{name}' is a fusion of this run already; polyfuse report shows it"
    return ""

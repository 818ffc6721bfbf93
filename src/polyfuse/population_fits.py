"""Fit combinations on rows that no member trained on, and keep them as a population's fusions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polyfuse.combining.base import metric_of
from polyfuse.combining.making import Progress, method_rows
from polyfuse.combining.methods import Method, Wish, chosen_methods, options_of
from polyfuse.errors import DataError, printable
from polyfuse.fitted_fusions import ON, given_of, keep
from polyfuse.fitting import Floats
from polyfuse.metrics import LOWER_IS_BETTER, metrics_for
from polyfuse.population import FITTED, Population

OUT_OF_FOLD = "out of fold"  # is appended to the name of what was fitted on train


class Fits(NamedTuple):
    """What was fitted.

    Attributes:
        members: by the name of each fusion that is kept now, the indices of those with a say.
        notes: what could not be made.
    """

    members: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]


def fit_population(
    population: Population,
    method: str | Sequence[str],
    *,
    on: str = "val",
    options: Mapping[str, Any] | None = None,
    calibrate: bool = False,
    folds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fits:
    """Fit combinations and keep each in `fusions/NAME/`.

    Args:
        population: whose members are combined.
        method: a name in `polyfuse.combining.METHODS`, several, or "all" that fit the task.
        on: "val", or "train" out of fold.
        options: of methods: `{"caruana.rounds": 50}`, or `{"rounds": 50}` for all that take it.
        calibrate: make each method calibrated by a temperature, too.
        folds: of cross-fitting.
        seed: of whatever draws.
        progress: called with (name, done, total, note).

    Raises:
        DataError: unknown methods or options, rows that a member trained on, fewer than two voices,
            names that are taken.

    Example:
        >>> fit_population(Population.open("."), "caruana", on="test")
        Traceback (most recent call last):
        polyfuse.errors.DataError: on='test' is none of val, train; nothing is ever fitted on test
    """
    refuse_elsewhere(on)
    given = given_of(population, on)
    methods = _methods(population, method, given.kind, on)
    wish = wish_for(
        given.kind,
        blank=given.blank,
        costs=given.costs,
        priced=given.priced,
        folds=folds,
        seed=seed,
    )
    rows, failed = method_rows(
        given,
        methods,
        options_of(options or {}, methods),
        wish,
        lenient="all" in ([method] if isinstance(method, str) else method),
        calibrate={} if calibrate else None,
        progress=progress,
    )
    told = {"folds": folds, "seed": seed, "options": _plain(options or {})}
    kept = {
        called(row.name, on): keep(
            population, called(row.name, on), on, row, {"method": row.name, **told}
        )
        for row in rows
    }
    return Fits(kept, tuple(failed))


def refuse_elsewhere(on: str) -> None:
    """Refuse to fit on anything but validation or train.

    Raises:
        DataError: it is neither.

    Example:
        >>> refuse_elsewhere("val")
    """
    if on not in ON:
        raise DataError(
            f"on='{printable(on)}' is none of {', '.join(ON)}"
            + ("; nothing is ever fitted on test" if on == "test" else "")
        )


def called(method: str, on: str) -> str:
    """Return the name of the fusion that a method makes.

    Example:
        >>> called("stack", "val"), called("stack", "train")
        ('stack', 'stack, out of fold')
    """
    return method if on == "val" else f"{method}, {OUT_OF_FOLD}"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON has them; objects by what they call themselves."""
    kinds = (bool, int, float, str, list, type(None))
    return {k: v if isinstance(v, kinds) else repr(v) for k, v in options.items()}


def wish_for(
    kind: str, *, blank: int | None, costs: Floats, priced: bool, folds: int, seed: int
) -> Wish:
    """Return what a combination is made for: the metric by which a run chooses.

    Args:
        kind: of the task, see `polyfuse.fitted_fusions.kind_of`.
        blank: the class that means "no character", or None.
        costs: `(member,)`.
        priced: whether these were given.
        folds: of cross-fitting.
        seed: of whatever draws.

    Example:
        >>> import numpy as np
        >>> wish = {"blank": None, "costs": np.ones(2), "priced": False, "folds": 5, "seed": 0}
        >>> wish_for("multiclass", **wish).metric_name
        'accuracy'
    """
    name = next(iter(metrics_for(blank, kind)))
    return Wish(
        kind=kind,
        metric=metric_of(name, kind, blank=blank, levels=()),
        metric_name=name,
        lower_is_better=name in LOWER_IS_BETTER,
        costs=costs,
        seed=seed,
        folds=folds,
        blank=blank,
        priced=priced,
    )


def _methods(
    population: Population, asked: str | Sequence[str], kind: str, on: str
) -> dict[str, Method]:
    """Return methods by name; "all" without those that are fusions of the run already.

    Raises:
        DataError: unknown ones, and names that are taken.
    """
    found = chosen_methods(asked, kind, decided=False)
    taken = {name: why for name in found if (why := _taken(population, called(name, on)))}
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

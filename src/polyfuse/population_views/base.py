"""The choice of views that a RUN folder keeps, and the members' outputs with them merged."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable, predictions, records
from polyfuse.errors import RunError, printable
from polyfuse.fitting import Floats
from polyfuse.population import Population
from polyfuse.tta.choosing import CHOICES

SCHEMA = 1
TTA = "tta"


class Chosen(NamedTuple):
    """The views that the guard chose for a population.

    Attributes:
        average: whose weights the members have; their own where None.
        views: names of all that were tried; the first is the input as it is.
        kept: places in `views` of those that are kept; `(0,)` where none helps.
        weights: `(view,)` or `(view, class)`; 0 where a view is left out.
        choose: how they were chosen, see `ViewChoice`.
        report: what was kept and what was not, with figures, a sentence each.
    """

    average: str | None
    views: tuple[str, ...]
    kept: tuple[int, ...]
    weights: Floats
    choose: str
    report: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the views that are kept."""
        return tuple(self.views[place] for place in self.kept)


def chosen_views(population: Population) -> Chosen | None:
    """Return the views that were chosen for the members of now; None where none were.

    Raises:
        RunError: the record is damaged.

    Example:
        >>> from pathlib import Path
        >>> chosen_views(Population(Path("/no/such/run"), ())) is None
        True
    """
    if not (population.path / "views" / "chosen").is_dir():
        return None
    record = read_record(population)
    if record["inputs"] != _now(population):
        return None
    return Chosen(
        record["average"],
        tuple(record["views"]),
        tuple(record["kept"]),
        np.asarray(record["weights"], np.float64),
        record["choose"],
        tuple(record["report"]),
    )


def with_views(name: str) -> str:
    """Return what a row of the scoreboard is called whose members' views are merged.

    Example:
        >>> with_views("mean_probability, ema")
        'mean_probability, ema, tta'
    """
    return f"{name}, {TTA}"


def views_kept(population: Population) -> tuple[str, ...]:
    """Return the names of the views that are kept, the input as it is among them.

    Returns:
        Nothing where no view helps, or none were chosen for the members of now.

    Example:
        >>> from pathlib import Path
        >>> views_kept(Population(Path("/no/such/run"), ()))
        ()
    """
    chosen = chosen_views(population)
    return () if chosen is None or chosen.kept == (0,) else chosen.names


def stack_with_views(population: Population, split: str) -> NDArray[np.float32]:
    """Return the members' outputs of val or test, each member's kept views merged.

    Where no view is kept (`views_kept` tells), they are those of the members as they are.

    Args:
        population: with the weights that views were chosen for: `population.averaged("ema")`.
        split: "val", each row by a choice that did not see it, or "test".

    Returns:
        `(member, sample, ..., class)` log-probabilities; of labels that do not exclude each other
        logits, of a regression numbers.

    Raises:
        RunError: no views were chosen for these members with these weights; or what is kept is
            damaged.

    Example:
        >>> stack_with_views.__name__
        'stack_with_views'
    """
    found = _kept(population, "outputs", split)
    assert found is not None  # a record has outputs
    return found


def lengths_with_views(population: Population, split: str) -> NDArray[np.float32] | None:
    """Return what the members' length heads say of val or test, each member's kept views merged.

    Args:
        population: as for `stack_with_views`.
        split: "val" or "test".

    Returns:
        `(member, sample, positions + 1)` log-probabilities of the lengths 0 to positions, NaN of a
        member without a length head; None where none has one.

    Raises:
        RunError: as `stack_with_views`.

    Example:
        >>> lengths_with_views.__name__
        'lengths_with_views'
    """
    return _kept(population, "lengths", split)


def _kept(population: Population, what: str, split: str) -> NDArray[np.float32] | None:
    """Return what was merged of these members; None where it is not kept."""
    record, folder = read_record(population), population.path / "views" / "chosen"
    _refuse_others(population, record)
    name, files = f"{what}/{split}.npy", record["files"]
    if name not in files:
        return None
    places = [record["members"].index(member.index) for member in population.members]
    array = predictions.parse(*records.checked(folder, name, files))
    wanted = (len(record["members"]), population.rows(split))
    if array.shape[:2] != wanted:
        raise RunError(
            f"'{printable(folder / name)}' is of shape {array.shape}, and there are {wanted[0]} "
            f"members and {wanted[1]} rows; delete '{printable(folder)}' and run the recipe again"
        )
    return np.asarray(array[places], np.float32)


def _refuse_others(population: Population, record: Mapping[str, Any]) -> None:
    """Refuse members, or weights of theirs, that the views were not chosen for."""
    asked = [(member.index, member.average) for member in population.members]
    known = [(index, record["average"]) for index in record["members"]]
    if asked and set(asked) <= set(known) and record["inputs"] == _now(population):
        return
    of = f"'{record['average']}'" if record["average"] else "their own"
    raise RunError(
        f"the views of '{printable(population.path)}' were chosen for members "
        f"{printable(record['members'])} with {of} weights, not for those that are asked for; "
        "ask for them, population.averaged(NAME) or population.trained_here, or run the recipe "
        "again where members have come or gone"
    )


def _now(population: Population) -> str:
    """Return the fingerprint of all members that were trained here; those given may be a part."""
    return Population.open(population.path).trained_here.fingerprint()


def read_record(population: Population) -> Mapping[str, Any]:
    """Read the record of a choice.

    Raises:
        RunError: there is none, or it is damaged.

    Example:
        >>> from pathlib import Path
        >>> read_record(Population(Path("RUN"), ()))
        Traceback (most recent call last):
        polyfuse.errors.RunError: 'RUN/views/chosen' holds no choice of views, or a damaged one; ...
    """
    folder = population.path / "views" / "chosen"
    record: Any = durable.read_json(folder / "chosen.json") if folder.is_dir() else None
    if not _is_record(record):
        raise RunError(
            f"'{printable(folder)}' holds no choice of views, or a damaged one; delete the folder "
            "and run the recipe again (what members said of the views is kept)"
        )
    return dict(record)


def _is_record(record: Any) -> bool:
    """Tell whether a document from a file is a choice of views."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return False
    views: Any = record.get("views")
    kept: Any = record.get("kept")
    lists = _are(views, str) and _are(kept, int) and _are(record.get("members"), int)
    return (
        lists
        and _are(record.get("report"), str)
        and all(0 <= place < len(views) for place in kept)
        and isinstance(record.get("average"), str | None)
        and record.get("choose") in CHOICES
        and isinstance(record.get("inputs"), str)
        and _are_weights(record.get("weights"), len(views))
        and records.are_files(record.get("files"))
        and {"outputs/val.npy", "outputs/test.npy"} <= record["files"].keys()
    )


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and bool(values) and all(type(v) is kind for v in values)


def _are_weights(weights: Any, count: int) -> bool:
    try:
        array = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        return False
    return array.ndim in (1, 2) and len(array) == count and bool(np.isfinite(array).all())

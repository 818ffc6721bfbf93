"""What a member that was trained elsewhere says, in the rows and classes of a population."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.combining.layout import as_probabilities
from polyfuse.errors import DataError, PolyfuseError, printable
from polyfuse.members import Member
from polyfuse.population import Population
from polyfuse.predictions import Predictions, as_task, map_array, read_predictions
from polyfuse.predictions.joining import Rows, join
from polyfuse.tasks import CLASSES, meant, rules_of

NEEDED = ("val", "test")
TINY = float(np.finfo(np.float32).tiny)
_SAME = 1e-6  # probabilities that differ by less everywhere are those of one member
_SHOWN = 5
Logits = NDArray[np.float32]


class Said(NamedTuple):
    """What a member says of the splits.

    Attributes:
        logits: by split, `(row, ..., class)` float32, rows in the population's order.
        source: by split, file, space and SHA-256 of what was read.
        notes: what was done on the way, a sentence each.
    """

    logits: Mapping[str, Logits]
    source: Mapping[str, Any]
    notes: tuple[str, ...]


def said_by(
    population: Population, given: Mapping[str, Any], *, name: str, space: str | None = None
) -> Said:
    """Read a member's predictions of each split, and bring them to the population's rows.

    Rows are joined with the names of the split by ids, where a file has ids; else by position.

    Args:
        population: that it shall join.
        given: by split, a file, `Predictions`, or `(row, ..., class)` numbers.
        name: of the member.
        space: "prob", "logit" or "log_prob", where it is known; else told from the numbers.

    Raises:
        DataError: splits that lack or are none, rows or classes that do not fit, decided labels,
            NaN on val or test; of all files at once.

    Example:
        >>> said_by(Population(Path("RUN"), ()), {}, name="resnet")
        Traceback (most recent call last):
        polyfuse.errors.DataError: there are no predictions of val: --predictions val=FILE
        there are no predictions of test: --predictions test=FILE
    """
    faults = [
        f"there are no predictions of {split}: --predictions {split}=FILE"
        for split in NEEDED
        if split not in given
    ]
    faults += [
        f"'{printable(split)}' is no split; there are train, val and test"
        for split in given
        if split not in ("train", *NEEDED)
    ]
    found: dict[str, _Read] = {}
    for split in (split for split in ("train", *NEEDED) if split in given):
        try:
            found[split] = _read(population, split, given[split], name, space)
        except PolyfuseError as error:
            faults += str(error).split("\n")
    if faults:
        raise DataError("\n".join(faults))
    spaces = {str(read.source["space"]) for read in found.values()}
    if len(spaces) > 1:
        raise DataError(
            f"the splits are in different spaces: {', '.join(sorted(spaces))}; give all in one, or "
            "say which it is: --space prob"
        )
    notes = dict.fromkeys(note for read in found.values() for note in read.notes)
    return Said(
        {split: read.logits for split, read in found.items()},
        {split: read.source for split, read in found.items()},
        tuple(notes),
    )


def lengths_said_by(population: Population, given: Mapping[str, Any], *, name: str) -> Said:
    """Read what a member says of the lengths of strings, as `said_by` does of the characters.

    Args:
        population: of strings, that it shall join.
        given: of val and test, a file, `Predictions`, or `(row, positions + 1)` numbers.
        name: of the member.

    Raises:
        DataError: labels that are no strings; a split that lacks, rows or lengths that do not fit.

    Example:
        >>> lengths_said_by.__name__
        'lengths_said_by'
    """
    labels = population.labels("val")
    if population.index["blank"] is None or labels is None:
        raise DataError("lengths are of strings, and this run reads none; leave lengths out")
    shape, faults = (labels.shape[1] + 1,), []
    found: dict[str, _Read] = {}
    if given.keys() != set(NEEDED):
        faults = [f"lengths are of val and test, got {printable(', '.join(given))}"]
    for split in given.keys() & set(NEEDED):
        try:
            found[split] = _read(population, split, given[split], f"{name}, lengths", None, shape)
        except PolyfuseError as error:
            faults += [f"lengths: {line}" for line in str(error).split("\n")]
    if faults:
        raise DataError("\n".join(faults))
    return Said(
        {split: read.logits for split, read in found.items()},
        {f"lengths of {split}": read.source for split, read in found.items()},
        tuple(dict.fromkeys(note for read in found.values() for note in read.notes)),
    )


class _Read(NamedTuple):
    logits: Logits
    source: Mapping[str, Any]
    notes: Sequence[str]


def _read(
    population: Population,
    split: str,
    given: Any,
    name: str,
    space: str | None,
    shape: tuple[int, ...] | None = None,
) -> _Read:
    """Return logits in the population's order, and where they came from."""
    member = _predictions(given, f"{name}, {split}", space)
    shape = shape or _row_shape(population, split)
    shaped = _shaped(member, population.task, shape)
    if shaped.space == "label":
        raise DataError(
            f"'{printable(member.name)}' has decided labels; a member of a population says "
            "probabilities or logits: bring those, one column a class"
        )
    if shape is not None and shaped.array.shape[1:] != shape:
        same = "outputs" if rules_of(population.task).space == "value" else "classes"
        raise DataError(
            f"'{printable(member.name)}' has {shaped.array.shape[1:]} a row, but members of "
            f"'{printable(population.path)}' have {shape}; bring the same {same}"
        )
    shaped = _in_order(shaped)
    names = population.names(split)
    joined = join(
        [
            Rows(f"the split {split}", len(names), names if shaped.ids is not None else None),
            Rows(printable(member.name), len(shaped.array), shaped.ids),
        ]
    )
    if joined.faults:
        raise DataError("\n".join(joined.faults))
    taken = joined.taken[1]
    logits = _logits(shaped)
    logits = logits if taken is None else logits[taken]
    _refuse_silent(logits, split, member.name)
    source = {
        "file": Path(member.name).name,
        "space": shaped.space,
        "sha256": member.fingerprint,
    }
    return _Read(logits, source, [*shaped.notes, *joined.notes])


def _predictions(given: Any, name: str, space: str | None) -> Predictions:
    if isinstance(given, Predictions):
        return given if space is None else given.noted(space=space)
    if isinstance(given, str | Path):
        return read_predictions(given, space=space)
    return Predictions(name=name, array=np.asarray(given), space=space)


def _row_shape(population: Population, split: str) -> tuple[int, ...] | None:
    """Return the shape of what a member says of a row; None where there is no member yet."""
    if not population.members:
        return None
    return population.members[0].predictions(split).shape[1:]


def _shaped(member: Predictions, task: str, shape: tuple[int, ...] | None) -> Predictions:
    """Return a member in the shape that members of a population have."""
    if task == "regression":
        return _of_numbers(member, shape)
    return as_task(member, _task(member, shape) if task == CLASSES else task)


def _of_numbers(member: Predictions, shape: tuple[int, ...] | None) -> Predictions:
    """Return a member's numbers; one a row with an axis of its own, or without, as others have."""
    if member.space not in (None, "value"):
        raise DataError(
            f"'{printable(member.name)}' is said to be in the space {member.space}; of a "
            "regression there are plain numbers: leave --space out"
        )
    array = np.asarray(member.array, np.float64)
    if shape in ((), (1,)) and array.shape[1:] in ((), (1,)):
        array = array.reshape(-1, *shape)
    return member.noted(space="value", task="regression", array=array, classes=None)


def _task(member: Predictions, shape: tuple[int, ...] | None) -> str:
    """Return the kind of task that members of such a shape have."""
    if shape is not None and len(shape) > 1:
        return "multi_head"
    column = member.array.ndim == 1 or member.array.shape[1:] == (1,)
    return "binary" if column and shape in (None, (2,)) else "multiclass"


def _in_order(member: Predictions) -> Predictions:
    """Return columns that are named by the classes' numbers in their order."""
    classes = member.classes
    if classes is None:
        return member
    if sorted(classes) == sorted(map(str, range(len(classes)))):
        order = [classes.index(str(number)) for number in range(len(classes))]
        return member.noted(array=member.array[..., order], classes=None)
    named = ", ".join(map(printable, classes[:_SHOWN]))
    note = f"'{printable(member.name)}': its columns are classes 0, 1, ... in this order: {named}"
    return member.noted(note + (", ..." if len(classes) > _SHOWN else ""))


def _logits(member: Predictions) -> Logits:
    """Return logits and numbers as they came; of probabilities, once checked, their logits."""
    said = as_probabilities(member, str(member.task)).array
    if member.task == "mean_variance":
        logs = np.log(np.maximum(said[:, 1], TINY))
        return np.stack([said[:, 0], logs], -1).astype(np.float32)
    if member.space in ("logit", "value"):
        return np.asarray(member.array, np.float32)
    logs = np.log(np.maximum(said, TINY))
    if member.task == "multilabel":
        logs -= np.log(np.maximum(1 - said, TINY))
    return np.asarray(logs, np.float32)


def _refuse_silent(logits: Logits, split: str, name: str) -> None:
    silent = int(np.isnan(logits).reshape(len(logits), -1).any(1).sum())
    if silent and split != "train":
        raise DataError(
            f"'{printable(name)}' has NaN in {silent} rows of {split}; a member has a say on each"
        )


def learned_rows(population: Population, trained_on: Any) -> NDArray[np.int64] | None:
    """Return the training rows that a member learned from.

    Args:
        population: that it shall join.
        trained_on: None where it is unknown; "none"; a file, `.npy` of numbers or booleans, or text
            with one name or number a line; or these as an array or a list.

    Returns:
        Sorted row numbers; None where they are unknown.

    Raises:
        DataError: what is no training row; rows of validation or test among them.

    Example:
        >>> learned_rows(Population(Path("RUN"), ()), "none").tolist()
        []
    """
    if trained_on is None:
        return None
    if isinstance(trained_on, str) and trained_on == "none":
        return np.zeros(0, np.int64)
    listed = _listed(trained_on)
    count = population.rows("train")
    if isinstance(listed, np.ndarray):
        return _numbers(listed, count)
    return _named(population, listed)


def _listed(trained_on: Any) -> NDArray[Any] | list[str]:
    if isinstance(trained_on, str | Path):
        path = Path(trained_on).expanduser()
        if path.suffix == ".npy":
            return np.asarray(map_array(path))
        text = durable.read_bytes(path).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()]
    values = np.asarray(trained_on)
    return [str(name) for name in values.tolist()] if values.dtype.kind in "UO" else values


def _numbers(rows: NDArray[Any], count: int) -> NDArray[np.int64]:
    if rows.dtype == bool and rows.shape == (count,):
        return np.flatnonzero(rows).astype(np.int64)
    if rows.dtype.kind not in "iu" or rows.ndim != 1:
        raise DataError(
            f"trained_on must be row numbers (n,) or booleans ({count},), got {rows.dtype} of "
            f"shape {rows.shape}"
        )
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise DataError(
            f"trained_on has rows from {rows.min()} to {rows.max()}; the training split has "
            f"{count}, numbered from 0"
        )
    return np.unique(rows.astype(np.int64))


def _named(population: Population, listed: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows of these names; where none is a name, of these numbers."""
    place = {name: row for row, name in enumerate(population.names("train"))}
    strange = [name for name in listed if name not in place]
    if len(strange) == len(listed) and all(map(_is_number, listed)):
        return _numbers(np.array([int(name) for name in listed], np.int64), len(place))
    if strange:
        raise DataError("\n".join(_strange(population, strange)))
    return np.unique(np.array([place[name] for name in listed], np.int64))


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) < 19


def _strange(population: Population, strange: Sequence[str]) -> list[str]:
    faults, left = [], strange
    for split in NEEDED:
        names = set(population.names(split))
        if own := [name for name in left if name in names]:
            faults.append(
                f"it trained on {len(own)} rows of {split}, such as '{printable(own[0])}', where "
                "members are compared: its score there would be a lie; train it without them, or "
                "leave it out"
            )
        left = [name for name in left if name not in names]
    if left:
        shown = ", ".join(f"'{printable(name, 40)}'" for name in left[:_SHOWN])
        faults.append(f"{len(left)} of the rows it trained on are in no split: {shown}")
    return faults


def there_already(population: Population, name: str, said: Mapping[str, Logits]) -> Member | None:
    """Return the member of this name if it says the same; refuse what would count twice.

    Args:
        population: the members.
        name: of the one that shall join them.
        said: its logits by split; they may have come in another space before.

    Returns:
        The member that the same command has added before, killed perhaps before it was done; None
        where there is none of that name.

    Raises:
        DataError: the name is another member's, or another member says the same.

    Example:
        >>> there_already(Population(Path("RUN"), ()), "resnet", {})
    """
    for member in population.members:
        same = all(_same(population.task, member, split, said[split]) for split in NEEDED)
        if member.name == name:
            if same:
                return member
            raise DataError(f"there is a member '{name}' already; call this one otherwise")
        if same:
            raise DataError(
                f"'{printable(member.name)}' says the same of every row of val and test; a member "
                "that is there twice would count twice: leave it out"
            )
    return None


def _same(task: str, member: Member, split: str, logits: Logits) -> bool:
    other = member.predictions(split)
    if other.shape != logits.shape:
        return False
    ours, theirs = meant(task, logits), meant(task, other)
    numbers = rules_of(task).space == "value"
    spread = float(np.ptp(theirs)) if numbers else 1.0  # numbers have any scale
    return bool(np.allclose(ours, theirs, rtol=0, atol=_SAME * spread))

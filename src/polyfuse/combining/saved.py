"""A combination that was saved, read without trust, and used on new predictions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable, records
from polyfuse.combining.base import KINDS, outward
from polyfuse.combining.documents import fitted_from
from polyfuse.combining.fits import say
from polyfuse.combining.layout import as_probabilities, laid_out
from polyfuse.combining.naming import matched
from polyfuse.combining.reading import Faults, Inputs, members_of
from polyfuse.combining.submissions import submission
from polyfuse.errors import DataError, PolyfuseError, RunError, printable
from polyfuse.predictions import Predictions, align, as_task

Array = NDArray[Any]
RECORD = "combination.json"
SCHEMA = 1
_LIMIT = 1 << 30  # bytes: dynamic selection keeps the rows that it was fitted on


def is_combination(folder: str | Path) -> bool:
    """Tell whether a folder is one that `polyfuse combine` has written.

    Example:
        >>> is_combination("/no/such/folder")
        False
    """
    return (Path(folder) / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a combination.

    Raises:
        RunError: missing, damaged, or of something else.

    Example:
        >>> read_record(Path("/no/such"))
        Traceback (most recent call last):
        polyfuse.errors.RunError: cannot read '/no/such/combination.json': No such file ...
    """
    path = folder / RECORD
    raw = durable.read_bytes(path, limit=_LIMIT)
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"'{printable(path)}' is not JSON ({printable(error)}); combine again"
        ) from None
    fault = _fault(record)
    if fault:
        raise RunError(
            f"'{printable(path)}' is no combination of schema {SCHEMA} ({fault}); combine again"
        )
    return dict(record)


def _fault(record: Any) -> str:
    """Say what a record lacks; "" where it has all that is read of it."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return "no such schema"
    kinds: dict[str, Callable[[Any], bool]] = {
        "task": lambda v: v in KINDS,
        "use": lambda v: isinstance(v, str),
        "decided": lambda v: isinstance(v, bool),
        "blank": lambda v: v is None or type(v) is int,
        "classes": lambda v: v is None or _are_texts(v),
        "columns": lambda v: _are_texts(v) and 1 <= len(v) <= 2,
        "levels": lambda v: isinstance(v, list) and all(isinstance(x, int | float) for x in v),
        "shape": lambda v: isinstance(v, list) and all(type(x) is int and x > 0 for x in v),
        "members": lambda v: isinstance(v, list) and len(v) > 1 and all(map(_is_member, v)),
        "files": records.are_files,
        "fitted": lambda v: isinstance(v, dict),
        "labels": lambda v: isinstance(v, str),
    }
    return ", ".join(key for key, holds in kinds.items() if not holds(record.get(key)))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_member(facts: Any) -> bool:
    texts = ("name", "fingerprint", "space")
    return (
        isinstance(facts, dict)
        and all(isinstance(facts.get(key), str) for key in texts)
        and isinstance(facts.get("used"), bool)
    )


class Answers(NamedTuple):
    """What a saved combination says of new rows.

    Attributes:
        predictions: `(row, ...)` probabilities, numbers, or classes of a vote.
        ids: of the rows, or None.
        notes: what a reader must know.
        table: all as CSV, under the names that came in.
    """

    predictions: Array
    ids: Sequence[str] | None
    notes: tuple[str, ...]
    table: str


class SavedCombination:
    """A combination in a folder, to be used on new predictions of its members.

    Args:
        folder: that `polyfuse combine` or `Combination.save` has written.

    Attributes:
        record: what `combination.json` holds.
        members: names of the members.
        needed: of those the ones that have a say.

    Raises:
        RunError: it is none, or it is damaged.

    Example:
        >>> SavedCombination("/no/such")
        Traceback (most recent call last):
        polyfuse.errors.RunError: cannot read '/no/such/combination.json': No such file ...
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the record, and what was fitted."""
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        try:
            self.fitted = fitted_from(self.record["fitted"])
        except PolyfuseError as error:
            shown = printable(self.folder / RECORD)
            raise RunError(f"'{shown}': {error}; combine again") from None
        self.members = [str(facts["name"]) for facts in self.record["members"]]
        self.needed = [str(facts["name"]) for facts in self.record["members"] if facts["used"]]

    def predict(self, predictions: Inputs, *, space: str | None = None) -> Answers:
        """Combine new predictions of the same members.

        Members are matched by their names, or by their order where no name fits. Those that have
        no say may be missing.

        Args:
            predictions: as for `combine_predictions`.
            space: of the numbers, where it is another than it was.

        Raises:
            DataError: missing members, other classes, what are no probabilities; all at once.
        """
        faults = Faults()
        read = members_of(predictions, faults=faults, space=space)
        faults.raise_any()
        names = [member.name for member in read]
        place, notes = matched(self.members, names, "predictions", self.needed)
        there = {name: replace(read[i], name=name) for name, i in place.items()}
        shaped = [faults.of(partial(self._shaped, member, space)) for member in there.values()]
        faults.raise_any()
        known = [member for member in shaped if member is not None]
        aligned, _ = align(known)
        faults.of(lambda: self._check(aligned))
        faults.raise_any()
        count = self.record["shape"][-1] if KINDS[self.record["task"]].classes else 0
        said = {m.name: laid_out(m, self.record["task"], count) for m in aligned}
        # Members without a say are in no sum; what stands in their place is never read.
        filler = next(iter(said.values()))
        stack = np.stack([said.get(name, filler) for name in self.members])
        if np.isnan(stack).any():
            raise DataError("predictions have NaN; every member must have a say on every row")
        answer = self._out(say(self.fitted, stack))
        found = dict.fromkeys([*notes, *(note for member in aligned for note in member.notes)])
        return Answers(answer, aligned[0].ids, tuple(found), self._table(answer, aligned[0].ids))

    def _shaped(self, member: Predictions, space: str | None) -> Predictions:
        """Return one member as probabilities, in the space that it came in before."""
        kind, levels = self.record["task"], self.record["levels"] or None
        was = next(f["space"] for f in self.record["members"] if f["name"] == member.name)
        known = member.space or space or (was if KINDS[kind].classes else None)
        shaped = as_task(replace(member, space=known), kind, levels=levels)
        return as_probabilities(self._named(shaped), kind)

    def _named(self, member: Predictions) -> Predictions:
        """Refuse other classes; bring columns, or names of decided classes, into our order."""
        ours, theirs = self.record["classes"], member.classes
        decided = member.space == "label"
        if decided != self.record["decided"]:
            what = ("decided classes", "probabilities")
            raise DataError(
                f"'{printable(member.name)}' has {what[not decided]}, and the combination was made "
                f"of {what[decided]}"
            )
        if ours is None or theirs is None:
            return member
        strange = [name for name in theirs if name not in ours]
        missing = [name for name in ours if name not in theirs and not decided]
        if strange or missing:
            raise DataError(
                f"'{printable(member.name)}' has other classes: {printable(', '.join(theirs))}; "
                f"the combination was made of {printable(', '.join(ours))}"
            )
        if decided:
            places = np.array([ours.index(name) for name in theirs])
            return replace(member, array=places[member.array], classes=list(ours))
        order = [list(theirs).index(name) for name in ours]
        return replace(member, array=member.array[..., order], classes=list(ours))

    def _check(self, members: Sequence[Predictions]) -> None:
        """Refuse predictions of another shape a row."""
        if self.record["decided"]:
            return
        kind, shape = KINDS[self.record["task"]], tuple(self.record["shape"])
        own = members[0].array.shape[1:]
        expected = shape[:-1] if self.record["task"] == "multilabel" and kind.pairs else shape
        if own != expected:
            raise DataError(
                f"the predictions have {own} numbers a row, and the combination was made of "
                f"{expected}; bring the same classes"
            )

    def _out(self, prediction: Array) -> Array:
        if self.record["decided"] and prediction.dtype.kind == "f":
            return np.asarray(prediction.argmax(-1))
        return outward(self.record["task"], prediction)

    def _table(self, prediction: Array, ids: Sequence[str] | None) -> str:
        record = self.record
        named = {key: record[key] for key in ("columns", "classes", "levels", "blank")}
        return submission(prediction, record["task"], ids=ids, **named)

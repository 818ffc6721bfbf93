"""What combinations are made of, checked as a whole: all faults at once, each with what to type."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.combining.base import KINDS, Given, Rows
from polyfuse.combining.layout import as_probabilities, laid_out
from polyfuse.combining.naming import matched
from polyfuse.combining.reading import (
    Faults,
    Inputs,
    costs_of,
    groups_of,
    labels_of,
    members_of,
    trained_of,
)
from polyfuse.errors import DataError, printable
from polyfuse.leaks import refuse_shared, refuse_trained
from polyfuse.parameters import one_of
from polyfuse.predictions import LabelColumn, Predictions, align, as_task

Array = NDArray[Any]
_MOST = 10_000  # classes that members may decide for, one column each


class Handed(NamedTuple):
    """One split, its members in the shape of the task and in the same order of rows."""

    members: list[Predictions]
    labels: LabelColumn | None

    @property
    def first(self) -> Predictions:
        """The first member."""
        return self.members[0]

    def rows(self, kind: str, classes: int, groups: Any, what: str) -> Rows:
        """Return what combinations work on."""
        said = np.stack([laid_out(member, kind, classes) for member in self.members])
        labels = None if self.labels is None else self.labels.values
        grouped = groups_of(groups, self.first.ids, said.shape[1], what)
        return Rows(said, labels, self.first.ids, grouped)


def given_of(
    predictions: Inputs,
    labels: Any,
    *,
    test: Inputs | None = None,
    test_labels: Any = None,
    groups: Any = None,
    test_groups: Any = None,
    costs: Any = None,
    trained: Any = None,
    task: str | None = None,
    space: str | None = None,
    classes: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    blank: int | None = None,
    uncovered: str = "error",
    rows: str = "error",
) -> Given:
    """Check what was handed in, and lay it out as combinations need it.

    Args and faults: see `combine_predictions`.
    """
    faults = Faults()
    faults.of(lambda: one_of("uncovered", uncovered, ["error", "leave_out"]))
    if task is not None:
        faults.of(lambda: one_of("task", task, list(KINDS)))
    read = partial(members_of, faults=faults, space=space)
    members, tested = read(predictions), [] if test is None else read(test)
    truth = faults.of(lambda: labels_of(labels, "labels"))
    test_truth = None
    if test_labels is not None:
        test_truth = faults.of(lambda: labels_of(test_labels, "test labels"))
    faults.raise_any()
    assert truth is not None
    _refuse_few([member.name for member in members], test, test_labels)
    kind = task or _task(members[0], truth, levels)
    shape = partial(_shaped, kind=kind, levels=levels, classes=classes, faults=faults)
    prints = tuple(member.fingerprint for member in members)
    members, tested = shape(members), shape(tested)
    faults.raise_any()
    names = [member.name for member in members]
    val = faults.of(lambda: Handed(*align(members, truth, rows=rows)))
    held, notes = _test(names, tested, test_truth, rows, faults)
    if val and held:
        faults.of(lambda: _refuse_same(val, held))
    faults.raise_any()
    assert val is not None
    count, called = _classes(val, held)
    given = Given(
        kind=kind,
        names=tuple(names),
        fingerprints=prints,
        spaces=tuple(str(member.facts["space"]) for member in members),
        val=val.rows(kind, count, groups, "groups"),
        test=held.rows(kind, count, test_groups, "test groups") if held else None,
        classes=called,
        decided=val.first.space == "label",
        costs=costs_of(costs, names),
        priced=costs is not None,
        blank=blank,
        levels=tuple(val.first.levels or ()),
        columns=_columns(val.first),
        notes=tuple(dict.fromkeys([*notes, *_notes(val, held)])),
    )
    return _covered(given, trained, uncovered)


def _refuse_few(names: Sequence[str], test: Any, test_labels: Any) -> None:
    faults = [
        f"two members are called '{printable(name)}'; bring each file once, or name them: "
        "{'a': ..., 'b': ...}"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if len(names) < 2:
        faults.append(
            f"{len(names)} member is nothing to combine; bring the predictions of two or more"
        )
    if test is None and test_labels is not None:
        faults.append("there are test labels and no test predictions: --test FILE, one a member")
    if faults:
        raise DataError("\n".join(faults))


def _task(member: Predictions, labels: LabelColumn, levels: Any) -> str:
    """Tell the task from one member's shape, and from the labels."""
    if member.task or levels is not None:
        return member.task or "quantiles"
    axes, columns, heads = member.array.ndim, member.array.shape[1:], labels.values.ndim > 1
    whole = labels.values.dtype.kind in "iub"
    yes_or_no = whole and set(np.unique(labels.values).tolist()) <= {0, 1}
    if axes == 3 or (member.space == "label" and heads and not yes_or_no):
        return "multi_head"
    if heads:
        return "multilabel"
    if member.space == "label" and whole:
        return "multiclass"
    if axes == 1 or columns == (1,):
        return "binary" if yes_or_no or labels.names else "regression"
    return "mean_variance" if not whole and columns == (2,) else "multiclass"


def _shaped(
    members: Sequence[Predictions],
    kind: str,
    levels: Sequence[float] | None,
    classes: Sequence[str] | None,
    faults: Faults,
) -> list[Predictions]:
    """Return members in the shape of the task, as probabilities where there are classes."""

    def shaped(member: Predictions) -> Predictions:
        named = as_task(member, kind, levels=levels)
        if classes is not None and named.space != "label":
            if len(classes) != named.array.shape[-1]:
                raise DataError(
                    f"'{printable(member.name)}' has {named.array.shape[-1]} columns, and "
                    f"{len(classes)} classes are named"
                )
            named = replace(named, classes=list(classes))
        return as_probabilities(named, kind)

    found = [faults.of(partial(shaped, member)) for member in members]
    known = [member for member in found if member is not None and member.array.dtype.kind == "f"]
    if not known or len(known) < len(members):
        return [member for member in found if member is not None]
    widest = np.result_type(*[member.array.dtype for member in known])
    return [replace(member, array=member.array.astype(widest, copy=False)) for member in known]


def _test(
    names: Sequence[str],
    tested: Sequence[Predictions],
    truth: LabelColumn | None,
    rows: str,
    faults: Faults,
) -> tuple[Handed | None, list[str]]:
    """Return the test split, its members in the order of validation's."""
    if not tested:
        return None, []
    place = faults.of(lambda: matched(names, [m.name for m in tested], "test predictions"))
    if place is None:
        return None, []
    mine = [replace(tested[place[0][name]], name=name) for name in names]
    return faults.of(lambda: Handed(*align(mine, truth, rows=rows))), place[1]


def _refuse_same(val: Handed, held: Handed) -> None:
    """Refuse rows that are in both splits, and members that changed their classes."""
    if val.first.ids is not None and held.first.ids is not None:
        refuse_shared(val.first.ids, held.first.ids)
    mine, theirs = val.first, held.first
    shapes = mine.array.shape[1:], theirs.array.shape[1:]
    if shapes[0] != shapes[1] or (
        mine.classes and theirs.classes and mine.classes != theirs.classes
    ):
        raise DataError(
            f"test predictions of {shapes[1]} a row do not fit those of validation, {shapes[0]}, "
            "or their columns are called otherwise; bring the same classes in the same order"
        )


def _classes(val: Handed, held: Handed | None) -> tuple[int, tuple[str, ...] | None]:
    """Return how many classes there are, and their names."""
    first, labels = val.first, val.labels
    assert labels is not None
    called = labels.names or first.classes
    if first.space != "label":
        return int(first.array.shape[-1]), tuple(map(str, called)) if called else None
    most = [labels.values.max(), *(member.array.max() for member in val.members)]
    most += [member.array.max() for member in held.members] if held else []
    count = max(len(called or ()), 1 + int(max(most)))
    if count > _MOST:
        raise DataError(
            f"decided classes go up to {count - 1}; if they are numbers, say so: --task regression"
        )
    return count, tuple(map(str, called)) if called else None


def _columns(first: Predictions) -> tuple[str, ...]:
    """Return the header that the answers get: of ids, and of one column where there is one."""
    own = first.facts.get("column")
    return (str(first.facts.get("id_column", "id")), *([str(own)] if own else []))


def _notes(val: Handed, held: Handed | None) -> list[str]:
    notes = [note for member in val.members for note in member.notes]
    notes += list(val.labels.notes) if val.labels else []
    if held is None:
        return notes
    notes += [note for member in held.members for note in member.notes]
    again = _seen_again(val, held)
    if again:
        count = len(held.first.array)
        notes.append(
            f"{again} of {count} test rows have the same predictions as rows of validation, by "
            "every member: are they the same rows? A score on them flatters"
        )
    return notes


def _seen_again(val: Handed, held: Handed) -> int:
    """Return how many rows every member repeats: rows of one split that are in the other."""
    if val.first.array.dtype.kind != "f":
        return 0  # few classes: decided rows repeat by themselves
    known = {row.tobytes(): place for place, row in enumerate(val.first.array)}
    again = 0
    for number, row in enumerate(held.first.array):
        place = known.get(row.tobytes())
        again += place is not None and all(
            np.array_equal(old.array[place], new.array[number])
            for old, new in zip(val.members, held.members, strict=True)
        )
    return again


def _covered(given: Given, trained: Any, uncovered: str) -> Given:
    """Refuse rows that a member trained on; leave out those that one has no say on, if asked to."""
    mask = trained_of(trained, given.val.said.shape[:2])
    refuse_trained(given.val.said, mask, "this combination")
    nan = np.isnan(given.val.said)
    gone = np.asarray(np.any(nan.reshape(*nan.shape[:2], -1), axis=-1))
    if given.test is not None and np.isnan(given.test.said).any():
        raise DataError("test predictions have NaN; every member must have a say on every row")
    if not gone.any():
        return replace(given, trained=mask)
    silent = [name for name, rows in zip(given.names, gone, strict=True) if rows.any()]
    rows = np.asarray(np.any(gone, axis=0))
    if uncovered == "error" or rows.all():
        raise DataError(
            f"{int(rows.sum())} of {len(rows)} rows are not covered by every member (NaN from "
            f"{printable(', '.join(silent))}); bring their predictions"
            + (", or leave these rows out: --uncovered leave_out" if not rows.all() else "")
        )
    kept, val = ~rows, given.val
    said = Rows(
        val.said[:, kept],
        None if val.labels is None else val.labels[kept],
        None
        if val.ids is None
        else [name for name, keep in zip(val.ids, kept, strict=True) if keep],
        None if val.groups is None else val.groups[kept],
    )
    note = f"{int(rows.sum())} of {len(rows)} rows are left out: some member has no say on them"
    mask = None if mask is None else mask[:, kept]
    return replace(given, val=said, trained=mask, notes=(*given.notes, note))

"""Members and labels brought to the same rows, classes and dtype; all mismatches at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.parameters import one_of
from polyfuse.predictions.base import LabelColumn, Predictions
from polyfuse.predictions.coding import code
from polyfuse.predictions.joining import Joined, Rows, join

_SAMPLED = 64  # rows that are compared before all are


def align(
    members: Sequence[Predictions], labels: LabelColumn | None = None, *, rows: str = "error"
) -> tuple[list[Predictions], LabelColumn | None]:
    """Bring members and labels to the same rows in the same order, the same classes and dtype.

    Rows are joined by ids where there are ids, in the order of the labels, or of the first member
    that has ids; otherwise by position. Columns are matched by name and put into the order of the
    first member. Narrower dtypes are widened to the widest, in memory. What was done is told in the
    members' `notes`; so are members that have the same predictions (`facts["same_as"]`).

    Args:
        members: one or more.
        labels: coded as the columns are; see `code`.
        rows: "error" where a file lacks rows of another one, or "shared" to keep those that all
            have.

    Returns:
        Members and labels; arrays that fitted as they were are not copied.

    Raises:
        DataError: rows, ids, classes, shapes, spaces, tasks or labels that do not fit, of all
            files at once.

    Example:
        >>> one = Predictions(name="a", array=np.eye(2), ids=["x", "y"], classes=["cat", "dog"])
        >>> two = Predictions(name="b", array=np.eye(2), ids=["y", "x"], classes=["dog", "cat"])
        >>> [member.array.tolist() for member in align([one, two])[0]]
        [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]
    """
    one_of("rows", rows, ["error", "shared"])
    if not members:
        raise DataError("there are no members to align; give one file of predictions or more")
    joined = join(_rows(members, labels), shared=rows == "shared")
    classes = _classes(members, labels)
    faults = [*joined.faults, *_class_faults(members, classes), *_shape_faults(members)]
    faults += [*_word_faults(members), *_kind_faults(members)]
    truth = labels
    if labels is not None:
        try:
            truth = _coded(labels, members, classes)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    taken = joined.taken if labels is None else joined.taken[1:]
    aligned = [
        _aligned(member, positions, joined.ids, classes)
        for member, positions in zip(members, taken, strict=True)
    ]
    aligned[0] = aligned[0].noted(*joined.notes)
    aligned = _same_noted(_widened(aligned))
    return aligned, None if truth is None else _labels(truth, joined)


def _rows(members: Sequence[Predictions], labels: LabelColumn | None) -> list[Rows]:
    files = [] if labels is None else [Rows(labels.name, len(labels.values), labels.ids)]
    return files + [Rows(printable(m.name), len(m.array), m.ids) for m in members]


def _labels(truth: LabelColumn, joined: Joined) -> LabelColumn:
    positions = joined.taken[0]
    values = truth.values if positions is None else truth.values[positions]
    return replace(truth, values=values, ids=joined.ids)


def _classes(members: Sequence[Predictions], labels: LabelColumn | None) -> list[str] | None:
    """Return the order of classes: that of the first member with names; of decisions, all names."""
    scored = [m.classes for m in members if m.classes is not None and m.space != "label"]
    if scored:
        return list(scored[0])
    decided = {name for m in members for name in m.classes or ()}
    if decided and labels is not None:
        decided |= set(labels.names or map(str, np.unique(labels.values).tolist()))
    return sorted(decided) or None


def _class_faults(members: Sequence[Predictions], classes: list[str] | None) -> list[str]:
    faults = []
    for member in members:
        if classes is None or member.classes is None or member.space == "label":
            continue
        lacks = [name for name in classes if name not in member.classes]
        more = [name for name in member.classes if name not in classes]
        if lacks or more:
            parts = [f"lacks {printable(', '.join(lacks))}"] if lacks else []
            parts += [f"has {printable(', '.join(more))}"] if more else []
            faults.append(
                f"'{printable(member.name)}' has other classes than the first file: it "
                f"{' and '.join(parts)}; give every file the same columns"
            )
    return faults


def _shape_faults(members: Sequence[Predictions]) -> list[str]:
    first = members[0]
    return [
        f"'{printable(member.name)}' has shape {member.array.shape}, but "
        f"'{printable(first.name)}' has {first.array.shape}; all need the same classes"
        for member in members[1:]
        if member.array.shape[1:] != first.array.shape[1:]
    ]


def _word_faults(members: Sequence[Predictions]) -> list[str]:
    """Tell where members differ in space, task or levels."""
    faults = []
    for word, fix in (
        ("space", "bring all into one: probabilities are torch.softmax(logits, -1)"),
        ("task", "give all of them the same task"),
        ("levels", "give all of them the same quantiles"),
    ):
        said: dict[Any, list[str]] = {}
        for member in members:
            if getattr(member, word) is not None:
                said.setdefault(getattr(member, word), []).append(f"'{printable(member.name)}'")
        if len(said) > 1:
            told = "; ".join(f"{value} in {', '.join(names)}" for value, names in said.items())
            faults.append(f"members differ in their {word}: {told}; {fix}")
    return faults


def _kind_faults(members: Sequence[Predictions]) -> list[str]:
    """Tell where some members decide labels and others have numbers."""
    decided = [m for m in members if m.space == "label"]
    unnamed = [f"'{printable(m.name)}'" for m in decided if m.classes is None]
    if 0 < len(unnamed) < len(decided):
        return [
            f"{', '.join(unnamed)} have labels as numbers, the others as texts; bring all as texts"
        ]
    decide = [f"'{printable(m.name)}'" for m in decided]
    others = [f"'{printable(m.name)}'" for m in members if m.space is None]
    if not decide or not others or all(m.array.dtype.kind in "iub" for m in members):
        return []
    return [
        f"{', '.join(decide)} have decided labels, {', '.join(others)} have numbers of "
        f"{members[-1].array.dtype}; bring probabilities of all, or labels of all"
    ]


def _coded(
    labels: LabelColumn, members: Sequence[Predictions], classes: list[str] | None
) -> LabelColumn:
    first = members[0]
    shape = first.array.shape
    if first.space == "label":
        return _of_decisions(labels, classes)
    if first.space == "value" or len(shape) < 2:
        _refuse_texts(labels)
        return labels
    if first.task == "multilabel":
        return _indicators(labels, shape)
    if labels.values.shape[1:] != shape[1:-1]:
        raise DataError(
            f"'{labels.name}' has labels of shape {labels.values.shape}, which do not fit "
            f"predictions of {shape}; bring one label a sample{' and head' * (len(shape) > 2)}"
        )
    return code(labels, shape[-1], classes)


def _of_decisions(labels: LabelColumn, classes: list[str] | None) -> LabelColumn:
    """Return labels in the numbers of the names that members decide for."""
    if classes is not None:
        return code(labels, len(classes), classes)
    if labels.names is not None:
        raise DataError(
            f"'{labels.name}' has texts, but the members have numbers for labels; bring both as "
            "texts or both as numbers"
        )
    return labels


def _refuse_texts(labels: LabelColumn) -> None:
    if labels.names is not None or labels.values.ndim > 1:
        what = "several columns" if labels.names is None else "texts"
        raise DataError(
            f"'{labels.name}' has {what}, but the members have numbers; bring one number a "
            'sample, or say that these are probabilities: task="binary"'
        )


def _indicators(labels: LabelColumn, shape: tuple[int, ...]) -> LabelColumn:
    values = labels.values
    if values.shape[1:] != shape[1:] or not np.isin(values, (0, 1)).all():
        raise DataError(
            f"'{labels.name}' has labels of shape {values.shape}; multilabel predictions of "
            f"{shape} need a 0 or 1 for each sample and column"
        )
    return labels


def _aligned(
    member: Predictions,
    positions: NDArray[np.int64] | None,
    ids: list[str] | None,
    classes: list[str] | None,
) -> Predictions:
    array = member.array if positions is None else member.array[positions]
    notes = []
    if classes is not None and member.classes is not None and list(member.classes) != classes:
        array = _in_order(array, member, classes)
        if member.space != "label":
            notes.append(f"'{printable(member.name)}': columns are put into the first file's order")
    return member.noted(*notes, array=array, ids=ids, classes=classes)


def _in_order(array: NDArray[Any], member: Predictions, classes: list[str]) -> NDArray[Any]:
    own = list(member.classes or ())
    if member.space == "label":
        numbers = np.array([classes.index(name) for name in own], np.int64)
        return np.asarray(numbers[array])
    return array[..., [own.index(name) for name in classes]]


def _widened(members: list[Predictions]) -> list[Predictions]:
    widest = np.result_type(*[member.array.dtype for member in members])
    return [
        member
        if member.array.dtype == widest
        else member.noted(
            f"'{printable(member.name)}': {member.array.dtype} is widened to {widest}",
            array=member.array.astype(widest),
        )
        for member in members
    ]


def _same_noted(members: list[Predictions]) -> list[Predictions]:
    """Note which members have the same predictions as one before them."""
    seen: dict[bytes, list[Predictions]] = {}
    found = []
    for member in members:
        step = max(1, len(member.array) // _SAMPLED)
        alike = seen.setdefault(np.ascontiguousarray(member.array[::step]).tobytes(), [])
        twin = next((m for m in alike if m.fingerprint == member.fingerprint), None)
        alike.append(member)
        if twin is None:
            found.append(member)
            continue
        note = f"'{printable(member.name)}' has the same predictions as '{printable(twin.name)}'"
        marked = member.noted(note)
        found.append(replace(marked, facts={**marked.facts, "same_as": twin.name}))
    return found

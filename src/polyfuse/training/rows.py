"""Which rows a member learns from, stops on and predicts: folds of every kind, checked first."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from polyfuse.classical import fold_rows, inner_slice
from polyfuse.data.base import Rows, Split
from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.training.base import Job, member_seeds

Kind = Literal["stratified", "plain", "grouped", "ordered"]
Pairs = list[tuple[Rows, Rows]]
_SHOWN = 5  # classes, or folds, that are written out


class Splitter(Protocol):
    """Anything that divides rows as scikit-learn's splitters do."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterable[tuple[Any, Any]]:
        """Yield (training rows, held-out rows) for each fold."""
        ...


def fold_jobs(
    split: Split,
    strategy: str,
    *,
    folds: int,
    kind: Kind | None = None,
    repeats: int = 1,
    stop_fraction: float = 0.1,
    splitter: Splitter | None = None,
    seed: int = 0,
    factories: int = 1,
    each: int = 1,
) -> tuple[Job, ...]:
    """Return a job for each fold of each model; every model has the same folds.

    Args:
        split: the training split.
        strategy: its name, for `member.json`.
        folds: how many; a splitter says itself.
        kind: of folds, see `pairs_of`.
        repeats: how often all rows are divided anew.
        stop_fraction: share of a member's training part that chooses its epoch; 0: none does.
        splitter: divides the rows instead.
        seed: decides folds and members' seeds.
        factories: functions of the task that make a model.
        each: members a fold and model.

    Raises:
        DataError: folds that cannot be trained on; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((6, 2)), np.zeros(6, int))
        >>> jobs = fold_jobs(data, "mine", folds=2, factories=2)
        >>> [(job.index, job.factory, job.facts["fold"]) for job in jobs]
        [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]
    """
    told = fraction_faults(stop_fraction)
    pairs = pairs_of(
        split, folds, kind=kind, repeats=repeats, splitter=splitter, seed=seed, told=told
    )
    folds = len(pairs) if splitter is not None else folds
    common: dict[str, Any] = {"strategy": strategy} | unusual(
        kind=kind, stop_fraction=stop_fraction
    )
    if splitter is not None:
        common["division"] = _digest(pairs)
    seeds = member_seeds(seed, factories * len(pairs) * each)
    a_round = len(pairs) // repeats
    jobs = []
    for index, own in enumerate(seeds):
        factory, place = divmod(index // each, len(pairs))
        part, held_out = pairs[place]
        learn, stop = stopping(part, stop_fraction, seed=own, groups=split.groups)
        repeat, fold = divmod(place, a_round)
        facts = common | {"fold": fold, "folds": folds} | unusual(repeat=repeat)
        jobs.append(Job(index, own, learn, stop, np.sort(held_out), facts, factory=factory))
    return tuple(jobs)


def unusual(
    *, kind: str | None = None, stop_fraction: float = 0.1, repeat: int = 0
) -> dict[str, Any]:
    """Return what `member.json` says of a plan only where it is not the default.

    Example:
        >>> unusual(kind=None, stop_fraction=0.2)
        {'stop_fraction': 0.2}
    """
    told = {"kind": (kind, None), "stop_fraction": (stop_fraction, 0.1), "repeat": (repeat, 0)}
    return {name: value for name, (value, default) in told.items() if value != default}


def stopping(
    rows: Rows, fraction: float, *, seed: int, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Divide a member's training rows into those it learns from and those that stop it.

    Args:
        rows: `(m,)`; a row that is there twice is learned from twice, and stops once.
        fraction: share of different rows (of groups, where there are any) that stop it; 0: none.
        seed: chooses them.
        groups: `(n,)` groups of all rows.

    Raises:
        DataError: too few rows, or a fraction that leaves none.

    Example:
        >>> learn, stop = stopping(np.array([0, 0, 1, 2, 3]), 0.25, seed=0)
        >>> learn.tolist(), stop.tolist()
        ([0, 0, 1, 2], [3])
    """
    rows = np.sort(rows.astype(np.int64))
    if fraction == 0:
        return rows, rows[:0]
    _, stop = inner_slice(np.unique(rows), fraction, seed=seed, groups=groups)
    return rows[~np.isin(rows, stop)], stop


def fraction_faults(stop_fraction: float) -> list[str]:
    """Say what is wrong with a share of rows that stop training; nothing where it is one.

    Example:
        >>> fraction_faults(0.1)
        []
    """
    if 0 <= stop_fraction < 1:
        return []
    return [f"stop_fraction={stop_fraction}; type a fraction below 1, or 0: the last epoch is kept"]


def classes_of(split: Split) -> NDArray[np.int64] | None:
    """Return one class a row; None where rows have several labels, numbers, or none.

    Example:
        >>> from polyfuse import Arrays
        >>> classes_of(Arrays(np.zeros((2, 1)), [[0, 1], [1, 0]])) is None
        True
    """
    labels = split.labels
    return labels if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" else None


def pairs_of(
    split: Split,
    folds: int,
    *,
    kind: Kind | None = None,
    repeats: int = 1,
    splitter: Splitter | None = None,
    seed: int = 0,
    told: Iterable[str] = (),
) -> Pairs:
    """Return (training rows, held-out rows) of every fold, repeat after repeat.

    Args:
        split: the training split.
        folds: 2 or more.
        kind: "grouped" never cuts a group; "stratified" balances classes, and cuts no group;
            "plain" looks at neither; "ordered" holds out each block from the rows before it. None:
            grouped where there are groups, else stratified where each class fills every fold.
        repeats: how often all rows are divided anew.
        splitter: divides the rows instead.
        seed: of the division.
        told: faults that were found before.

    Raises:
        DataError: all that is wrong with the request; then all that is wrong with the folds.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((4, 2)), [0, 0, 1, 1])
        >>> pairs = pairs_of(data, 2, kind="ordered", told=["a fault"])
        Traceback (most recent call last):
        polyfuse.errors.DataError: a fault
    """
    faults = [*told, *_request_faults(split, folds, kind, repeats, splitter)]
    pairs: Pairs = []
    try:
        if splitter is not None:
            pairs = _of_splitter(split, splitter)
        elif not faults or kind != "stratified":
            for repeat in range(max(1, repeats)):
                pairs += _one_round(split, folds, kind, seed, repeat)
    except DataError as error:
        faults.append(str(error))
    faults = faults or [*_leak_faults(split, pairs), *_class_faults(split, pairs, kind)]
    if faults:
        raise DataError("\n".join(faults))
    return pairs


def _one_round(
    split: Split, folds: int, kind: Kind | None, seed: int, repeat: int
) -> Iterator[tuple[Rows, Rows]]:
    """Divide all rows once; the first time as it is done where nothing is repeated."""
    balanced = kind == "stratified" or (kind is None and split.groups is None)
    if repeat:
        seed = int(np.random.SeedSequence([seed, 5, repeat]).generate_state(1)[0])
    return fold_rows(
        len(split),
        folds,
        seed=seed,
        classes=classes_of(split) if balanced else None,
        groups=split.groups,
        ordered=kind == "ordered",
        shuffled=repeat > 0 or kind == "stratified",
    )


def _request_faults(
    split: Split, folds: int, kind: str | None, repeats: int, splitter: Splitter | None
) -> list[str]:
    faults = []
    if kind is not None and kind not in get_args(Kind):
        near = did_you_mean(kind, get_args(Kind))
        faults.append(f"kind='{printable(kind)}'{near or ';'} known: {', '.join(get_args(Kind))}")
    if repeats < 1:
        faults.append(f"repeats={repeats}; type 1 or more")
    if repeats > 1 and kind == "ordered":
        faults.append(f"repeats={repeats}: time has one order; leave repeats out")
    if splitter is not None and (kind is not None or repeats != 1 or folds != 5):
        faults.append("a splitter says itself how rows are divided; leave folds, kind, repeats out")
    if kind == "stratified":
        faults += _balance_faults(split, folds)
    if kind == "grouped" and split.groups is None:
        faults.append("kind='grouped' needs groups, one a row; the training split has none")
    if kind == "plain" and split.groups is not None:
        faults.append("kind='plain' would cut groups of the training split; type kind='grouped'")
    return faults


def _balance_faults(split: Split, folds: int) -> list[str]:
    classes = classes_of(split)
    if classes is None:
        return ["kind='stratified' needs one class a row; type kind='plain' or 'grouped'"]
    values, counts = np.unique(classes, return_counts=True)
    rare = [f"class {c} has {n} rows" for c, n in zip(values, counts, strict=True) if n < folds]
    if not rare:
        return []
    return [
        f"kind='stratified' with folds={folds} leaves folds with an empty class: {_some(rare)}; "
        "bring more rows of it, merge it with another class, or type fewer folds"
    ]


def _of_splitter(split: Split, splitter: Any) -> Pairs:
    """Ask a splitter twice: a run that is resumed asks again, and must hear the same."""
    first, second = (_asked(split, splitter) for _ in range(2))
    if _digest(first) != _digest(second):
        raise DataError(
            f"the splitter {printable(repr(splitter), 80)} divides rows differently each time, so "
            "a run could not be resumed; give it a seed: random_state=0"
        )
    return first


def _asked(split: Split, splitter: Any) -> Pairs:
    named = printable(repr(splitter), 80)
    if not callable(getattr(splitter, "split", None)):
        raise DataError(f"the splitter {named} has no split(X, y, groups); bring scikit-learn's")
    try:
        asked = splitter.split(np.zeros((len(split), 1)), split.labels, split.groups)
        pairs = [(np.asarray(part), np.asarray(held)) for part, held in asked]
    except Exception as error:  # a user's splitter may raise anything
        raise DataError(f"the splitter {named} failed: {printable(error)}") from error
    if not pairs:
        raise DataError(f"the splitter {named} gives no folds")
    faults = [
        f"fold {number}: {name} must be row numbers from 0 to {len(split) - 1}, got "
        f"{rows.dtype} of shape {rows.shape}"
        + (f", {rows.min()} to {rows.max()}" if len(rows) else "")
        for number, pair in enumerate(pairs)
        for name, rows in zip(("training rows", "held-out rows"), pair, strict=True)
        if not _are_rows(rows, len(split))
    ]
    if faults:
        raise DataError("\n".join(faults))
    return [
        (np.unique(part.astype(np.int64)), np.unique(held.astype(np.int64))) for part, held in pairs
    ]


def _are_rows(rows: NDArray[Any], count: int) -> bool:
    fits = rows.dtype.kind in "iu" and rows.ndim == 1 and len(rows) > 0
    return bool(fits and rows.min() >= 0 and rows.max() < count)


def _leak_faults(split: Split, pairs: Pairs) -> list[str]:
    """Name the folds that would predict what they learned from, be it by a row's group."""
    faults = []
    for number, (part, held) in enumerate(pairs):
        shared = len(np.intersect1d(part, held))
        if shared:
            faults.append(f"fold {number}: {shared} rows are trained on and held out")
        elif split.groups is not None:
            cut = len(np.intersect1d(split.groups[part], split.groups[held]))
            if cut:
                faults.append(f"fold {number}: {cut} groups are trained on and held out")
    fix = "held-out rows must be new to the member; divide them otherwise"
    return [*faults[:_SHOWN], fix] if faults else []


def _class_faults(split: Split, pairs: Pairs, kind: str | None) -> list[str]:
    """Name the folds whose member would never see a class, or that lack one they promise."""
    classes = classes_of(split)
    if classes is None:
        return []
    every, faults = np.unique(classes), []
    for number, (part, held) in enumerate(pairs):
        unseen = np.setdiff1d(every, classes[part])
        absent = np.setdiff1d(every, classes[held]) if kind == "stratified" else unseen[:0]
        if len(unseen):
            faults.append(f"fold {number}: no training row of class {_some(unseen.tolist())}")
        elif len(absent):
            faults.append(f"fold {number}: no held-out row of class {_some(absent.tolist())}")
    fix = "bring more rows of it, merge it with another class, or type fewer folds"
    return [*faults[:_SHOWN], fix] if faults else []


def _some(values: list[Any]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more


def _digest(pairs: Pairs) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        for rows in pair:
            digest.update(f"{len(rows)} ".encode() + rows.astype(np.int64).tobytes())
    return digest.hexdigest()

"""Hold-out: members learn from one part of the rows and predict the other part out of fold."""

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.base import Rows, Split
from polyfuse.errors import DataError
from polyfuse.training.base import Job, Planned, member_seeds
from polyfuse.training.rows import classes_of, fraction_faults, stopping, unusual

_DRAWS = 64  # of whole groups, of which the one that is nearest to the shares wanted is taken


def holdout(
    split: Split,
    *,
    fraction: float = 0.2,
    members: int = 1,
    factories: int = 1,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan members that all hold out the same rows, as blending needs them.

    Groups are never cut; the held-out part has the shares of the classes, as far as groups let it.

    Args:
        split: the training split.
        fraction: share of the rows that is held out.
        members: how many of each model; they differ by their seeds.
        factories: how many functions make a model: `len(task.factories)`.
        stop_fraction: share of the training part that chooses a member's epoch; 0: none does, and
            the last epoch is kept.
        seed: decides rows and members' seeds.

    Raises:
        DataError: no members, a fraction that leaves nothing, or a training part without a row of
            some class; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> plan = holdout(Arrays(np.zeros((10, 2)), [0, 1] * 5), fraction=0.4)
        >>> [np.bincount(job.held_out % 2).tolist() for job in plan.jobs([])]
        [[2, 2]]
    """
    faults = fraction_faults(stop_fraction)
    given = {"members": members, "factories": factories}
    faults += [f"{name}={n}; type 1 or more" for name, n in given.items() if n < 1]
    if not 0 < fraction < 1:
        faults.append(f"fraction={fraction}; type a share of the rows between 0 and 1")
    if faults:
        raise DataError("\n".join(faults))
    held_out = _held_out(split, fraction, seed)
    part = np.setdiff1d(np.arange(len(split)), held_out)
    _refuse_empty(split, part, held_out, fraction)
    learn, stop = stopping(part, stop_fraction, seed=seed, groups=split.groups)
    facts = {"strategy": "holdout", "fraction": fraction, **unusual(stop_fraction=stop_fraction)}
    seeds = enumerate(member_seeds(seed, members * factories))
    return Planned(
        tuple(Job(i, s, learn, stop, held_out, facts, factory=i // members) for i, s in seeds)
    )


def _held_out(split: Split, fraction: float, seed: int) -> Rows:
    draw, classes = np.random.default_rng([seed, 6]), classes_of(split)
    strata = np.zeros(len(split), int) if classes is None else classes
    if split.groups is None:
        return _spread(strata, fraction, draw)
    return _nearest(strata, split.groups, fraction, draw)


def _spread(strata: NDArray[np.int64], fraction: float, draw: np.random.Generator) -> Rows:
    """Take a share of every class: rows in the order of their place within it, drawn at random."""
    order = draw.permutation(len(strata))
    place = np.empty(len(strata))
    for value in np.unique(strata):
        own = order[strata[order] == value]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    first = order[np.argsort(place[order], kind="stable")]
    return np.sort(first[: round(fraction * len(strata))])


def _nearest(
    strata: NDArray[np.int64], groups: Rows, fraction: float, draw: np.random.Generator
) -> Rows:
    """Draw whole groups many times; take the draw whose classes are nearest to their shares."""
    names, places = np.unique(groups, return_inverse=True)
    _, kinds = np.unique(strata, return_inverse=True)
    counts = np.zeros((len(names), kinds.max() + 1))
    np.add.at(counts, (places, kinds), 1)
    wanted, chosen, least = fraction * counts.sum(0), names[:0], np.inf
    for _ in range(_DRAWS):
        order = draw.permutation(len(names))
        missed = np.abs(counts[order].cumsum(0) - wanted).sum(1)[: max(1, len(names) - 1)]
        if missed.min() < least:
            least, chosen = missed.min(), order[: 1 + missed.argmin()]
    return np.flatnonzero(np.isin(places, chosen))


def _refuse_empty(split: Split, part: Rows, held_out: Rows, fraction: float) -> None:
    parts = {"held-out": held_out, "training": part}
    faults = [f"there is no {name} row" for name, rows in parts.items() if not len(rows)]
    classes = classes_of(split)
    if classes is not None and not faults:
        missing = np.setdiff1d(classes, classes[part])
        if len(missing):
            shown = ", ".join(map(str, missing[:5].tolist()))
            faults.append(f"there is no training row of {len(missing)} classes: {shown}")
    if faults:
        units = "rows" if split.groups is None else f"rows in {len(np.unique(split.groups))} groups"
        raise DataError(
            f"fraction={fraction} of {len(split)} {units}: {'; '.join(faults)}; "
            "bring more data, or type another fraction"
        )

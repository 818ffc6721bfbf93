"""Bagging: each member learns from rows of its own drawing and predicts those it did not draw."""

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import torch

from polyfuse.data.base import Rows, Split
from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.fit import FitOptions
from polyfuse.subspaces import Subspace
from polyfuse.training.base import Job, Made, Planned, Work, facts_of, member_seeds, one_member
from polyfuse.training.rows import fraction_faults, stopping, unusual

Draw = Literal["bootstrap", "subsample"]


def bagging(
    split: Split,
    *,
    members: int = 10,
    kind: Draw = "bootstrap",
    fraction: float = 1.0,
    features: float | None = None,
    stop_fraction: float = 0.1,
    seed: int = 0,
    fit: FitOptions | None = None,
) -> Planned:
    """Plan a bagged ensemble (Breiman 1996); with `features`, on random subspaces (Ho 1998).

    Groups are drawn whole. Rows that a member did not draw are held out: its out-of-bag predictions
    are of them. The rows that stop it are among those it drew, so they are not told either. The
    drawn rows are kept in its folder, `rows/learned.npy`, a row as often as it was drawn. A folder
    that was begun with fewer members goes on: the first ones are the same.

    Args:
        split: the training split.
        members: how many.
        kind: "bootstrap" draws with replacement, "subsample" without.
        fraction: rows (groups, where there are any) that are drawn, as a share of all; below 1 for
            a subsample: 0.632 is what a bootstrap sees (Buehlmann and Yu 2002 take a half).
        features: share of the input features that a member sees, the others are 0 to it; None: all.
        stop_fraction: share of the rows it drew that chooses its epoch; 0: none does, and the last
            epoch is kept.
        seed: decides what is drawn, and members' seeds.
        fit: how the members are trained, to refuse what does not go together.

    Raises:
        DataError: a request that draws nothing; all faults at once.

    Example:
        >>> from polyfuse import Arrays
        >>> job, *_ = bagging(Arrays(np.zeros((8, 2)), np.zeros(8, int)), stop_fraction=0).jobs([])
        >>> job.learn.tolist(), job.held_out.tolist()
        ([4, 5, 5, 5, 6, 7, 7, 7], [0, 1, 2, 3])
    """
    faults = [*_faults(members, kind, fraction, features, fit), *fraction_faults(stop_fraction)]
    if faults:
        raise DataError("\n".join(faults))
    width = split.inputs(np.arange(1)).numel() if features is not None else 0
    facts = {
        **unusual(kind=None if kind == "bootstrap" else kind, stop_fraction=stop_fraction),
        **({"fraction": fraction} if fraction != 1 else {}),
        **({"features": max(1, round(features * width))} if features is not None else {}),
    }
    jobs = []
    for index, own in enumerate(member_seeds(seed, members)):
        drawn = _drawn(split, kind, fraction, own)
        learn, stop = stopping(drawn, stop_fraction, seed=own, groups=split.groups)
        held_out = np.setdiff1d(np.arange(len(split)), drawn)
        own_facts = {"strategy": "bagging", "bag": index, **facts}
        given = {"width": width} if features is not None else {}
        how = in_subspace if features is not None else one_member
        jobs.append(Job(index, own, learn, stop, held_out, own_facts, how=how, given=given))
    return Planned(tuple(jobs))


def in_subspace(work: Work) -> Iterable[Made]:
    """Train one member on features of its own drawing.

    Example:
        >>> in_subspace.__name__
        'in_subspace'
    """
    job = work.job
    draw = np.random.default_rng([job.seed, 8])
    chosen = np.sort(draw.choice(job.given["width"], job.facts["features"], replace=False))
    model = Subspace(work.model(), torch.from_numpy(chosen))
    fitted = work.fit(model)
    return [Made(model, fitted.state, facts_of(fitted), fitted.averages)]


def _drawn(split: Split, kind: Draw, fraction: float, seed: int) -> Rows:
    """Draw rows, or whole groups with all their rows; sorted, a row as often as it was drawn."""
    groups = np.arange(len(split)) if split.groups is None else split.groups
    names, places = np.unique(groups, return_inverse=True)
    count = max(1, round(fraction * len(names)))
    draw = np.random.default_rng([seed, 7])
    chosen = draw.choice(len(names), count, replace=kind == "bootstrap")
    return np.repeat(np.arange(len(split)), np.bincount(chosen, minlength=len(names))[places])


def _faults(
    members: int, kind: str, fraction: float, features: float | None, fit: FitOptions | None
) -> list[str]:
    faults = [f"members={members}; type 1 or more"] if members < 1 else []
    if kind not in get_args(Draw):
        near = did_you_mean(kind, get_args(Draw))
        faults.append(f"kind='{printable(kind)}'{near or ';'} known: {', '.join(get_args(Draw))}")
    if not 0 < fraction < np.inf:
        faults.append(f"fraction={fraction}; type a share of the rows, above 0")
    elif kind == "subsample" and fraction >= 1:
        faults.append(
            f"fraction={fraction}: a subsample of all rows is all rows; type a share below 1, "
            "for example 0.632"
        )
    if features is not None and not 0 < features <= 1:
        faults.append(f"features={features}; type a share of the input features, up to 1")
    if features is not None and fit is not None and fit.start is not None:
        faults.append(
            f"features={features} and start='{printable(fit.start)}' do not go together: those "
            "weights expect all features; leave one of them out"
        )
    return faults

"""Averages from files, later: the share that each saved checkpoint of a run has in an average.

`synthesise` says what a rule of `polyfuse.averaging` would have made of the checkpoints, had it
been updated at each of them, and which power-EMA can be made of stored power-EMAs (post-hoc EMA,
Karras et al. 2023, arXiv 2312.02696). The average is then one pass of the streaming engine.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from polyfuse.averaging.base import AveragingRule, Moment
from polyfuse.averaging.rules import exponent, shares
from polyfuse.checkpoint_sets.numbered import numbers
from polyfuse.checkpoints import open_checkpoint
from polyfuse.errors import CheckpointError, PolyfuseError, printable
from polyfuse.weights import Averaged, average

NUMBERS = "numbers"
TIMED = ("half_life", "power_ema")  # rules for which snapshots have real times by default


class Synthesis(NamedTuple):
    """Which checkpoints make an average, and how.

    Attributes:
        paths: of the checkpoints that have a share, in the order of time.
        times: of each.
        shares: of each; they sum to 1.
        residual: of a power-EMA, how far its profile over time is from the one that was asked for:
            the norm of the difference over that of the profile. None: there is nothing to fit.
        left_out: checkpoints without a share, and those after the time that was asked for.
    """

    paths: tuple[Path, ...]
    times: tuple[int, ...]
    shares: tuple[float, ...]
    residual: float | None = None
    left_out: tuple[Path, ...] = ()

    def average(self, out: str | Path | None = None, **settings: Any) -> Averaged:
        """Make it: `polyfuse.average` with these shares; its provenance holds them.

        Args:
            out: file or folder to write; None keeps the result in memory.
            settings: others of `polyfuse.average`.

        Raises:
            PolyfuseError: see `polyfuse.average`.
        """
        return average(self.paths, out, weights=self.shares, **settings)


class _Snapshot(NamedTuple):
    path: Path
    time: int
    sigma: float  # of a stored power-EMA; 0 of raw weights


def synthesise(
    paths: Sequence[str | Path],
    rule: AveragingRule,
    *,
    every: int | str | None = None,
    times: Sequence[int] | None = None,
    at: int | None = None,
    stored: float | Sequence[float] | None = None,
) -> Synthesis:
    """Return the share of each checkpoint in an average that was not kept while training.

    The checkpoints are ordered by the number in their names, or by the step (epoch) that they
    state. The shares are those of `Averages` with this rule, updated at these checkpoints only: the
    first one is the initial copy. How far apart they are is said by `every`: for `ema(0.99)` the
    default is a decay of 0.99 a checkpoint, `every=100` one of 0.99 a step and `0.99 ** 100` a
    checkpoint.

    Args:
        paths: checkpoints of one run, in any order.
        rule: one whose average is linear in the weights.
        every: steps between two checkpoints; or "numbers": the numbers are steps (or samples,
            tokens, epochs: what the rule counts). By default "numbers" for half-lives and
            power-EMA, else 1.
        times: of the checkpoints in the given order, instead of the numbers.
        at: leaves out checkpoints after this time.
        stored: the checkpoints are no raw weights but power-EMAs of this sigma_rel, one for all
            or one each; the rule is a power-EMA.

    Raises:
        CheckpointError: checkpoints without a time, or two of the same.
        PolyfuseError: a rule that is not linear, options that do not go together.

    Example:
        >>> from polyfuse.averaging import ema
        >>> synthesise(["e1.pt", "e10.pt", "e2.pt"], ema(0.5))
        Synthesis(paths=(PosixPath('e1.pt'), PosixPath('e2.pt'), PosixPath('e10.pt')), \
times=(1, 2, 10), shares=(0.25, 0.25, 0.5), residual=None, left_out=())
    """
    _check_together(rule, every, times, stored)
    snapshots = _snapshots(list(map(Path, paths)), times, stored)
    used = [snapshot for snapshot in snapshots if at is None or snapshot.time <= at]
    if not used:
        raise PolyfuseError(f"at={at} is before the first checkpoint, of time {snapshots[0].time}")
    when = [snapshot.time for snapshot in used]
    if stored is None:
        real = times is not None or rule.name in TIMED
        spacing = every or (NUMBERS if real else 1)
        found, residual = _tracked(rule, when, spacing)
    else:
        gammas = [exponent(snapshot.sigma) for snapshot in used]
        found, residual = post_hoc(when, gammas, at or when[-1], float(rule.options["gamma"]))
    kept = [(s.path, s.time, share) for s, share in zip(used, found, strict=True) if share]
    chosen, moments, parts = zip(*kept, strict=True)
    left_out = tuple(s.path for s in snapshots if s.path not in chosen)
    return Synthesis(chosen, moments, parts, residual, left_out)


def post_hoc(
    times: ArrayLike, gammas: ArrayLike, time: float, gamma: float
) -> tuple[list[float], float]:
    """Return the shares of stored power-EMAs in another one, by least squares, and the residual.

    A power-EMA at time t is a weighted mean over the time before, with the weight
    `(gamma + 1) * s ** gamma / t ** (gamma + 1)` at s. The shares bring the mix of these profiles
    as near as it can be to the wanted one, and then sum to 1.

    Args:
        times: `(n,)`, above 0; none after `time`.
        gammas: `(n,)`, of each.
        time: of the average that is wanted.
        gamma: likewise.

    Returns:
        The `n` shares; and the norm of the difference over that of the wanted profile (numbers
        below 1e-7 are rounding).

    Raises:
        PolyfuseError: a time of 0 or less, or after the wanted one.

    Example:
        >>> shares, residual = post_hoc([100, 100], [16.97, 6.94], 100, 6.94)
        >>> [round(share, 6) + 0.0 for share in shares], residual < 1e-7
        ([0.0, 1.0], True)
    """
    t, g = np.asarray(times, np.float64), np.asarray(gammas, np.float64)
    if not (t > 0).all() or (t > time).any():
        raise PolyfuseError(
            f"snapshots of power-EMA have times above 0 and up to the wanted one, {time:g}; got "
            f"{t.min():g} to {t.max():g}"
        )
    t = t / time
    norms = np.sqrt(_products(t, g, t, g))
    length = np.sqrt(_products(1.0, gamma, 1.0, gamma))
    # Profiles of length 1 make a better conditioned matrix; the shares are scaled back afterwards.
    matrix = _products(t[:, None], g[:, None], t, g) / np.outer(norms, norms)
    wanted = _products(t, g, 1.0, gamma) / (norms * length)
    scaled = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    scaled /= (scaled * length / norms).sum()
    squared = 1 - 2 * scaled @ wanted + scaled @ matrix @ scaled
    return (scaled * length / norms).tolist(), math.sqrt(max(0.0, squared))


def _products(ta: Any, ga: Any, tb: Any, gb: Any) -> Any:
    """Return inner products of profiles: the integral over time of one times the other."""
    earlier = np.minimum(ta, tb)
    ratio = (earlier / ta) ** ga * (earlier / tb) ** gb  # one of the two is 1
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * ratio / np.maximum(ta, tb)


def _tracked(
    rule: AveragingRule, times: Sequence[int], every: int | str
) -> tuple[list[float], float | None]:
    """Return the shares of raw weights, and for a power-EMA what its steps leave of the profile."""
    epochs = times
    if isinstance(every, int):
        epochs = range(1, len(times) + 1)
        times = [every * n for n in epochs]
    moments = [
        Moment(n, time, gap, times[0], epoch, samples=gap, tokens=gap)
        for n, (time, gap, epoch) in enumerate(zip(times, _gaps(times), epochs, strict=True))
    ]
    found = shares(rule, moments)
    _check_linear(rule, moments, found)
    return found, _staircase(rule, times, found) if rule.name == "power_ema" else None


def _gaps(times: Sequence[int]) -> list[int]:
    """Return the time that each snapshot stands for: that since the one before."""
    return [after - before for before, after in itertools.pairwise([0, *times])]


def _staircase(rule: AveragingRule, times: Sequence[int], found: Sequence[float]) -> float:
    """Return how far a power-EMA of raw snapshots is from the one updated at every moment.

    Its profile over time is a staircase, and the nearest one: on every step, the profile's mean.
    """
    gamma = float(rule.options["gamma"])
    steps = sum(x * x / gap for x, gap in zip(found, _gaps(times), strict=True) if gap)
    return math.sqrt(max(0.0, 1 - steps / float(_products(times[-1], gamma, times[-1], gamma))))


def _check_linear(rule: AveragingRule, moments: Sequence[Moment], found: Sequence[float]) -> None:
    """Refuse a rule whose average of any values is not what the shares make of them."""
    values = torch.rand(len(moments), 3, generator=torch.Generator().manual_seed(0)).double()
    kept = rule.init(values[0])
    for value, moment in zip(values[1:], moments[1:], strict=True):
        kept = rule.update(kept, value, moment)
    made = rule.value(kept, len(moments) - 1) if rule.value else kept
    if not torch.allclose(made, torch.tensor(found).double() @ values, rtol=1e-6):
        raise PolyfuseError(
            f"the average of the rule '{printable(rule.name)}' is no weighted mean of the weights, "
            "so no shares make it; update `Averages` with it while training"
        )


def _snapshots(
    paths: Sequence[Path], times: Sequence[int] | None, stored: float | Sequence[float] | None
) -> list[_Snapshot]:
    """Return the checkpoints in the order of time."""
    if not paths:
        raise CheckpointError("no checkpoints to average; name one or more")
    dated = _times(paths) if times is None else times
    sigmas = stored if isinstance(stored, Sequence) else [stored or 0.0] * len(paths)
    for name, values in (("times", dated), ("stored", sigmas)):
        if len(values) != len(paths):
            raise PolyfuseError(f"{len(values)} {name} for {len(paths)} checkpoints; give one each")
    snapshots = sorted(map(_Snapshot, paths, dated, sigmas), key=lambda s: (s.time, s.sigma))
    _check_distinct(snapshots)
    return snapshots


def _times(paths: Sequence[Path]) -> list[int]:
    """Return the times of checkpoints: the numbers in their names, else what they say inside."""
    named = numbers(paths)
    if named and (len(paths) == 1 or len(set(named.values())) > 1):
        return [named[path] for path in paths]
    stated = []
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            stated.append({k: v for k, v in checkpoint.facts.items() if k in ("step", "epoch")})
    for fact in ("step", "epoch"):
        if all(isinstance(facts.get(fact), int) for facts in stated):
            return [facts[fact] for facts in stated]
    lacking = [f"'{printable(p)}'" for p, facts in zip(paths, stated, strict=True) if not facts]
    raise CheckpointError(
        f"no order in time: no number in the names differs, and no step or epoch is stated by "
        f"{', '.join(lacking[:5]) or 'all alike'}; number the files, or give times=[...]"
    )


def _check_together(
    rule: AveragingRule,
    every: int | str | None,
    times: Sequence[int] | None,
    stored: float | Sequence[float] | None,
) -> None:
    if every is not None and (times is not None or stored is not None):
        raise PolyfuseError("every goes with raw checkpoints whose times are not given; drop it")
    if every not in (None, NUMBERS) and (not isinstance(every, int) or every < 1):
        raise PolyfuseError(f"every={every!r}; type a whole number from 1, or '{NUMBERS}'")
    if stored is not None and rule.name != "power_ema":
        raise PolyfuseError(
            f"stored power-EMAs make another power-EMA, not '{printable(rule.name)}'; type "
            "power_ema, or leave stored out where the checkpoints are raw weights"
        )


def _check_distinct(snapshots: Sequence[_Snapshot]) -> None:
    """Refuse two checkpoints of one time (and sigma), and times before the start."""
    faults = []
    for one, other in itertools.pairwise(snapshots):
        if (one.time, one.sigma) == (other.time, other.sigma):
            faults.append(
                f"'{printable(one.path)}' and '{printable(other.path)}' are both of time {one.time}"
            )
    if faults:
        raise CheckpointError("\n".join([*faults, "name the files of one run only"]))
    if snapshots[0].time < 0:
        raise PolyfuseError(f"time {snapshots[0].time} of a checkpoint; times are from 0")

"""Votes: every member, or the sum of their probabilities, decides for one class."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.combine.base import Array, Members, places
from polyfuse.errors import DataError


def hard_vote(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Any:
    """Let each member vote for its best class, at every position by itself.

    Ties go to the class with the larger summed probability, then to the smaller label. With weights
    this is the weighted vote. A member abstains where its whole row is NaN.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)` votes of each member, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own, and the
            vote is on 0 or 1.

    Returns:
        `(sample, ...)` int64 classes; `(sample, ..., label)` 0 and 1 where not exclusive.

    Raises:
        DataError: no members, too few axes, integers, NaN in a part of a row, a row where all
            abstain, numbers that are not in this space, wrong weights.

    Example:
        >>> import numpy as np
        >>> hard_vote(np.array([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])).tolist()
        [1]
    """
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights, absent=True)
    shares = members.shares or [1.0] * len(members)
    votes, belief = _Sum(torch.float64 if members.shares else members.wide), _Sum(members.wide)
    said = _Said()
    for scores, share in zip(members.scores(), shares, strict=True):
        if share:
            says = said.note(scores)
            scores = _silenced(scores, says)
            cast = torch.nn.functional.one_hot(_first_largest(scores), scores.shape[-1])
            votes.add(cast * says[..., None], share)
            belief.add(members.softmax(scores) * says[..., None], share)
    said.check(members)
    # Other sums of the same weights may differ by rounding: such a difference is a tie.
    best, slack = votes.total.amax(-1, keepdim=True), 1e-9 if members.shares else 0.0
    # A mean probability is at most 1, so less than half of it never outweighs a vote.
    led = torch.where(votes.total >= best - slack, best.to(members.wide), -1)
    mean = belief.total if members.shares else belief.total / len(members)
    return members.back(_first_largest(led + mean * 0.49))


def soft_vote(
    predictions: Array,
    *,
    pool: str = "prob",
    weights: Any = None,
    space: str = "logit",
    exclusive: bool = True,
) -> Any:
    """Decide for the class with the largest summed probability; of equal ones, the smaller label.

    A member abstains where its whole row is NaN.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        pool: what is summed: "prob", or "logit", which decides as `mean_logit` does but needs
            no exponential.
        weights: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own, and the
            decision is 0 or 1.

    Returns:
        `(sample, ...)` int64 classes; `(sample, ..., label)` 0 and 1 where not exclusive.

    Raises:
        DataError: as `hard_vote`.

    Example:
        >>> import numpy as np
        >>> soft_vote(np.array([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])).tolist()
        [0]
    """
    if pool not in ("prob", "logit"):
        raise DataError(f"unknown pool {pool!r}; use 'prob' or 'logit'")
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights, absent=True)
    return _decided(members, members.scores if pool == "logit" else members.passing_probabilities)


def _decided(members: Members[Any], parts: Callable[[], Iterable[Tensor]]) -> Any:
    """Return the class with the largest sum; made anew only where a member abstained."""
    pooled = members.mean(parts(), passing=True)
    best = _first_largest(pooled)
    if torch.compiler.is_compiling():
        return members.back(best)
    # The position of NaN is what argmax returns: one look at a row is enough.
    if bool(pooled.gather(-1, best[..., None]).isnan().any()):
        said, heard = _Said(), []
        for scores, part in zip(members.scores(), parts(), strict=True):
            heard.append(_silenced(part, said.note(scores)))
        said.check(members)
        best = _first_largest(members.mean(heard))
    return members.back(best)


class _Sum:
    """A weighted sum in a given precision, made on first use."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.total = dtype, torch.zeros(())

    def add(self, part: Tensor, share: float) -> None:
        part = part.to(self.dtype)
        first = self.total.ndim == 0
        self.total = part * share if first else self.total.add_(part, alpha=share)


class _Said:
    """Which rows some member has a say in, and whether any row is NaN in part."""

    def __init__(self) -> None:
        self.anyone: Tensor | None = None
        self.broken = False

    def note(self, scores: Tensor) -> Tensor:
        """Return where this member has a say."""
        missing = scores.isnan()
        says = ~missing.all(-1)
        if not torch.compiler.is_compiling():
            self.broken |= bool((missing.any(-1) & says).any()) or bool((scores == torch.inf).any())
        self.anyone = says if self.anyone is None else self.anyone | says
        return says

    def check(self, members: Members[Any]) -> None:
        """Refuse rows that are NaN in part, and rows in which nobody votes.

        Raises:
            DataError: saying which.
        """
        if self.broken:
            members.blame()
        assert self.anyone is not None
        if not torch.compiler.is_compiling() and not bool(self.anyone.all()):
            unheard = (~self.anyone).reshape(len(self.anyone), -1).any(1).nonzero()[:, 0].tolist()
            raise DataError(
                f"no member has a say in {places(unheard)}: leave out what nobody knows"
            )


def _silenced(scores: Tensor, says: Tensor) -> Tensor:
    return torch.where(
        says[..., None], scores, torch.zeros((), dtype=scores.dtype, device=scores.device)
    )


def _first_largest(scores: Tensor) -> Tensor:
    """Return the first largest entry of the last axis; NumPy finds it faster on a processor."""
    if scores.device.type != "cpu" or torch.compiler.is_compiling():
        return scores.argmax(-1)
    wide = scores.detach()
    wide = wide if wide.dtype in (torch.float32, torch.float64) else wide.float()
    return torch.from_numpy(np.asarray(wide.numpy().argmax(-1)))

"""What each member votes for: its string, how sure it is of it, and the weight of its vote."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.combine.base import Members, check_members, places, shares
from polyfuse.errors import DataError
from polyfuse.fitting import array_of
from polyfuse.sequences.base import Floats, Labels, blank_of, claimed, decode


@dataclass(frozen=True)
class Ballots:
    """The members' votes on strings.

    Attributes:
        read: `(member, sample, position)` int64, blank from the first blank on.
        sure: `(member, sample, position)` float64: the member's probability of what it claims
            there, 1 after the end of the string.
        weights: `(member, sample)` float64, 0 where a member abstains or has no vote.
        blank: the class that means "no character".
        like: what came in.
    """

    read: Labels
    sure: Floats
    weights: Floats
    blank: int
    like: Any

    @property
    def confidence(self) -> Floats:
        """Each member's probability of its own string, `(member, sample)`."""
        return np.asarray(self.sure.prod(-1))

    def back(self, voted: Labels) -> Any:
        """Return decided strings as the kind of array that came in."""
        if isinstance(self.like, Tensor):
            return torch.from_numpy(voted).to(self.like.device)
        return voted


def ballots_of(predictions: Any, *, weights: Any, space: str, blank: int) -> Ballots:
    """Return what members vote for.

    Args:
        predictions: `(member, sample, position, class)` floating, NaN in all of a row where a
            member abstains; or `(member, sample, position)` integer classes, as files of answers
            have them: they are as sure as can be.
        weights: `(member,)`, or None.
        space: of floating predictions: "logit", "prob" or "log_prob".
        blank: the class that means "no character"; -1 is the last one, where there are scores.

    Raises:
        DataError: what does not fit, NaN in a part of a row, a row in which nobody votes.

    Example:
        >>> ballots_of(np.array([[[4, 2]]]), weights=None, space="prob", blank=10).sure.tolist()
        [[[1.0, 1.0]]]
    """
    decided = isinstance(predictions, np.ndarray | Tensor) and predictions.ndim == 3
    if decided and array_of(predictions[:1]).dtype.kind in "iu" and 0 not in predictions.shape:
        return _decided(predictions, weights, blank)
    check_members(predictions, axes=4)
    if predictions.ndim != 4:
        raise DataError(f"expected (member, sample, position, class), got {predictions.ndim} axes")
    members = Members(predictions, space=space, weights=weights, absent=True)
    blank = blank_of(blank, predictions.shape[-1])
    pairs = zip(members.logs(), members.each, strict=True)
    each = [_of_one(logs, member, blank) for logs, member in pairs]
    if any(broken for _, _, _, broken in each):
        members.blame()
    says = np.stack([said for _, _, said, _ in each])
    cast = _cast(members.shares, says)
    return Ballots(
        np.stack([read for read, _, _, _ in each]),
        np.stack([sure for _, sure, _, _ in each]),
        cast,
        blank,
        predictions,
    )


def _decided(predictions: Any, weights: Any, blank: int) -> Ballots:
    array = array_of(predictions)
    if blank < 0:
        raise DataError(f"blank={blank}: of decided classes the last one is not known; number it")
    read = np.stack([decode(member, blank=blank) for member in array])
    votes = None if weights is None else shares(weights, len(array))
    cast = _cast(votes, np.ones(array.shape[:2], bool))
    return Ballots(read, np.ones(read.shape), cast, blank, predictions)


def _of_one(
    logs: Tensor, member: Tensor, blank: int
) -> tuple[Labels, Floats, NDArray[np.bool_], bool]:
    """Return a member's strings, how sure it is, where it has a say, and whether it is broken."""
    own = array_of(logs)
    says = np.asarray(~array_of(member.isnan().flatten(1).all(1)))
    broken = bool((np.isnan(own).any((-1, -2)) & says).any())
    own = np.where(says[:, None, None], own, 0.0)
    read = decode(own, blank=blank)
    said = np.take_along_axis(own, read[..., None], -1)[..., 0]
    sure = np.where(claimed(read, blank), np.exp(said.astype(np.float64)), 1.0)
    return read, sure, says, broken


def _cast(weights: list[float] | None, says: NDArray[np.bool_]) -> Floats:
    """Return the weight of each member's vote in each row."""
    each = np.ones(len(says)) if weights is None else np.array(weights)
    cast = each[:, None] * says
    unheard = np.flatnonzero(~cast.any(0)).tolist()
    if unheard:
        raise DataError(f"no member has a say in {places(unheard)}: leave out what nobody knows")
    return np.asarray(cast)

"""Members combined by whole strings: a vote, and joint decoding of their pooled heads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.combine import mean_probability
from polyfuse.combine.base import check_members
from polyfuse.sequences.ballots import ballots_of
from polyfuse.sequences.base import IMPOSSIBLE
from polyfuse.sequences.decoding import joint_decode

_TIE = 1e-9  # other sums of the same weights may differ by rounding


def string_vote(logits: Any, *, weights: Any = None, space: str = "logit", blank: int = -1) -> Any:
    """Let each member vote for one whole string; the members' confidence breaks ties.

    A member's confidence in its string is the product of its heads' probabilities along the
    decoded positions (the first blank included: that the string ends there is part of the claim).
    Among strings with equally many votes the larger summed confidence wins, then the one whose
    first voter comes first. A member abstains where its whole row is NaN.

    Args:
        logits: `(member, sample, position, class)`, floating; NumPy or torch. Or decided strings,
            `(member, sample, position)` integers, which are all as sure.
        weights: `(member,)` votes of each member, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        blank: the class that means "no character"; -1 is the last class.

    Returns:
        `(sample, position)` int64, the kind of array that came in.

    Raises:
        DataError: not four axes, an empty axis, NaN in a part of a row, a row where all abstain,
            numbers that are not in this space, wrong weights.

    Example:
        >>> z = np.log(np.array([[.9, .1], [.6, .4], [.2, .8]]))[:, None, None, :]
        >>> string_vote(z).tolist()
        [[0]]
        >>> string_vote(z, weights=[1, 1, 3]).tolist()
        [[1]]
    """
    ballots = ballots_of(logits, weights=weights, space=space, blank=blank)
    sure = ballots.confidence * ballots.weights
    votes, support = np.empty(sure.shape), np.empty(sure.shape)
    for number, own in enumerate(ballots.read):
        same = (own == ballots.read).all(-1)
        votes[number], support[number] = (same * ballots.weights).sum(0), (same * sure).sum(0)
    best = np.where(votes >= votes.max(0) - _TIE, support, -1.0).argmax(0)
    return ballots.back(ballots.read[best, np.arange(len(best))])


def joint_decoding(
    predictions: Any, *, weights: Any = None, space: str = "logit", blank: int = -1
) -> Any:
    """Pool the members' heads by mean probability; read the string that is likeliest as a whole.

    Args:
        predictions: `(member, sample, position, class)`, floating; NumPy or torch.
        weights: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        blank: the class that means "no character"; -1 is the last class.

    Returns:
        `(sample, position)` int64, the kind of array that came in; see `joint_decode`.

    Raises:
        DataError: not four axes, and what `mean_probability` refuses.

    Example:
        >>> p = np.array([[[[0.9, 0.1], [0.49, 0.51], [0.9, 0.1]]]])
        >>> joint_decoding(p, space="prob").tolist()
        [[0, 0, 0]]
    """
    check_members(predictions, axes=4)
    torch_in = isinstance(predictions, Tensor)
    if torch_in and predictions.dtype not in (torch.float32, torch.float64):
        predictions = predictions.float()
    elif not torch_in and predictions.dtype == np.float16:
        predictions = predictions.astype(np.float32)
    pooled = mean_probability(predictions, weights=weights, space=space)
    shares = pooled.detach().cpu().numpy() if torch_in else pooled
    with np.errstate(divide="ignore"):
        heads = np.maximum(np.log(shares.astype(np.float64)), IMPOSSIBLE)
    read = joint_decode(heads, blank=blank)
    return torch.from_numpy(read).to(predictions.device) if torch_in else read

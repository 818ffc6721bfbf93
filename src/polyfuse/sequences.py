"""Multi-character recognition: decoding heads into strings, and a vote by whole string."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.combine import check_members, hard_vote
from polyfuse.errors import DataError

Labels = NDArray[np.int64]


def decode(prediction: NDArray[Any], *, blank: int) -> Labels:
    """Read strings off the heads: the best class a head, and nothing after the first blank.

    Args:
        prediction: `(sample, position, class)` logits or probabilities, or `(sample, position)`
            integer classes.
        blank: the class that means "no character".

    Returns:
        `(sample, position)` int64, blank from the first blank on.

    Raises:
        DataError: another number of axes.

    Example:
        >>> decode(np.array([[4, 2, 10, 7]]), blank=10).tolist()
        [[4, 2, 10, 10]]
    """
    classes = prediction if prediction.dtype.kind in "iu" else prediction.argmax(-1)
    if classes.ndim != 2:
        raise DataError(
            f"expected (sample, position, class) scores or (sample, position) integer classes, got "
            f"{prediction.dtype} of shape {prediction.shape}"
        )
    ended = np.logical_or.accumulate(classes == blank, axis=1)
    return np.where(ended, blank, classes).astype(np.int64)


def strings(labels: Labels, *, blank: int) -> list[str]:
    """Write decoded labels as text.

    Args:
        labels: `(sample, position)` classes below 10, or `blank`.
        blank: the class that means "no character".

    Example:
        >>> strings(np.array([[4, 2, 10], [0, 10, 10]]), blank=10)
        ['42', '0']
    """
    return ["".join(str(c) for c in row if c != blank) for row in decode(labels, blank=blank)]


def string_vote(logits: Any, *, blank: int = -1) -> Any:
    """Let each member vote for one whole string; the members' confidence breaks ties.

    A member's confidence in its string is the product of its heads' probabilities along the
    decoded positions (the first blank included: that the string ends there is part of the claim).
    Among strings with equally many votes the larger summed confidence wins, then the one whose
    first voter comes first.

    Args:
        logits: `(member, sample, position, class)`, floating; NumPy or torch.
        blank: the class that means "no character"; -1 is the last class.

    Returns:
        `(sample, position)` int64, the kind of array that came in.

    Raises:
        DataError: not four axes, an empty axis, or integers.

    Example:
        >>> z = np.log(np.array([[.9, .1], [.6, .4], [.2, .8]]))[:, None, None, :]
        >>> string_vote(z).tolist()
        [[0]]
    """
    if isinstance(logits, Tensor):
        check_members(logits, axes=4)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        voted = string_vote(wide.detach().cpu().numpy(), blank=blank)
        return torch.from_numpy(voted).to(logits.device)
    check_members(logits, axes=4)
    logits = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
    members, samples, positions, classes = logits.shape
    blank = blank % classes
    flat = logits.reshape(members * samples, positions, classes)
    read = decode(flat, blank=blank).reshape(members, samples, positions)
    confidence = _confidence(logits, read, blank)
    # same[a, b, s]: members a and b read the same string off sample s.
    same = (read[:, None] == read[None]).all(-1)
    votes = same.sum(1)
    support = (same * confidence[None]).sum(1)
    # A support is at most M, so half of 1/(M+1) of it never outweighs a vote.
    best = (votes + support / (2 * (members + 1))).argmax(0)
    return read[best, np.arange(samples)]


SEQUENCE_COMBINERS: dict[str, Callable[..., Any]] = {
    "position_vote": hard_vote,
    "string_vote": string_vote,
}


def _confidence(logits: NDArray[Any], read: Labels, blank: int) -> NDArray[np.float64]:
    """Return each member's probability of its own string, `(member, sample)`."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, read[..., None], -1)[..., 0].astype(np.float64)
    # Positions after the first blank claim nothing.
    after = np.zeros(read.shape, bool)
    after[..., 1:] = read[..., :-1] == blank
    total: NDArray[np.float64] = np.exp(np.where(after, 0.0, chosen).sum(-1))
    return total

"""The loss of several characters, with a head a position, and of their number."""

import torch
from torch import Tensor

from polyfuse.errors import DataError


def character_cross_entropy(
    outputs: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    blank: int = -1,
    blank_weight: float = 1.0,
    length_weight: float = 1.0,
) -> Tensor:
    """Mean over samples of the sum of the heads' cross-entropies, and of the length's.

    One head more than the labels have is a length head: its first `positions + 1` logits are of
    the lengths 0 to `positions`, and its label is the number of characters that are not blank.
    This is the negative log-likelihood of Goodfellow et al. (2013), but that heads after the end
    of a string learn to say "blank": with `blank_weight` 0 they learn nothing there, as in theirs.

    Args:
        outputs: `(n, positions, classes)` logits, or `(n, positions + 1, classes)`.
        labels: `(n, positions)`, int64, blanks on the right.
        weights: `(n,)`, of a mean of 1 over all samples, or None.
        blank: the class that means "no character"; -1 is the last.
        blank_weight: what a blank counts, 0 or more: most labels of short strings are blanks.
        length_weight: what the length counts, 0 or more.

    Returns:
        A scalar, in nats a sample.

    Raises:
        DataError: outputs that have neither as many heads as the labels, nor one more; a blank
            that is no class; weights below 0.

    Example:
        >>> labels = torch.tensor([[4, 2, 10, 10, 10, 10]])
        >>> round(float(character_cross_entropy(torch.zeros(1, 6, 11), labels)), 3)  # 6 ln(11)
        14.387
        >>> heads = torch.zeros(1, 7, 11)
        >>> round(float(character_cross_entropy(heads, labels, blank_weight=0)), 3)  # 2 + ln(7)
        6.742
    """
    _refuse_no_heads(outputs, labels)
    blank = _blank(blank, outputs.shape[-1])
    for name, value in {"blank_weight": blank_weight, "length_weight": length_weight}.items():
        if not value >= 0:
            raise DataError(f"character_cross_entropy: {name}={value}; type 0 or more")
    positions = labels.shape[1]
    each = _at(outputs[:, :positions].log_softmax(-1), labels)
    total = torch.where(labels == blank, blank_weight * each, each).sum(1)
    if outputs.shape[1] > positions:
        lengths = (labels != blank).sum(1)
        total = total + length_weight * _at(
            outputs[:, positions, : positions + 1].log_softmax(-1), lengths
        )
    return -(total if weights is None else total * weights).mean()


def _at(logs: Tensor, labels: Tensor) -> Tensor:
    """Return the number of each label's class: `(..., classes)` and `(...)` to `(...)`."""
    return logs.gather(-1, labels[..., None])[..., 0]


def _blank(blank: int, classes: int) -> int:
    if not -classes <= blank < classes:
        raise DataError(
            f"character_cross_entropy: blank={blank}, and heads have {classes} classes; leave it "
            "out, if the last class is the blank"
        )
    return blank % classes


def _refuse_no_heads(outputs: Tensor, labels: Tensor) -> None:
    """Refuse outputs that are not those of a head a position, and perhaps one of the length."""
    fits = outputs.ndim == 3 and labels.ndim == 2 and len(outputs) == len(labels)
    more = outputs.shape[1] - labels.shape[1] if fits else 0
    if not fits or more not in (0, 1):
        raise DataError(
            f"character_cross_entropy compares outputs {tuple(outputs.shape)} with labels "
            f"{tuple(labels.shape)}; it takes (n, positions, classes), or one head more for the "
            "length, and (n, positions)"
        )
    if more and outputs.shape[2] <= labels.shape[1]:
        raise DataError(
            f"character_cross_entropy: a length head over {labels.shape[1]} positions needs "
            f"{labels.shape[1] + 1} classes, got outputs {tuple(outputs.shape)}; leave the head "
            "out, or take more classes"
        )

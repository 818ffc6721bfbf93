"""Losses that recipes may name: `(outputs, labels, *, weights=None) -> scalar`."""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional

Loss = Callable[..., Tensor]
Mean = Literal["probability", "output"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy over samples; over several heads the heads' losses are summed.

    Args:
        logits: `(n, classes)`, or `(n, heads, classes)`.
        labels: `(n,)`, or `(n, heads)`, int64.
        weights: `(n,)`, of a mean of 1 over all samples, or None.
        label_smoothing: 0 to 1 (Szegedy et al. 2016).

    Returns:
        A scalar, in nats a sample.

    Example:
        >>> import torch
        >>> labels = torch.zeros(2, 6, dtype=int)
        >>> round(float(cross_entropy(torch.zeros(2, 6, 11), labels)), 3)
        14.387
    """
    each = functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        reduction="sum" if weights is None else "none",
        label_smoothing=label_smoothing,
    )
    if weights is not None:
        each = (each.view(len(labels), -1).sum(1) * weights).sum()
    return each / len(labels)


def loss_of_mean(
    each: Loss,
    outputs: Tensor,
    labels: Tensor,
    *,
    mean: Mean = "probability",
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of the members' mean.

    Args:
        each: a loss of one member: `(outputs, labels, *, weights=None) -> scalar`.
        outputs: `(member, n, ...)`; logits, where probabilities are averaged.
        labels: `(n, ...)`.
        mean: of their "output", or of their "probability": softmax over the last axis, whose mean
            goes to `each` as its logarithm, so that its softmax is the mean itself.
        weights: `(n,)`, or None.

    Example:
        >>> import torch
        >>> sure, unsure = torch.tensor([[9.0, 0]]), torch.zeros(1, 2)
        >>> both, labels = torch.stack([sure, unsure]), torch.zeros(1, dtype=int)
        >>> round(float(loss_of_mean(cross_entropy, both, labels).neg().exp()), 2)
        0.75
    """
    given = {} if weights is None else {"weights": weights}
    if mean == "output":
        return each(outputs.mean(0), labels, **given)
    logs = outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))
    return each(logs, labels, **given)


def negative_correlation_loss(
    each: Loss,
    outputs: Tensor,
    labels: Tensor,
    *,
    strength: float = 0.5,
    mean: Mean = "probability",
    weights: Tensor | None = None,
) -> Tensor:
    """Return the members' losses, less the strength times the spread about their mean.

    `sum_m (1 - strength) each(f_m) + strength each(F)`, F the members' mean. For a squared error
    this is `sum_m (f_m - y)^2 - strength (f_m - F)^2` (Liu and Yao 1999): the ambiguity
    decomposition turns one into the other. Of the cross-entropy and the mean of outputs it takes
    off the divergence `KL(softmax(F) || softmax(f_m))` likewise (Webb et al. 2020). The sum gives
    each member the gradients that it would have alone; a strength of 1 is `loss_of_mean`, times
    the members.

    Args:
        each: a loss of one member: `(outputs, labels, *, weights=None) -> scalar`.
        outputs: `(member, n, ...)`; logits, where probabilities are averaged.
        labels: `(n, ...)`.
        strength: 0 to 1.
        mean: as for `loss_of_mean`.
        weights: `(n,)`, or None.

    Example:
        >>> import torch
        >>> squared = lambda outputs, labels: (outputs - labels).square().sum()
        >>> outputs, labels = torch.tensor([[1.0], [3.0]]), torch.zeros(1)
        >>> float(negative_correlation_loss(squared, outputs, labels, mean="output"))
        9.0
    """
    given = {} if weights is None else {"weights": weights}
    alone = sum((each(one, labels, **given) for one in outputs), outputs.new_zeros(()))
    together = loss_of_mean(each, outputs, labels, mean=mean, weights=weights)
    return (1 - strength) * alone + strength * len(outputs) * together


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy}

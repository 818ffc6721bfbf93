"""Losses that recipes may name: `(outputs, labels, *, weights=None) -> scalar`."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from polyfuse.errors import DataError
from polyfuse.losses.characters import character_cross_entropy

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

    Raises:
        DataError: outputs with other heads than the labels.

    Example:
        >>> import torch
        >>> labels = torch.zeros(2, 6, dtype=int)
        >>> round(float(cross_entropy(torch.zeros(2, 6, 11), labels)), 3)
        14.387
    """
    _refuse_other_heads("cross_entropy", logits, labels)
    each = functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        reduction="sum" if weights is None else "none",
        label_smoothing=label_smoothing,
    )
    if weights is not None:
        each = (each.view(len(labels), -1).sum(1) * weights).sum()
    return each / len(labels)


def focal(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy, less for samples that are sure already; the heads' losses are summed.

    `-(1 - p)^gamma ln p`, p the probability of the true class (Lin et al. 2017, equation 4). Their
    factor alpha for rare classes is `class_weights` of `FitOptions`.

    Args:
        logits: `(n, classes)`, or `(n, heads, classes)`.
        labels: `(n,)`, or `(n, heads)`, int64.
        weights: `(n,)`, of a mean of 1 over all samples, or None.
        gamma: 0 or more; 0 is the cross-entropy.

    Raises:
        DataError: gamma is below 0, or outputs with other heads than the labels.

    Example:
        >>> round(float(focal(torch.zeros(1, 2), torch.zeros(1, dtype=int))), 4)  # ln(2) / 4
        0.1733
    """
    if not gamma >= 0:
        raise DataError(f"focal: gamma={gamma}; type 0 or more")
    _refuse_other_heads("focal", logits, labels)
    logs = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    unsure = (-torch.expm1(logs)).clamp_min(torch.finfo(logs.dtype).tiny)  # 0^gamma has no slope
    return _mean((-(unsure**gamma) * logs).reshape(len(labels), -1).sum(1), weights)


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    positive_weight: float | Sequence[float] | None = None,
) -> Tensor:
    """Mean over samples and labels of the cross-entropy of each label, on or off by itself.

    Args:
        logits: `(n, labels)`, of "on"; or `(n,)`.
        labels: of the same shape, 0 or 1, int or float.
        weights: `(n,)`, of a mean of 1 over all samples, or None.
        positive_weight: of "on" in the loss, for labels that are rarely on: a number, or one a
            label.

    Returns:
        A scalar, in nats a label.

    Raises:
        DataError: labels of another shape.

    Example:
        >>> round(float(binary_cross_entropy(torch.zeros(1, 3), torch.ones(1, 3))), 4)
        0.6931
    """
    _refuse_misfit(logits, labels)
    more = None if positive_weight is None else torch.tensor(positive_weight).to(logits)
    each = functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none", pos_weight=more
    )
    return _mean(each, weights)


def mean_squared_error(outputs: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean over samples and numbers of the squared difference.

    Args:
        outputs: `(n, ...)` predicted numbers.
        labels: of the same shape.
        weights: `(n,)`, of a mean of 1 over all samples, or None.

    Raises:
        DataError: labels of another shape, which would be spread over the outputs.

    Example:
        >>> float(mean_squared_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])))
        2.0
    """
    return _mean(_difference(outputs, labels).square(), weights)


def mean_absolute_error(
    outputs: Tensor, labels: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Mean over samples and numbers of the absolute difference.

    Args:
        outputs: `(n, ...)` predicted numbers.
        labels: of the same shape.
        weights: `(n,)`, of a mean of 1 over all samples, or None.

    Raises:
        DataError: labels of another shape.

    Example:
        >>> float(mean_absolute_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])))
        1.0
    """
    return _mean(_difference(outputs, labels).abs(), weights)


def huber(
    outputs: Tensor, labels: Tensor, *, weights: Tensor | None = None, delta: float = 1.0
) -> Tensor:
    """Half the squared difference, but a straight line beyond `delta` (Huber 1964).

    Args:
        outputs: `(n, ...)` predicted numbers.
        labels: of the same shape.
        weights: `(n,)`, of a mean of 1 over all samples, or None.
        delta: more than 0, in the unit of the labels.

    Raises:
        DataError: labels of another shape, or a delta that is not above 0.

    Example:
        >>> huber(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0])).item()  # (0.5 + 2.5) / 2
        1.5
    """
    if not delta > 0:
        raise DataError(f"huber: delta={delta}; type more than 0")
    _refuse_misfit(outputs, labels)
    labels = labels.to(outputs.dtype)
    each = functional.huber_loss(outputs, labels, reduction="none", delta=delta)
    return _mean(each, weights)


def gaussian_nll(outputs: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean over samples and numbers of the negative log-likelihood of normal distributions.

    `(ln(2 pi) + s + (y - m)^2 exp(-s)) / 2`, s the logarithm of the variance (Nix and Weigend
    1994), so that any output is a variance above 0.

    Args:
        outputs: `(n, ..., 2)`, mean and log-variance of each number.
        labels: `(n, ...)`.
        weights: `(n,)`, of a mean of 1 over all samples, or None.

    Returns:
        A scalar, in nats a number.

    Raises:
        DataError: outputs that are no pairs, or labels of another shape.

    Example:
        >>> round(float(gaussian_nll(torch.zeros(1, 2), torch.zeros(1))), 4)  # ln(2 pi) / 2
        0.9189
    """
    if outputs.shape[-1:] != (2,):
        raise DataError(
            f"gaussian_nll: outputs have shape {tuple(outputs.shape)}; a model of mean and "
            "log-variance ends with an axis of 2"
        )
    mean, log_variance = outputs.unbind(-1)
    scaled = _difference(mean, labels).square() * torch.exp(-log_variance)
    return _mean((math.log(2 * math.pi) + log_variance + scaled) / 2, weights)


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


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "character_cross_entropy": character_cross_entropy,
    "focal": focal,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "huber": huber,
    "gaussian_nll": gaussian_nll,
}


def _mean(each: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over samples, each first the mean of its own numbers, times its weight."""
    if weights is None:
        return each.mean()
    return (each.reshape(len(each), -1).mean(1) * weights).mean()


def _refuse_other_heads(name: str, logits: Tensor, labels: Tensor) -> None:
    """Refuse a head that has no labels: it would be left out of the loss, and nobody told."""
    if logits.shape[:-1] == labels.shape:
        return
    more = logits.ndim == 3 and logits.shape[1] == labels.shape[-1] + 1
    raise DataError(
        f"{name} compares outputs {tuple(logits.shape)} with labels {tuple(labels.shape)}; "
        + (
            "where the last head is that of the length, the loss is character_cross_entropy"
            if more
            else "a label has one row of classes: bring outputs (..., classes) for labels (...)"
        )
    )


def _difference(outputs: Tensor, labels: Tensor) -> Tensor:
    _refuse_misfit(outputs, labels)
    return outputs - labels.to(outputs.dtype)


def _refuse_misfit(outputs: Tensor, labels: Tensor) -> None:
    """Refuse what would be broadcast: `(n, 1)` less `(n,)` is `(n, n)`, and nobody is told."""
    if outputs.shape != labels.shape:
        raise DataError(
            f"the loss compares outputs {tuple(outputs.shape)} with labels {tuple(labels.shape)}; "
            "bring the same shape: a model whose output is output.squeeze(-1), or labels[:, None]"
        )

"""Losses that recipes may name: `(outputs, labels, *, weights=None) -> scalar`."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


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
        each = (each.view(labels.shape).flatten(1).sum(1) * weights).sum()
    return each / len(labels)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy}

"""Losses that recipes may name: `(logits, labels) -> scalar`."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over samples; over several heads the heads' losses are summed.

    Args:
        logits: `(n, classes)`, or `(n, heads, classes)`.
        labels: `(n,)`, or `(n, heads)`, int64.
        label_smoothing: 0 to 1 (Szegedy et al. 2016).

    Returns:
        A scalar, in nats a sample.

    Example:
        >>> import torch
        >>> labels = torch.zeros(2, 6, dtype=int)
        >>> round(float(cross_entropy(torch.zeros(2, 6, 11), labels)), 3)
        14.387
    """
    summed = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="sum", label_smoothing=label_smoothing
    )
    return summed / len(labels)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy}

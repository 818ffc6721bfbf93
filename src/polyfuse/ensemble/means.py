"""Means of logits that need not be stacked: what is added up, and what is made of the sum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyfuse.combine import geometric_mean, mean_logit, mean_probability, mean_value

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mean:
    """A combiner as `outer(sum_m w_m inner(z_m))`, the same numbers as the combiner's own.

    Attributes:
        inner: of a member's output in the wide precision.
        outer: of the weighted sum.
    """

    inner: Step
    outer: Step


def as_mean(combiner: Any, options: Mapping[str, Any]) -> Mean | None:
    """Return a combiner as a mean; None where it is none, or not of logits.

    Example:
        >>> as_mean(mean_logit, {}).outer(torch.zeros(2)).tolist()
        [0.5, 0.5]
    """
    if combiner is mean_value and not options:
        return Mean(_same, _same)
    exclusive = options.get("exclusive", True)
    if options.get("space", "logit") != "logit" or options.keys() - {"space", "exclusive"}:
        return None
    squash = _softmax if exclusive else torch.sigmoid
    if combiner is mean_probability:
        return Mean(squash, _same)
    if combiner is mean_logit:
        return Mean(_same, squash)
    if combiner is geometric_mean and exclusive:
        return Mean(_log_softmax, _softmax)
    return None


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which outputs are added.

    Example:
        >>> wide(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def _same(scores: Tensor) -> Tensor:
    return scores


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _log_softmax(scores: Tensor) -> Tensor:
    return scores.log_softmax(-1)

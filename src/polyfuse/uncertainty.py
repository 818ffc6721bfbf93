"""How unsure an ensemble is of each sample: in all, by the data, by its members' dispute."""

from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.errors import DataError

Array = TypeVar("Array", NDArray[Any], Tensor)
# Log-probabilities of stored float16 sum to one within this.
_SUM_TOLERANCE = 1e-2


class Uncertainty(NamedTuple):
    """Uncertainty of each sample: `total = aleatoric + epistemic`.

    Attributes:
        total: of the members' mean prediction.
        aleatoric: what the members see in the data, averaged.
        epistemic: what they dispute; more data or more members would tell.
    """

    total: Any
    aleatoric: Any
    epistemic: Any


def entropies(
    predictions: Array,
    *,
    space: Literal["logit", "prob", "log_prob"] = "logit",
    weights: Any = None,
) -> Uncertainty:
    """Entropy of the mean, mean entropy, and their difference, the mutual information, in nats.

    `H(sum_m w_m p_m) = sum_m w_m H(p_m) + sum_m w_m KL(p_m || sum_m w_m p_m)`: the last part is
    the information that a sample's label would give on which member is right (Houlsby 2011,
    Depeweg 2018). Identical members: 0.

    Args:
        predictions: `(member, sample, ..., class)` floating.
        space: what they are.
        weights: `(member,)`, scaled to sum to one; equal where None.

    Returns:
        `(sample, ...)` each, of the kind that came in, float64 where that came in and float32
        otherwise. None is negative.

    Raises:
        DataError: no members, NaN, numbers that are not of that space, weights that do not fit.

    Example:
        >>> found = entropies(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), space="prob")
        >>> [part.round(4).tolist() for part in found]
        [[0.6931], [0.0], [0.6931]]
    """
    values = _floating(predictions)
    _check_axes(values, "(member, sample, ..., class)", 3)
    logs = _log_probabilities(values, space)
    share = _share(weights, values).reshape(-1, *[1] * (logs.ndim - 1))
    probabilities = logs.exp()
    mean = (share * probabilities).sum(0)
    log_mean = torch.where(mean > 0, mean, 1.0).log()
    # 0 ln 0 is 0; log-probabilities of minus infinity are only met with a probability of 0.
    finite = torch.where(probabilities > 0, logs, 0.0)
    aleatoric = (share * probabilities * finite).sum((0, -1)).clamp(max=0.0).abs()
    distance = torch.where(probabilities > 0, probabilities * (finite - log_mean), 0.0)
    epistemic = (share * distance).sum((0, -1)).clamp(min=0.0)
    return _like(predictions, aleatoric, epistemic)


def variances(predictions: Array, *, weights: Any = None) -> Uncertainty:
    """Variance of a mixture, taken apart by the law of total variance.

    `var = sum_m w_m v_m + sum_m w_m (mu_m - mu)^2` with `mu = sum_m w_m mu_m` (Lakshminarayanan
    2017). Identical members: the second part is 0.

    Args:
        predictions: `(member, sample, ..., 2)` mean and variance, floating.
        weights: `(member,)`, scaled to sum to one; equal where None.

    Returns:
        `(sample, ...)` each, of the kind that came in, float64 where that came in and float32
        otherwise.

    Raises:
        DataError: no members, NaN, negative variances, weights that do not fit.

    Example:
        >>> found = variances(np.array([[[0.0, 1.0]], [[2.0, 3.0]]]))
        >>> [part.tolist() for part in found]
        [[3.0], [2.0], [1.0]]
    """
    values = _floating(predictions)
    _check_axes(values, "(member, sample, ..., 2)", 3, last=2)
    means, spread = values[..., 0], values[..., 1]
    if bool((spread < 0).any()):
        raise DataError(f"variances down to {float(spread.min()):.4g}; apply exp to log-variances")
    share = _share(weights, values).reshape(-1, *[1] * (means.ndim - 1))
    # Around the first member, so that members who agree differ from their mean by exactly nothing.
    moved = means - means[0]
    epistemic = (share * (moved - (share * moved).sum(0)) ** 2).sum(0)
    return _like(predictions, (share * spread).sum(0), epistemic)


def _floating(predictions: Any) -> Tensor:
    """Return members' predictions as a tensor, in the precision to sum in."""
    if not isinstance(predictions, np.ndarray | Tensor):
        raise DataError(
            f"expected a NumPy array or torch tensor, got {type(predictions).__name__}; "
            "stack the members first: np.stack(predictions)"
        )
    values = torch.as_tensor(predictions)
    if not values.is_floating_point():
        raise DataError(f"expected floating predictions, got {values.dtype}: votes have no entropy")
    values = values if values.dtype == torch.float64 else values.float()
    if bool(values.isnan().any()):
        raise DataError("predictions have NaN; leave out the rows that a member has no say on")
    return values


def _check_axes(values: Tensor, axes: str, least: int, last: int | None = None) -> None:
    if values.ndim < least or 0 in values.shape or last not in (None, values.shape[-1]):
        raise DataError(f"expected {axes}, none empty; got shape {tuple(values.shape)}")


def _log_probabilities(values: Tensor, space: str) -> Tensor:
    if space == "logit":
        return _finite(values.log_softmax(-1))
    if space not in ("prob", "log_prob"):
        raise DataError(f"space={space!r} is not known; use 'logit', 'prob' or 'log_prob'")
    probabilities = values if space == "prob" else values.exp()
    sums = probabilities.sum(-1)
    if bool((probabilities < 0).any()) or bool(((sums - 1).abs() > _SUM_TOLERANCE).any()):
        worst = float(sums.flatten()[(sums - 1).abs().argmax()])
        raise DataError(
            f"these are no probabilities (one row sums to {worst:.4g}, the lowest is "
            f"{float(probabilities.min()):.4g}); of logits say space='logit'"
        )
    return (probabilities / sums[..., None]).log()


def _finite(logs: Tensor) -> Tensor:
    if bool(logs.isnan().any()):
        raise DataError("logits of plus infinity, or of minus infinity in all classes; clip them")
    return logs


def _share(weights: Any, values: Tensor) -> Tensor:
    if weights is None:
        return values.new_full((len(values),), 1 / len(values))
    share = torch.as_tensor(weights, dtype=values.dtype, device=values.device)
    total = float(share.sum())
    if share.shape != (len(values),) or bool((share < 0).any()) or not 0 < total < float("inf"):
        raise DataError(
            f"expected {len(values)} weights of 0 or more, not all 0; got {share.tolist()}"
        )
    return share / total


def _like(predictions: Any, aleatoric: Tensor, epistemic: Tensor) -> Uncertainty:
    parts = (aleatoric + epistemic, aleatoric, epistemic)
    return Uncertainty(*(p if isinstance(predictions, Tensor) else p.numpy() for p in parts))

"""Bayesian model averaging: members weighted by how likely they make held-out labels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.combine.base import Array, Members, shares
from polyfuse.errors import DataError


def bayesian_weights(log_likelihoods: Array, *, prior: Any = None) -> Array:
    """Return each member's posterior probability of being the right model.

    On many rows nearly all weight goes to one member: the posterior asks which single member made
    the labels, not how best to combine them (Minka 2002).

    Args:
        log_likelihoods: `(member,)` sums over rows, or `(member, row)` of `log p_m(y)`, on the
            same rows for all members, none of which a member trained on.
        prior: `(member,)`, 0 or more; equal where None.

    Returns:
        `(member,)` float64 weights that sum to 1, the kind of array that came in.

    Raises:
        DataError: other axes, NaN, members that are all impossible, a wrong prior.

    Example:
        >>> bayesian_weights(np.log([[0.9, 0.8], [0.6, 0.6]])).round(3).tolist()
        [0.667, 0.333]
    """
    given: Any = log_likelihoods
    on_torch = isinstance(given, Tensor)
    evidence = np.asarray(given.detach().cpu() if on_torch else given, np.float64)
    if evidence.ndim not in (1, 2) or 0 in evidence.shape:
        raise DataError(
            f"expected log-likelihoods (member,) or (member, row), got shape {evidence.shape}"
        )
    evidence = evidence.sum(1) if evidence.ndim == 2 else evidence
    before = np.array(shares(np.ones(len(evidence)) if prior is None else prior, len(evidence)))
    with np.errstate(divide="ignore"):
        after = evidence + np.log(before)
    if np.isnan(after).any() or not np.isfinite(after.max()):
        raise DataError(
            f"the members' log-likelihoods are {evidence.tolist()}: leave out rows that are NaN "
            "for one member, and clip probabilities of 0"
        )
    raised = np.exp(after - after.max())
    weights: Any = raised / raised.sum()
    if on_torch:
        weights = torch.from_numpy(weights).to(given.device)
    posterior: Array = weights
    return posterior


def bayesian_average(
    predictions: Array,
    *,
    log_likelihoods: Any,
    prior: Any = None,
    space: str = "logit",
    exclusive: bool = True,
) -> Array:
    """Average probabilities with the weights that held-out likelihoods give (BMA).

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        log_likelihoods: `(member,)` or `(member, row)`, as `bayesian_weights` has them.
        prior: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_probability` and `bayesian_weights`.

    Example:
        >>> p = np.array([[[0.9, 0.1]], [[0.3, 0.7]]])
        >>> bayesian_average(p, log_likelihoods=np.log([0.6, 0.2]), space="prob").tolist()
        [[0.75, 0.25]]
    """
    weights = bayesian_weights(log_likelihoods, prior=prior)
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights)
    return members.answer(members.normalised(members.mean(members.probabilities())))

"""Means of the members' predictions, and the rules of fixed form: product, maximum, minimum."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from polyfuse.combine.base import Array, Members
from polyfuse.errors import DataError


def mean_probability(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Average the members' probabilities: `p = 1/M sum_m softmax(z_m)`.

    NLL and Brier score of the result are never worse than the members' mean (Jensen).

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own, in
            `(member, sample)` or `(member, sample, label)`.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: no members, too few axes, integers, NaN, numbers that are not in this space,
            wrong weights.

    Example:
        >>> import numpy as np
        >>> mean_probability(np.array([[[0.0, 0.0]], [[9.0, -9.0]]])).round(2).tolist()
        [[0.75, 0.25]]
    """
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights)
    return members.answer(
        members.normalised(members.mean(members.passing_probabilities(), passing=True))
    )


def mean_logit(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Average the members' logits, then softmax: the renormalised geometric mean (Hinton 2002).

    A class that one member rules out is ruled out.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_probability`; a row in which every class is ruled out.

    Example:
        >>> import numpy as np
        >>> mean_logit(np.array([[[0.0, 0.0]], [[2.0, -2.0]]])).round(2).tolist()
        [[0.88, 0.12]]
    """
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights)
    return members.answer(members.softmax(members.mean(members.scores(), passing=True)))


def geometric_mean(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Average the members' log-probabilities, and renormalise: `p ~ prod_m p_m^(1/M)`.

    The same as `mean_logit`, since softmax does not see a constant added to a member's logits; it
    is computed over logarithms, so that nothing underflows.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_logit`.

    Example:
        >>> import numpy as np
        >>> geometric_mean(np.array([[[0.8, 0.2]], [[0.5, 0.5]]]), space="prob").round(3).tolist()
        [[0.667, 0.333]]
    """
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights)
    return members.answer(members.mean(members.logs()).softmax(-1))


def harmonic_mean(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Average the reciprocals of the members' probabilities, and renormalise what they give.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_logit`.

    Example:
        >>> import numpy as np
        >>> harmonic_mean(np.array([[[0.8, 0.2]], [[0.5, 0.5]]]), space="prob").round(3).tolist()
        [[0.683, 0.317]]
    """
    return power_mean(predictions, exponent=-1.0, weights=weights, space=space, exclusive=exclusive)


def power_mean(
    predictions: Array,
    *,
    exponent: float = 0.5,
    weights: Any = None,
    space: str = "logit",
    exclusive: bool = True,
) -> Array:
    """Average powers of the members' probabilities, and renormalise: `(mean_m p_m^r)^(1/r)`.

    Exponent 1 is the mean of probabilities, 0 their geometric and -1 their harmonic mean.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        exponent: `r`, finite; the lower, the more one member's doubt counts.
        weights: `(member,)`, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_logit`, and an exponent that is infinite or NaN.

    Example:
        >>> import numpy as np
        >>> power_mean(np.array([[[0.8, 0.2]], [[0.5, 0.5]]]), space="prob").round(3).tolist()
        [[0.658, 0.342]]
    """
    if not math.isfinite(exponent):
        raise DataError(f"exponent is {exponent}; for its limits use maximum or minimum")
    if exponent == 0:
        return geometric_mean(predictions, weights=weights, space=space, exclusive=exclusive)
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights)
    shares = members.shares or [1 / len(members)] * len(members)
    powers = [
        logs * exponent + math.log(share)
        for logs, share in zip(members.logs(), shares, strict=True)
        if share
    ]
    return members.answer((_log_sum(powers) / exponent).softmax(-1))


def product(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Multiply the members' probabilities, and renormalise (Kittler et al. 1998).

    Right for members whose evidence is independent and classes equally likely beforehand. Copies of
    one member give a more confident answer than the member: this is no mean.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)` exponents, 0 or more, used as they are; 1 where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_logit`.

    Example:
        >>> import numpy as np
        >>> product(np.array([[[0.8, 0.2]], [[0.8, 0.2]]]), space="prob").round(3).tolist()
        [[0.941, 0.059]]
    """
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights)
    total = float(len(members)) if weights is None else float(sum(map(float, weights)))
    return members.answer((members.mean(members.logs()) * total).softmax(-1))


def maximum(predictions: Array, *, space: str = "logit", exclusive: bool = True) -> Array:
    """Take every class's largest probability over the members, and renormalise.

    Args:
        predictions: `(member, sample, ..., class)`, floating; `(member, sample, ...)` values.
        space: what the numbers are: "logit", "prob", "log_prob", or "value": then nothing is
            renormalised.
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_probability`.

    Example:
        >>> import numpy as np
        >>> maximum(np.array([[[0.9, 0.1]], [[0.7, 0.3]]]), space="prob").round(3).tolist()
        [[0.75, 0.25]]
    """
    return _extreme(predictions, torch.maximum, space, exclusive)


def minimum(predictions: Array, *, space: str = "logit", exclusive: bool = True) -> Array:
    """Take every class's smallest probability over the members, and renormalise.

    Args:
        predictions: `(member, sample, ..., class)`, floating; `(member, sample, ...)` values.
        space: what the numbers are: "logit", "prob", "log_prob", or "value": then nothing is
            renormalised.
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `mean_logit`.

    Example:
        >>> import numpy as np
        >>> minimum(np.array([[[0.9, 0.1]], [[0.7, 0.3]]]), space="prob").round(3).tolist()
        [[0.875, 0.125]]
    """
    return _extreme(predictions, torch.minimum, space, exclusive)


def _extreme(predictions: Array, choose: Any, space: str, exclusive: bool) -> Array:
    """Choose among logarithms, which keep apart what is too small for a probability."""
    spaces = ("logit", "prob", "log_prob", "value")
    members = Members(predictions, space=space, exclusive=exclusive, spaces=spaces)
    if space == "value":
        return members.answer(reduce(choose, members.probabilities()))
    return members.answer(reduce(choose, members.logs()).softmax(-1))


def _log_sum(logs: Sequence[Tensor]) -> Tensor:
    """Return `log sum_m exp(l_m)`, to the same bit wherever a number lies in a tensor."""
    top = reduce(torch.maximum, logs)
    shift = top.masked_fill(top.isinf(), 0.0)  # all are -inf, or one is inf: the sum is too
    return reduce(torch.add, [(part - shift).exp() for part in logs]).log() + shift

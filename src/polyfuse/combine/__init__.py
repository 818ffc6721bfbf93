"""Combine the predictions of several members: pure functions over arrays, one dict of them all.

Each takes `(member, sample, ..., class)` predictions, by default logits, and returns
`(sample, ..., class)` probabilities (floating) or `(sample, ...)` decided classes (int64). NumPy
in, NumPy out; torch in, torch out on the same device. `CLASS_COMBINERS` need nothing but the
members' logits, so recipes may name them; `BOOSTED_COMBINERS` also take the weights that boosting
gave to the members; `VALUE_COMBINERS` are for regression.
"""

from collections.abc import Callable
from typing import Any

from polyfuse.combine.base import check_members as check_members
from polyfuse.combine.bayes import bayesian_average as bayesian_average
from polyfuse.combine.bayes import bayesian_weights as bayesian_weights
from polyfuse.combine.boosted import boosted_sum as boosted_sum
from polyfuse.combine.boosted import boosted_vote as boosted_vote
from polyfuse.combine.chunks import in_chunks as in_chunks
from polyfuse.combine.means import geometric_mean as geometric_mean
from polyfuse.combine.means import harmonic_mean as harmonic_mean
from polyfuse.combine.means import maximum as maximum
from polyfuse.combine.means import mean_logit as mean_logit
from polyfuse.combine.means import mean_probability as mean_probability
from polyfuse.combine.means import minimum as minimum
from polyfuse.combine.means import power_mean as power_mean
from polyfuse.combine.means import product as product
from polyfuse.combine.orders import median as median
from polyfuse.combine.orders import rank_mean as rank_mean
from polyfuse.combine.orders import trimmed_mean as trimmed_mean
from polyfuse.combine.orders import winsorised_mean as winsorised_mean
from polyfuse.combine.regression import mean_value as mean_value
from polyfuse.combine.regression import mixture_moments as mixture_moments
from polyfuse.combine.regression import quantile_average as quantile_average
from polyfuse.combine.votes import hard_vote as hard_vote
from polyfuse.combine.votes import soft_vote as soft_vote

CLASS_COMBINERS: dict[str, Callable[..., Any]] = {
    "mean_probability": mean_probability,
    "mean_logit": mean_logit,
    "geometric_mean": geometric_mean,
    "harmonic_mean": harmonic_mean,
    "power_mean": power_mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "winsorised_mean": winsorised_mean,
    "maximum": maximum,
    "minimum": minimum,
    "product": product,
    "rank_mean": rank_mean,
    "soft_vote": soft_vote,
    "hard_vote": hard_vote,
}

BOOSTED_COMBINERS: dict[str, Callable[..., Any]] = {
    "boosted_vote": boosted_vote,
    "boosted_sum": boosted_sum,
}

VALUE_COMBINERS: dict[str, Callable[..., Any]] = {
    "mean_value": mean_value,
    "mixture_moments": mixture_moments,
    "quantile_average": quantile_average,
}

COMBINERS: dict[str, Callable[..., Any]] = {
    **CLASS_COMBINERS,
    **BOOSTED_COMBINERS,
    **VALUE_COMBINERS,
    "bayesian_average": bayesian_average,
}

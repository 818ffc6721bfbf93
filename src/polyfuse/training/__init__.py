"""Which models to train, on what rows: strategies by the names that recipes use."""

from collections.abc import Callable

from polyfuse.training.bagging import bagging
from polyfuse.training.base import Strategy
from polyfuse.training.fge import fge
from polyfuse.training.gradient_boosting import gradient_boosting
from polyfuse.training.heterogeneous import heterogeneous
from polyfuse.training.holdout import holdout
from polyfuse.training.independent import independent
from polyfuse.training.joint import joint, negative_correlation
from polyfuse.training.kfold import kfold
from polyfuse.training.mc import mc_batchnorm, mc_dropout
from polyfuse.training.refit import refit
from polyfuse.training.samme import samme
from polyfuse.training.snapshot import snapshot
from polyfuse.training.soft_boosting import soft_boosting
from polyfuse.training.swag import swag

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "bagging": bagging,
    "fge": fge,
    "gradient_boosting": gradient_boosting,
    "heterogeneous": heterogeneous,
    "holdout": holdout,
    "independent": independent,
    "joint": joint,
    "kfold": kfold,
    "mc_batchnorm": mc_batchnorm,
    "mc_dropout": mc_dropout,
    "negative_correlation": negative_correlation,
    "refit": refit,
    "samme": samme,
    "snapshot": snapshot,
    "soft_boosting": soft_boosting,
    "swag": swag,
}

BOOSTING = {
    "samme": "boosted_vote",
    "gradient_boosting": "boosted_sum",
    "soft_boosting": "boosted_sum",
}
"""Those that give their members the weights that `BOOSTED_COMBINERS` take, and which fuses them."""

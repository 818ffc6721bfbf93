"""Which models to train, on what rows: strategies by the names that recipes use."""

from collections.abc import Callable

from polyfuse.training.bagging import bagging
from polyfuse.training.base import Strategy
from polyfuse.training.heterogeneous import heterogeneous
from polyfuse.training.holdout import holdout
from polyfuse.training.independent import independent
from polyfuse.training.joint import joint, negative_correlation
from polyfuse.training.kfold import kfold
from polyfuse.training.refit import refit

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "bagging": bagging,
    "heterogeneous": heterogeneous,
    "holdout": holdout,
    "independent": independent,
    "joint": joint,
    "kfold": kfold,
    "negative_correlation": negative_correlation,
    "refit": refit,
}

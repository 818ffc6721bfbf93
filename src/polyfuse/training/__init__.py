"""Which models to train, on what rows: strategies by the names that recipes use."""

from collections.abc import Callable

from polyfuse.training.base import Strategy
from polyfuse.training.joint import joint, negative_correlation
from polyfuse.training.kfold import kfold

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "joint": joint,
    "kfold": kfold,
    "negative_correlation": negative_correlation,
}

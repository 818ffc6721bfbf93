"""Which models to train, on what rows: strategies by the names that recipes use."""

from collections.abc import Callable

from polyfuse.training.base import Strategy
from polyfuse.training.kfold import kfold

STRATEGIES: dict[str, Callable[..., Strategy]] = {"kfold": kfold}

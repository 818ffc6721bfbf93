"""One trial of a soup: mix some checkpoints, prepare the model, evaluate it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from polyfuse.determinism import seeded, threads
from polyfuse.selection import Members
from polyfuse.soups.base import Pot, Source, Weights

Result = TypeVar("Result")


class Evaluation:
    """A trial, as a function that a worker process can be sent.

    It gives the same score in any process: with as many threads as here, and the same random draws.

    Args:
        sources: the checkpoints.
        factory: makes the model.
        evaluate: maps a model to its score.
        prepare: changes a mixed model before it is evaluated.

    Example:
        >>> sources = [{"weight": torch.tensor([[value]])} for value in (1.0, 3.0)]
        >>> factory = lambda: nn.Linear(1, 1, bias=False)
        >>> Evaluation(sources, factory, lambda model: model.weight.item(), None)((0, 1))
        2.0
    """

    def __init__(
        self,
        sources: Sequence[Source],
        factory: Callable[[], nn.Module],
        evaluate: Callable[[nn.Module], float],
        prepare: Callable[[nn.Module], Any] | None,
    ) -> None:
        """Keep what a trial needs; nothing is read before the first one."""
        self.sources, self.factory = tuple(sources), factory
        self.evaluate, self.prepare = evaluate, prepare
        self.threads = torch.get_num_threads()

    @cached_property
    def pot(self) -> Pot:
        """The checkpoints, opened in this process."""
        return self.call(lambda: Pot(self.sources, self.factory))

    def __call__(
        self, members: Members, notify: object = None, *, weights: Weights | None = None
    ) -> float:
        """Return the score of these members' mean."""

        def score() -> float:
            with torch.no_grad():
                return float(self.evaluate(self.model(members, weights)))

        return self.call(score)

    def model(self, members: Members, weights: Weights | None = None) -> nn.Module:
        """Return the prepared mean of these members; the next trial changes it."""

        def prepared() -> nn.Module:
            model = self.pot.pour(members, weights)
            if self.prepare is not None:
                self.prepare(model)
            return model.eval()

        return self.call(prepared)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function with the threads and the random draws of every trial."""
        with threads(self.threads), seeded(0):
            return function()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the opened checkpoints out: another process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "pot"}

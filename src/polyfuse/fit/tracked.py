"""The averages of one member in training: updated each step, scored each epoch, the best kept."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from polyfuse.averaging import Averages, AveragingRule
from polyfuse.data import ahead
from polyfuse.data.base import Rows, Split
from polyfuse.errors import TrainingError
from polyfuse.inference import PREDICT_BATCH

STATISTICS_ROWS = 1024  # of batch-norm, each epoch anew: the mean is known to 3 % of a deviation


class Kept(NamedTuple):
    """An average as it was in its best epoch.

    Attributes:
        state: weights, on the CPU, with batch-norm statistics of their own.
        best_epoch: from 1.
        loss: on the stopping rows; None where there are none, and the last epoch is kept.
    """

    state: dict[str, Tensor]
    best_epoch: int
    loss: float | None


class Inputs:
    """Inputs of some rows in batches, without labels; can be gone through again and again.

    Args:
        split: the data.
        rows: which.
        convert: what is done to each batch.

    Example:
        >>> from polyfuse import Arrays
        >>> rows = Inputs(Arrays(np.eye(4)), np.arange(3), lambda batch: batch.double())
        >>> [batch.shape for batch in rows]
        [torch.Size([3, 4])]
    """

    def __init__(self, split: Split, rows: Rows, convert: Callable[[Tensor], Tensor]) -> None:
        """Keep them; nothing is read yet."""
        self.split, self.rows, self.convert = split, rows, convert

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches, of equal size."""
        parts = np.array_split(self.rows, -(-len(self.rows) // PREDICT_BATCH))
        yield from map(self.convert, ahead.batches(self.split, parts))


class Tracked:
    """Averages of a model in training; like the model, each keeps the epoch that suits it best.

    Args:
        model: in training.
        rules: by name.
        steps: of the whole training.
        inputs: to measure batch-norm statistics of averaged weights on.
        precision: the context in which the model runs.

    Raises:
        TrainingError: an average that would begin after training has ended.

    Example:
        >>> from polyfuse.averaging import swa
        >>> tracked = Tracked(nn.Linear(2, 1), {"swa": swa()}, 4, [])
        >>> tracked.step(8), tracked.epoch(lambda: 0.5)
        (None, {'swa_stopping_loss': 0.5})
        >>> tracked.best["swa"].best_epoch
        1
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, AveragingRule],
        steps: int,
        inputs: Any,
        precision: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        """Take hold of the model; nothing is averaged yet."""
        _refuse_late(rules, steps)
        self.averages = Averages(model, rules)
        self.inputs, self.precision = inputs, precision
        self.best: dict[str, Kept] = {}

    def step(self, rows: int) -> None:
        """Take in the weights after a step of the optimiser, that so many rows have led to."""
        self.averages.update(samples=rows)

    def epoch(self, evaluate: Callable[[], float] | None) -> dict[str, float]:
        """End an epoch: score each average that has begun, and keep it if it is its best so far.

        Args:
            evaluate: the model's loss on the stopping rows, with the weights it has then; None
                where there are none: an average is then kept as it is now.

        Returns:
            The losses, as facts for the history.
        """
        self.averages.end_epoch()
        begun = [name for name in self.averages.names if self.averages.updates(name)]
        if evaluate is None:
            for name in begun:
                self._measure(name)
                self._keep(name, None)
            return {}
        return {f"{name}_stopping_loss": self._score(name, evaluate) for name in begun}

    def begun(self) -> bool:
        """Tell whether every average has been scored once."""
        return set(self.best) == set(self.averages.names)

    def kept(self) -> dict[str, Kept]:
        """Return what is kept of each average that has been scored, in the order of the rules."""
        return {name: self.best[name] for name in self.averages.names if name in self.best}

    def state(self) -> dict[str, Any]:
        """Return all that goes on, as `flatten` takes it."""
        best = {name: tuple(kept) for name, kept in self.best.items()}
        return {"running": self.averages.state_dict(), "best": best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.averages.load_state_dict(state["running"])
        self.best = {name: Kept(*kept) for name, kept in state["best"].items()}

    def _score(self, name: str, evaluate: Callable[[], float]) -> float:
        self._measure(name)
        with self.averages.applied(name):
            loss = evaluate()
        best = self.best[name].loss if name in self.best else None
        if best is None or loss < best:
            self._keep(name, loss)
        return loss

    def _measure(self, name: str) -> None:
        with self.precision():
            self.averages.reestimate(name, self.inputs)

    def _keep(self, name: str, loss: float | None) -> None:
        average = self.averages.average(name)
        state = {each: tensor.detach().cpu().clone() for each, tensor in average.items()}
        self.best[name] = Kept(state, self.averages.epoch, loss)


def _refuse_late(rules: Mapping[str, AveragingRule], steps: int) -> None:
    late = {name: rule.timing.start_step or 0 for name, rule in rules.items()}
    if faults := [f"{name}: start_step={n}" for name, n in late.items() if n >= steps]:
        raise TrainingError(
            f"averaging: {'; '.join(faults)}; training has {steps} steps, so it must be less"
        )

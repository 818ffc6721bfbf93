"""Soups: one model out of several checkpoints, chosen by a score on held-out data.

The members are candidates of a `Soup`; which of them, and with what weights, is decided by
`uniform`, `greedy`, `forward_backward` or `learned`. A trial evaluates one model. Finished trials
are kept in a journal, so a search that is stopped goes on, and they may run side by side.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from polyfuse.errors import TrainingError
from polyfuse.runners.base import Runner
from polyfuse.selection import Members, Scores, Selection, Trial, forward_backward, greedy, ranked
from polyfuse.soups.base import Source, Weights
from polyfuse.soups.evaluation import Evaluation
from polyfuse.soups.journal import Journal, key
from polyfuse.soups.learned import learn
from polyfuse.weights import average, save_checkpoint

ALIKE = 0.5  # a mean cosine below this looks like independent runs


class SoupResult(NamedTuple):
    """A soup: what went in, and what it is worth.

    Attributes:
        name: of the recipe that made it.
        members: numbers of the checkpoints in it, in the order they were added.
        weights: one a member; or, for each layer by its name, one a member.
        score: on the held-out data.
        trials: all subsets that were tried, in order.
        warnings: what to know before it is used, a sentence each.
    """

    name: str
    members: Members
    weights: Weights
    score: float
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...] = ()


class Soup:
    """Checkpoints of one architecture, and a score that decides what becomes of them.

    Args:
        checkpoints: files, folders or state dicts. They are read one at a time.
        factory: makes the model that they belong to.
        evaluate: maps a model in eval mode to its score on held-out data; a finite number.
        prepare: changes a mixed model before it is evaluated or saved: re-estimates batch-norm
            statistics, for example `partial(reestimate, loader=...)`.
        journal: file that keeps finished trials; the next search of the same checkpoints and the
            same functions goes on from them.
        runner: where trials run; in this process by default. The results do not depend on it.
        higher_is_better: False where the score is a loss.

    Raises:
        CheckpointError: checkpoints that do not fit the model.
        RunError: a journal of other checkpoints or functions, or a damaged one.

    Example:
        >>> import torch
        >>> sources = [{"weight": torch.tensor([[value]])} for value in (1.0, 2.0, 9.0)]
        >>> def near_two(model):
        ...     return -abs(2.0 - model.weight.item())
        >>> soup = Soup(sources, lambda: nn.Linear(1, 1, bias=False), near_two)
        >>> soup.uniform().score, soup.greedy().members
        (-2.0, (1,))
    """

    def __init__(
        self,
        checkpoints: Sequence[Source],
        factory: Callable[[], nn.Module],
        evaluate: Callable[[nn.Module], float],
        *,
        prepare: Callable[[nn.Module], Any] | None = None,
        journal: str | Path | None = None,
        runner: Runner | None = None,
        higher_is_better: bool = True,
    ) -> None:
        """Compare the checkpoints with the model, and read the journal."""
        self.evaluation = Evaluation(checkpoints, factory, evaluate, prepare)
        self.runner = runner
        self.everyone: Members = tuple(range(len(self.evaluation.pot.sources)))
        path = None if journal is None else Path(journal)
        identity = "" if path is None else key(checkpoints, evaluate, prepare)
        self.scores = Scores(
            self.evaluation,
            known=Journal(path, identity),
            over=self._over,
            at_once=getattr(runner, "workers", None) or len(getattr(runner, "devices", ())) or 1,
            higher_is_better=higher_is_better,
        )

    def uniform(self) -> SoupResult:
        """Mix all checkpoints in equal parts."""
        [score] = self.scores.of([self.everyone])
        trial = Trial(self.everyone, score, True)
        return self._result("uniform", Selection(self.everyone, score, (trial,)))

    def greedy(self, *, ties: bool = False) -> SoupResult:
        """Add checkpoints, the best first, and keep each that makes the score better.

        Args:
            ties: keep one that leaves the score as it is, too.
        """
        order = ranked(self.everyone, self.scores)
        return self._result("greedy", greedy(order, self.scores, ties=ties))

    def forward_backward(self) -> SoupResult:
        """Add what helps most and drop what hurts most, until neither helps."""
        return self._result("forward_backward", forward_backward(self.everyone, self.scores))

    def learned(
        self,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Tensor],
        *,
        steps: int = 100,
        lr: float = 0.05,
        per_layer: bool = False,
    ) -> SoupResult:
        """Learn the weights by gradient on a held-out loss; all checkpoints are held in memory.

        Args:
            batches: of `(inputs, targets)`; a list or a loader, which is read again and again.
            loss: `(outputs, targets) -> scalar`.
            steps: of AdamW.
            lr: its learning rate.
            per_layer: weights for each layer; else one set for all.

        Raises:
            DataError: no batches, or a loss or score that is NaN or infinite.
        """
        options = {"steps": steps, "lr": lr, "per_layer": per_layer}
        found = self.evaluation.call(lambda: learn(self.evaluation.pot, batches, loss, **options))  # type: ignore[arg-type]  # mypy widens the dict
        weights: Weights = found if per_layer else next(iter(found.values()))
        score = self.evaluation(self.everyone, weights=weights)
        trial = Trial(self.everyone, score, True)
        chosen = Selection(self.everyone, score, (trial,))
        return self._result("learned", chosen)._replace(weights=weights)

    def model(self, result: SoupResult) -> nn.Module:
        """Return a soup as a model of its own, in eval mode."""
        mixed = self.evaluation.model(result.members, _given(result))
        fresh = self.evaluation.factory()
        fresh.load_state_dict(mixed.state_dict())
        return fresh.eval()

    def save(self, result: SoupResult, out: str | Path) -> None:
        """Write a soup as a checkpoint; its name says the format.

        A plain mean of files is streamed, as `average` does, and can be verified. A soup that was
        prepared, or has weights for each layer, is written from memory.

        Args:
            result: of one of the methods.
            out: a file or a folder, as for `average`.

        Raises:
            CheckpointError: the output is an input, or its format cannot hold a tensor.
            DiskError: the file system refused.
        """
        sources = [self.evaluation.sources[member] for member in result.members]
        paths = [source for source in sources if isinstance(source, str | Path)]
        plain = self.evaluation.prepare is None and not isinstance(result.weights, Mapping)
        if plain and len(paths) == len(sources):
            average(paths, out, weights=_given(result))
            return
        save_checkpoint(self.evaluation.model(result.members, _given(result)).state_dict(), out)

    def _result(self, name: str, chosen: Selection) -> SoupResult:
        count = len(chosen.members)
        weights = (1 / count,) * count
        return SoupResult(
            name, chosen.members, weights, chosen.score, chosen.trials, self._warnings
        )

    @cached_property
    def _warnings(self) -> tuple[str, ...]:
        cosine = self.evaluation.pot.mean_cosine()
        if cosine >= ALIKE:
            return ()
        return (
            f"The checkpoints look like independent runs (mean cosine {cosine:.2f}): the mean of "
            "such weights is usually no good model. Fine-tune them from one start, or fuse their "
            "predictions.",
        )

    def _over(self, score: object, subsets: Sequence[Members]) -> Iterator[float]:
        """Score subsets in this process, or by the runner; finished ones are kept at once."""
        if self.runner is None:
            yield from map(self.evaluation, subsets)
            return
        failed = []
        for result in self.runner.map(self.evaluation, subsets, lambda *seen: None):
            if result.error:
                failed.append(f"members {list(subsets[result.number])}: {result.error}")
            else:
                self.scores.keep(subsets[result.number], result.value)
        if failed:
            raise TrainingError("\n".join(failed))
        yield from (self.scores.known[tuple(sorted(members))] for members in subsets)


def _given(result: SoupResult) -> Any:
    """Return weights that are not equal."""
    equal = not isinstance(result.weights, Mapping) and len(set(result.weights)) == 1
    return None if equal else result.weights

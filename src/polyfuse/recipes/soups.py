"""Soups of a population: its members' weights made into one model, by the names that recipes use.

Soups are chosen on validation. Batch-norm statistics are measured on training rows, which needs no
labels, before each trial. A finished soup is `fusions/NAME/`: weights, predictions and the record
that vouches for them; finished trials of an unfinished one are in `resume/`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from polyfuse import durable
from polyfuse.batchnorm import reestimate
from polyfuse.data.base import Rows, Split, Splits, task_of, truth_of
from polyfuse.determinism import threads
from polyfuse.errors import DataError
from polyfuse.fit import FitOptions
from polyfuse.inference import PREDICT_BATCH, predict
from polyfuse.metrics import LOWER_IS_BETTER, metrics_for
from polyfuse.population import Population, write_fusion
from polyfuse.soups import Soup, SoupResult
from polyfuse.tasks import mean_of

Statistics = Literal["pooled", "sample", "torch", "keep"]
Made = tuple[Soup, SoupResult]
STATISTICS_ROWS = 4096  # as many training rows measure a mean and a variance well enough


class Given:
    """What a soup of a population is made with: members, model, data, and the score that chooses.

    Args:
        population: the members.
        factory: makes their model.
        splits: the data they were trained on.
        options: how they were trained; the loss of a learned soup.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.eye(4), np.arange(4) % 2)
        >>> given = Given(Population.open("."), nn.Identity, Splits(data, data, data), FitOptions())
        >>> len(given.held_out())
        1
    """

    def __init__(
        self,
        population: Population,
        factory: Callable[[], nn.Module],
        splits: Splits,
        options: FitOptions,
    ) -> None:
        """Keep them; nothing is read yet."""
        self.population, self.factory = population, factory
        self.splits, self.options = splits, options
        self._soups: dict[str, Soup] = {}

    def soup(self, batchnorm: Statistics) -> Soup:
        """Return the members as candidates of a soup; finished trials are kept by statistics.

        Args:
            batchnorm: how statistics are measured, see `reestimate`; "keep" keeps the averaged.

        Raises:
            DataError: members of different models.
        """
        if batchnorm not in self._soups:
            _refuse_unlike(self.population)
            prepare = None
            if batchnorm != "keep":
                loader = _Inputs(self.splits.train, STATISTICS_ROWS)
                prepare = partial(reestimate, loader=loader, mode=batchnorm)
            score = _Score(self.splits.val)
            self._soups[batchnorm] = Soup(
                [member.checkpoint() for member in self.population.members],
                self.factory,
                score,
                prepare=prepare,
                journal=self.population.path / "resume" / f"soup-{batchnorm}.json",
                higher_is_better=score.higher_is_better,
            )
        return self._soups[batchnorm]

    def held_out(self) -> list[tuple[Tensor, Tensor]]:
        """Return the validation split in batches of inputs and labels."""
        labels = self.splits.val.labels
        if labels is None:
            raise DataError("the validation split has no labels, so no soup can be learned on it")
        rows = _batches(np.arange(len(self.splits.val)))
        return [(self.splits.val.inputs(part), torch.from_numpy(labels[part])) for part in rows]

    def forget(self) -> None:
        """Remove the journals of finished trials: the soups that they were for are kept now."""
        for journal in (self.population.path / "resume").glob("soup-*.json"):
            durable.remove(journal)


def uniform_soup(given: Given, *, batchnorm: Statistics = "pooled") -> Made:
    """Mix all members in equal parts.

    Args:
        given: members, model, data.
        batchnorm: how statistics are measured anew: "pooled", "sample", "torch"; or "keep".
    """
    soup = given.soup(batchnorm)
    return soup, soup.uniform()


def greedy_soup(given: Given, *, ties: bool = False, batchnorm: Statistics = "pooled") -> Made:
    """Add members, the best first, and keep each that makes the validation score better.

    Args:
        given: members, model, data.
        ties: keep a member that leaves the score as it is, too.
        batchnorm: how statistics are measured anew: "pooled", "sample", "torch"; or "keep".
    """
    soup = given.soup(batchnorm)
    return soup, soup.greedy(ties=ties)


def forward_backward_soup(given: Given, *, batchnorm: Statistics = "pooled") -> Made:
    """Add the member that helps most and drop the one that hurts most, until neither helps.

    Args:
        given: members, model, data.
        batchnorm: how statistics are measured anew: "pooled", "sample", "torch"; or "keep".
    """
    soup = given.soup(batchnorm)
    return soup, soup.forward_backward()


def learned_soup(
    given: Given,
    *,
    steps: int = 100,
    lr: float = 0.05,
    per_layer: bool = False,
    batchnorm: Statistics = "pooled",
) -> Made:
    """Learn the members' weights by gradient on the validation loss.

    Args:
        given: members, model, data.
        steps: of AdamW, each on the next batch of 256.
        lr: its learning rate.
        per_layer: weights for each layer; else one set for all.
        batchnorm: how statistics are measured anew: "pooled", "sample", "torch"; or "keep".
    """
    soup, loss = given.soup(batchnorm), given.options.loss
    found = soup.learned(given.held_out(), loss, steps=steps, lr=lr, per_layer=per_layer)
    return soup, found


SOUPS: dict[str, Callable[..., Made]] = {
    "uniform_soup": uniform_soup,
    "greedy_soup": greedy_soup,
    "forward_backward_soup": forward_backward_soup,
    "learned_soup": learned_soup,
}


def make_soups(
    given: Given,
    soups: Mapping[str, Callable[[Given], Made]],
    progress: Callable[[str, float, float, str], None],
) -> None:
    """Make every soup that the folder does not have of these members yet.

    Args:
        given: members, model, data.
        soups: by name.
        progress: called with ("soups", soups done, all, name).

    Raises:
        PolyfuseError: a soup that cannot be made.

    Example:
        >>> make_soups.__name__
        'make_soups'
    """
    population = given.population
    with threads(given.options.threads):
        for done, (name, make) in enumerate(soups.items(), 1):
            if not has_soup(population, name):
                _keep(given, name, *make(given))
            progress("soups", done, len(soups), name)
    given.forget()


def has_soup(population: Population, name: str) -> bool:
    """Tell whether a soup of exactly the members that were trained here is kept in the folder.

    Example:
        >>> from pathlib import Path
        >>> has_soup(Population(Path("/no/such/run"), ()), "greedy_soup")
        False
    """
    if not (population.path / "fusions" / name).is_dir():
        return False
    record, own = population.fusion(name), population.trained_here
    return record.get("kind") == "soup" and record["inputs"] == own.fingerprint()


def _refuse_unlike(population: Population) -> None:
    """Refuse members of different models, and such that see different features."""
    models = sorted({member.factory for member in population.members})
    if len(models) > 1:
        raise DataError(
            f"the members are of {len(models)} models ({', '.join(map(str, models))}), and a soup "
            "mixes the weights of one; fuse their predictions, or make a run of each model"
        )
    if any("features" in member.record for member in population.members):
        raise DataError(
            "the members see different features, so their weights do not mix; fuse their "
            "predictions, or train them on all features"
        )


def _keep(given: Given, name: str, soup: Soup, result: SoupResult) -> None:
    model = soup.model(result)
    splits = {"val": given.splits.val, "test": given.splits.test}
    task = given.population.task
    answers = {s: mean_of(task, predict(model, split)[None]) for s, split in splits.items()}
    facts = {
        "kind": "soup",
        "weights": result.weights,
        "score": result.score,
        "trials": [trial._asdict() for trial in result.trials],
        "warnings": list(result.warnings),
    }
    members = [given.population.members[number].index for number in result.members]
    write_fusion(
        given.population, name, members, answers, state=dict(model.state_dict()), facts=facts
    )


class _Inputs:
    """Inputs of a split in batches, without labels; can be gone through again and again."""

    def __init__(self, split: Split, most: int) -> None:
        self.split = split
        self.rows = np.arange(len(split))
        if len(split) > most:
            self.rows = np.sort(np.random.default_rng(0).choice(self.rows, most, replace=False))

    def __iter__(self) -> Iterator[Tensor]:
        return (self.split.inputs(rows) for rows in _batches(self.rows))


class _Score:
    """The score of a model on a split, by the first metric of the task."""

    def __init__(self, split: Split) -> None:
        self.task = task_of(split)
        name, self.metric = next(iter(metrics_for(split.blank, self.task).items()))
        self.split, self.higher_is_better = split, name not in LOWER_IS_BETTER

    def __call__(self, model: nn.Module) -> float:
        prediction = mean_of(self.task, predict(model, self.split)[None])
        value: float = self.metric(prediction, truth_of(self.split)).value
        return value


def _batches(rows: Rows) -> list[Rows]:
    return np.array_split(rows, -(-len(rows) // PREDICT_BATCH))

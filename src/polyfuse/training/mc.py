"""Monte Carlo dropout and batch-norm: members are what one trained net says in several draws."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from polyfuse.data.base import Split
from polyfuse.errors import DataError
from polyfuse.fit.tracked import Kept
from polyfuse.stochastic import (
    mc_dropout as dropped,
)
from polyfuse.stochastic import (
    refuse_without_batchnorm,
    refuse_without_dropout,
    use_statistics_of,
)
from polyfuse.training.base import Made, Planned, Work, facts_of, member_seeds
from polyfuse.training.one_run import one_run
from polyfuse.training.rows import fraction_faults


def mc_dropout(
    split: Split, *, samples: int = 10, stop_fraction: float = 0.1, seed: int = 0
) -> Planned:
    """Plan members that are one net with dropout on at inference (Gal and Ghahramani 2016).

    Nothing else is in train mode. A member draws one mask a dropout layer, from its seed, for all
    rows. The weights are kept once; new data are read with the same masks. No row is held out, so
    there are no out-of-fold predictions.

    Args:
        split: the training split.
        samples: members.
        stop_fraction: share of the rows (of groups, where there are any) that chooses the epoch;
            0: none does, and the last epoch is kept.
        seed: decides these rows, the run's seed and the masks.

    Raises:
        DataError: no samples, or a fraction that leaves nothing. A net without dropout is refused
            before it is trained.

    Example:
        >>> from polyfuse import Arrays
        >>> (job,) = mc_dropout(Arrays(np.zeros((10, 2)), np.zeros(10, int))).jobs([])
        >>> job.count
        10
    """
    _refuse(samples, stop_fraction)
    facts = {"strategy": "mc_dropout", "samples": samples}
    return one_run(split, samples, dropout_samples, facts, stop_fraction=stop_fraction, seed=seed)


def mc_batchnorm(
    split: Split,
    *,
    samples: int = 10,
    batch_size: int | None = None,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan members that are one net, normalised as random training batches are (Teye et al. 2018).

    A member has the batch-norm statistics of one batch of the rows that the net learned from, and
    is in eval mode otherwise; so its answer for a row does not depend on the rows beside it. No row
    is held out, so there are no out-of-fold predictions.

    Args:
        split: the training split.
        samples: members.
        batch_size: rows of such a batch; as many as in training where None.
        stop_fraction: share of the rows (of groups, where there are any) that chooses the epoch;
            0: none does, and the last epoch is kept.
        seed: decides these rows, the run's seed and the batches.

    Raises:
        DataError: no samples, or a fraction that leaves nothing. A net without batch-norm is
            refused before it is trained.

    Example:
        >>> from polyfuse import Arrays
        >>> (job,) = mc_batchnorm(Arrays(np.zeros((10, 2)), np.zeros(10, int))).jobs([])
        >>> job.count
        10
    """
    _refuse(samples, stop_fraction, batch_size)
    facts = {"strategy": "mc_batchnorm", "samples": samples}
    facts |= {} if batch_size is None else {"batch_size": batch_size}
    return one_run(
        split,
        samples,
        batchnorm_samples,
        facts,
        given={"batch_size": batch_size},
        stop_fraction=stop_fraction,
        seed=seed,
    )


def dropout_samples(work: Work) -> Iterable[Made]:
    """Train one net; each member is it with other units missing, its averages too.

    Example:
        >>> dropout_samples.__name__
        'dropout_samples'
    """
    model, first = work.model(), work.job.index
    refuse_without_dropout(model)
    fitted = work.fit(model)
    for place, seed in enumerate(member_seeds(work.job.seed, work.job.count)):
        facts = {**facts_of(fitted), "dropout_seed": seed}
        facts |= {"weights_of": first} if place else {}
        yield Made(dropped(model, seed=seed), fitted.state, facts, fitted.averages)


def batchnorm_samples(work: Work) -> Iterable[Made]:
    """Train one net; each member has the statistics of another batch, its averages too.

    Example:
        >>> batchnorm_samples.__name__
        'batchnorm_samples'
    """
    model = work.model()
    refuse_without_batchnorm(model)
    fitted = work.fit(model)
    learn = np.unique(work.job.learn)
    size = min(work.job.given["batch_size"] or work.options.batch_size, len(learn))
    for place, seed in enumerate(member_seeds(work.job.seed, work.job.count)):
        rows = np.sort(np.random.default_rng(seed).choice(learn, size, replace=False))
        batch = work.task.splits.train.inputs(rows)
        averages = {
            name: Kept(_normalised(model, kept.state, batch), *kept[1:])
            for name, kept in fitted.averages.items()
        }
        state = _normalised(model, fitted.state, batch)
        yield Made(model, state, {**facts_of(fitted), "sample": place}, averages)


def _normalised(model: nn.Module, state: Mapping[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
    """Return these weights with the statistics that they give the batch."""
    model.load_state_dict(state)
    use_statistics_of(model, batch.to(next(model.parameters()).device))
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _refuse(samples: int, stop_fraction: float, batch_size: Any = None) -> None:
    faults = fraction_faults(stop_fraction)
    if samples < 1:
        faults.append(f"samples={samples}; type 1 or more")
    if batch_size is not None and batch_size < 2:
        faults.append(f"batch_size={batch_size}; a variance needs 2 rows or more")
    if faults:
        raise DataError("\n".join(faults))

"""SWAG: members are drawn from a Gaussian around the mean of the last weights of one run."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from math import floor

import numpy as np
import torch
from torch import Tensor, nn

from polyfuse.batchnorm import reestimate
from polyfuse.data.base import Split
from polyfuse.errors import DataError
from polyfuse.fit import FitOptions
from polyfuse.fit.tracked import Inputs
from polyfuse.schedules import joined
from polyfuse.schedules import swa as constant_rate
from polyfuse.swag import moments, sample
from polyfuse.training.base import Made, Planned, Work, facts_of, member_seeds
from polyfuse.training.one_run import collected, one_run
from polyfuse.training.rows import fraction_faults

STATISTICS_ROWS = 4096  # as many training rows measure a mean and a variance well enough


def swag(
    split: Split,
    *,
    fit: FitOptions,
    samples: int = 10,
    start: float = 0.5,
    rate: float = 0.5,
    rank: int = 10,
    scale: float = 0.5,
    stop_fraction: float = 0.1,
    seed: int = 0,
) -> Planned:
    """Plan members that are samples of SWA-Gaussian (Maddox et al. 2019).

    The first part is trained with `fit.schedule`, as if it went on to the end, the rest at a
    constant rate; the weights after each of its epochs are kept until the run ends. Their mean,
    their variances and the last `rank` deviations make a Gaussian, of which each member is a
    sample, with batch-norm statistics measured anew. `fit.patience` has no say. No row is held out,
    so there are no out-of-fold predictions. See `polyfuse.swag` for the formula.

    Args:
        split: the training split.
        fit: how the run trains.
        samples: members.
        start: share of the epochs before weights are collected; 2 epochs or more must follow.
        rate: factor of the optimiser's learning rate from there on; high enough to move about.
        rank: how many deviations, at most.
        scale: of the covariance; 0.5 is the paper's.
        stop_fraction: share of the rows (of groups, where there are any) that choose the epoch of
            averages that are tracked beside; 0: none does.
        seed: decides these rows, the run's seed and the samples.

    Raises:
        DataError: fewer than two epochs to collect from, and what else is wrong; all at once.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((10, 2)), np.zeros(10, int))
        >>> (job,) = swag(data, fit=FitOptions(epochs=8)).jobs([])
        >>> job.count, job.given["epochs"]
        (10, (5, 6, 7, 8))
    """
    faults = [*fraction_faults(stop_fraction)]
    if samples < 1:
        faults.append(f"samples={samples}; type 1 or more")
    if not 0 <= start < 1 or fit.epochs - floor(start * fit.epochs) < 2:
        faults.append(
            f"start={start} of {fit.epochs} epochs; type a share from 0 on that leaves 2 or more"
        )
    if rank < 2:
        faults.append(f"rank={rank}; a covariance needs 2 deviations or more")
    if not 0 <= scale < np.inf:
        faults.append(f"scale={scale}; type 0 or more, the paper's is 0.5")
    if not 0 < rate < np.inf:
        faults.append(f"rate={rate}; type a factor of the learning rate above 0")
    if faults:
        raise DataError("\n".join(faults))
    begin = floor(start * fit.epochs)
    after = partial(constant_rate, start=0.0, anneal=0.0, floor=rate)
    schedule = partial(joined, fit.schedule, after, start=begin / fit.epochs)
    drawn = {"start": begin, "rate": rate, "rank": rank, "scale": scale}
    return one_run(
        split,
        samples,
        gaussian_samples,
        {"strategy": "swag", "samples": samples, **drawn},
        options=replace(fit, schedule=schedule, patience=None),
        given={"epochs": tuple(range(begin + 1, fit.epochs + 1)), "rank": rank, "scale": scale},
        stop_fraction=stop_fraction,
        seed=seed,
    )


def gaussian_samples(work: Work) -> Iterable[Made]:
    """Train once, fit the Gaussian, and draw the members.

    The averages that were tracked are those of the whole run: they go with its last member.

    Example:
        >>> gaussian_samples.__name__
        'gaussian_samples'
    """
    job, model = work.job, work.model()
    fitted = work.fit(model, collect=job.given["epochs"])
    iterates = collected(fitted, job.given["epochs"])
    names = [name for name, value in model.named_parameters() if value.is_floating_point()]
    found = moments(
        ({name: state[name] for name in names} for state in iterates), rank=job.given["rank"]
    )
    model.load_state_dict(iterates[-1])
    for place, seed in enumerate(member_seeds(job.seed, job.count)):
        drawn = sample(found, torch.Generator().manual_seed(seed), scale=job.given["scale"])
        facts = {**facts_of(fitted), "best_epoch": len(fitted.history), "sample": place}
        averages = fitted.averages if place == job.count - 1 else {}
        yield Made(model, _weights(model, drawn, work), facts, averages)


def _weights(model: nn.Module, drawn: Mapping[str, Tensor], work: Work) -> dict[str, Tensor]:
    """Return a net's weights with these parameters and statistics that fit them."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in drawn:
                value.copy_(drawn[name])
    rows = work.job.learn
    if len(rows) > STATISTICS_ROWS:
        draw = np.random.default_rng(work.job.seed)
        rows = np.sort(draw.choice(rows, STATISTICS_ROWS, replace=False))
    device = next(model.parameters()).device
    reestimate(model, Inputs(work.task.splits.train, rows, lambda batch: batch.to(device)))
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

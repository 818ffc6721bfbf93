"""SWAG: a Gaussian around the mean of the weights of one training run (Maddox et al. 2019).

    theta = mean + sqrt(scale) (variance^(1/2) z1 + D z2 / sqrt(K - 1)),  z1, z2 standard normal

The mean and the variance of each weight are over all iterates; the K columns of D are the last
iterates, each less the mean of the iterates up to it. With `scale` 0.5, both covariances count half
each, as in the paper: sqrt(1/2) and sqrt(1 / (2 (K - 1))).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from polyfuse.errors import TrainingError

Weights = Mapping[str, Tensor]


class Moments(NamedTuple):
    """What is known of the iterates; tensors are fp64, on the CPU.

    Attributes:
        iterates: how many.
        mean: of each weight.
        squares: sum of squared distances to the mean, of each weight.
        deviations: the last iterates, the oldest first, each less the mean up to it.
    """

    iterates: int
    mean: Weights
    squares: Weights
    deviations: tuple[Weights, ...]


def moments(iterates: Iterable[Weights], *, rank: int = 10) -> Moments:
    """Return mean, variance and last deviations of weights (Maddox et al. 2019, algorithm 1).

    Args:
        iterates: weights of one training run, in order; of each, the same floating-point tensors.
        rank: how many deviations are kept, 2 or more.

    Raises:
        TrainingError: a rank below 2, or fewer than two iterates.

    Example:
        >>> found = moments([{"w": torch.tensor([v])} for v in (1.0, 3.0, 5.0)])
        >>> found.mean["w"], found.squares["w"] / found.iterates
        (tensor([3.], dtype=torch.float64), tensor([2.6667], dtype=torch.float64))
        >>> [round(float(each["w"]), 3) for each in found.deviations]
        [0.0, 1.0, 2.0]
    """
    if rank < 2:
        raise TrainingError(f"rank={rank}; a covariance needs 2 deviations or more")
    found = Moments(0, {}, {}, ())
    for iterate in iterates:
        found = _with(found, iterate, rank)
    if found.iterates < 2:
        raise TrainingError(
            f"{found.iterates} iterates have no variance; collect the weights of 2 epochs or more"
        )
    return found


def _with(found: Moments, iterate: Weights, rank: int) -> Moments:
    """Return the moments with one more iterate (Welford's update)."""
    wide = {name: value.detach().cpu().double() for name, value in iterate.items()}
    count = found.iterates + 1
    before = found.mean if found.iterates else {n: torch.zeros_like(v) for n, v in wide.items()}
    mean = {name: before[name] + (value - before[name]) / count for name, value in wide.items()}
    apart = {name: value - mean[name] for name, value in wide.items()}
    squares = {
        name: found.squares.get(name, 0) + (value - before[name]) * apart[name]
        for name, value in wide.items()
    }
    return Moments(count, mean, squares, (*found.deviations, apart)[-rank:])


def sample(found: Moments, generator: torch.Generator, *, scale: float = 0.5) -> dict[str, Tensor]:
    """Draw weights from the Gaussian.

    Args:
        found: mean, variance, deviations.
        generator: draws, on the CPU.
        scale: of the covariance; 0.5 is the paper's, 0 gives the mean.

    Returns:
        fp64 tensors by name.

    Raises:
        TrainingError: a negative scale.

    Example:
        >>> found = moments([{"w": torch.ones(2)}] * 3)
        >>> sample(found, torch.Generator().manual_seed(0))["w"].tolist()
        [1.0, 1.0]
    """
    if not scale >= 0:
        raise TrainingError(f"scale={scale}; it must be 0 or more")
    columns = len(found.deviations)
    shared = torch.randn(columns, generator=generator, dtype=torch.float64)
    shared *= (scale / (columns - 1)) ** 0.5
    drawn = {}
    for name, mean in found.mean.items():
        own = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        deviation = (scale * found.squares[name] / found.iterates).sqrt()
        low_rank = [z * each[name] for z, each in zip(shared, found.deviations, strict=True)]
        drawn[name] = mean + deviation * own + torch.stack(low_rank).sum(0)
    return drawn

"""The fitted calibrators as modules: the same functions over tensors, differentiable."""

from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.calibration import Beta, Isotonic, Temperature, Vector
from polyfuse.ensemble.base import follow
from polyfuse.fitting import TINY


class Calibrator(nn.Module):
    """A calibrator whose numbers are buffers in float64, whatever the members are cast to."""

    def _apply(self, fn: Any, recurse: bool = True) -> "Calibrator":
        """Follow the members to another device, not to another dtype."""
        for name, buffer in self._buffers.items():
            self._buffers[name] = follow(buffer, fn)
        return self


class Scaling(Calibrator):
    """`softmax(a log p + b)`: temperature and vector scaling."""

    factors: Tensor
    offsets: Tensor

    def __init__(self, fitted: Temperature | Vector) -> None:
        """Take what was fitted over."""
        super().__init__()
        found: tuple[Any, Any] = (
            (fitted.factors_, fitted.offsets_)
            if isinstance(fitted, Vector)
            else (1 / fitted.temperature_, 0.0)
        )
        for name, numbers in zip(("factors", "offsets"), found, strict=True):
            self.register_buffer(name, torch.as_tensor(numbers, dtype=torch.float64))

    def forward(self, p: Tensor) -> Tensor:
        """Return calibrated probabilities of `(..., class)` probabilities in float64."""
        return (p.clamp(min=TINY).log() * self.factors + self.offsets).softmax(-1)


class AgainstTheRest(Calibrator):
    """A curve a class, then divided by the sum; of two classes one curve for the second."""

    def __init__(self, problems: int) -> None:
        """Keep the number of curves."""
        super().__init__()
        self.problems = problems

    def forward(self, p: Tensor) -> Tensor:
        """Return calibrated probabilities of `(..., class)` probabilities in float64."""
        if self.problems == 1:
            second = self.curve(0, p[..., 1])
            return torch.stack([1 - second, second], -1)
        each = torch.stack([self.curve(k, p[..., k]) for k in range(self.problems)], -1)
        total = each.sum(-1, keepdim=True)
        shares = each / torch.where(total == 0, 1.0, total)
        return torch.where(total == 0, 1 / self.problems, shares)

    def curve(self, number: int, p: Tensor) -> Tensor:
        """Return a class's calibrated probability, before it is divided."""
        raise NotImplementedError


class BetaCurves(AgainstTheRest):
    """`sigmoid(a ln p - b ln(1 - p) + c)`, one class against the rest."""

    coefficients: Tensor

    def __init__(self, fitted: Beta) -> None:
        """Take what was fitted over."""
        super().__init__(len(fitted.coefficients_))
        found = torch.as_tensor(fitted.coefficients_, dtype=torch.float64)
        self.register_buffer("coefficients", found)

    def curve(self, number: int, p: Tensor) -> Tensor:
        """Return the sigmoid."""
        a, b, c = self.coefficients[number].unbind()
        return (a * p.clamp(min=TINY).log() - b * (1 - p).clamp(min=TINY).log() + c).sigmoid()


class Steps(AgainstTheRest):
    """Isotonic curves: straight lines between steps, constant beyond them."""

    def __init__(self, fitted: Isotonic) -> None:
        """Take what was fitted over; a single step becomes two, between which nothing rises."""
        super().__init__(len(fitted.steps_))
        for number, pair in enumerate(fitted.steps_):
            points, values = (torch.as_tensor(part, dtype=torch.float64) for part in pair)
            if len(points) == 1:
                points, values = torch.cat([points, points + 1]), values.repeat(2)
            self.register_buffer(f"points_{number}", points)
            self.register_buffer(f"values_{number}", values)

    def curve(self, number: int, p: Tensor) -> Tensor:
        """Return the value on the line between the steps around each probability."""
        points: Tensor = getattr(self, f"points_{number}")
        values: Tensor = getattr(self, f"values_{number}")
        above = torch.searchsorted(points, p.detach().contiguous(), right=True)
        above = above.clamp(1, len(points) - 1)
        low, high = points[above - 1], points[above]
        part = ((p - low) / (high - low)).clamp(0, 1)
        return values[above - 1] + part * (values[above] - values[above - 1])


def module_of(fitted: Any) -> Calibrator:
    """Return a fitted calibrator as a module.

    Example:
        >>> fitted = Temperature()
        >>> fitted.temperature_ = 2.0
        >>> p = torch.tensor([0.9, 0.1], dtype=torch.float64)
        >>> module_of(fitted)(p).round(decimals=6).tolist()
        [0.75, 0.25]
    """
    if isinstance(fitted, Temperature | Vector):
        return Scaling(fitted)
    return BetaCurves(fitted) if isinstance(fitted, Beta) else Steps(fitted)

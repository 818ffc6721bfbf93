"""Views that change values and move nothing: additive and multiplicative brightness."""

import math
from dataclasses import dataclass

from torch import Tensor

from polyfuse.errors import DataError
from polyfuse.tta.base import View


@dataclass(frozen=True)
class Add(View):
    """Additive brightness: `amount` is added to every value.

    Attributes:
        amount: in the units of the images.
        low: values are not let below it.
        high: values are not let above it.

    Raises:
        DataError: an amount that is no number.

    Example:
        >>> import torch
        >>> Add(0.5, high=1.0).apply(torch.tensor([0.25, 0.75])).tolist()
        [0.75, 1.0]
    """

    amount: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Check the amount."""
        _check("amount", self.amount)

    def apply(self, images: Tensor) -> Tensor:
        """Return the images brightened."""
        return _limited(images + self.amount, self.low, self.high)


@dataclass(frozen=True)
class Multiply(View):
    """Multiplicative brightness: every value times `factor`.

    Attributes:
        factor: 1 changes nothing.
        low: values are not let below it.
        high: values are not let above it.

    Raises:
        DataError: a factor that is no number.

    Example:
        >>> import torch
        >>> Multiply(2.0).apply(torch.tensor([0.25, 0.75])).tolist()
        [0.5, 1.5]
    """

    factor: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Check the factor."""
        _check("factor", self.factor)

    def apply(self, images: Tensor) -> Tensor:
        """Return the images brightened."""
        return _limited(images * self.factor, self.low, self.high)


def _limited(images: Tensor, low: float | None, high: float | None) -> Tensor:
    return images if low is None and high is None else images.clamp(low, high)


def _check(name: str, number: float) -> None:
    if not math.isfinite(number):
        raise DataError(f"{name} is {number}; it must be a finite number")

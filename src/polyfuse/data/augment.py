"""Augmentations that recipes name: `(inputs, generator) -> inputs`, on a batch of images."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor


def shift(images: Tensor, generator: Generator, *, across: int = 2, down: int = 1) -> Tensor:
    """Shift each image by its own random whole number of pixels; edges repeat.

    Args:
        images: `(n, channels, height, width)`.
        generator: draws the shifts.
        across: at most so many pixels left or right.
        down: at most so many pixels up or down.

    Example:
        >>> shift(torch.zeros(2, 3, 24, 64), torch.Generator()).shape
        torch.Size([2, 3, 24, 64])
    """
    n, _, height, width = images.shape
    x = torch.arange(width) + _draw(n, across, generator)
    y = torch.arange(height) + _draw(n, down, generator)
    rows = torch.arange(n)[:, None, None]
    at = (rows, slice(None), y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :])
    return images[at].movedim(-1, 1)


def street_number(
    images: Tensor, generator: Generator, *, across: int = 2, down: int = 1, colour: float = 0.2
) -> Tensor:
    """Shift each image and change its brightness and contrast a little; never flip a digit.

    Args:
        images: `(n, channels, height, width)`.
        generator: draws shifts and colours.
        across: at most so many pixels left or right.
        down: at most so many pixels up or down.
        colour: contrast changes by up to this share, a channel's brightness by half of it.

    Example:
        >>> street_number(torch.zeros(2, 3, 24, 64), torch.Generator()).shape
        torch.Size([2, 3, 24, 64])
    """
    moved = shift(images, generator, across=across, down=down)
    n, channels = images.shape[:2]
    contrast = 1 + colour * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    brightness = colour * (torch.rand(n, channels, 1, 1, generator=generator) - 0.5)
    return moved * contrast + brightness


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {"shift": shift, "street_number": street_number}


def _draw(n: int, most: int, generator: Generator) -> Tensor:
    return torch.randint(-most, most + 1, (n, 1), generator=generator)

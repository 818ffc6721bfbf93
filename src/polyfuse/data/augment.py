"""Augmentations that recipes name: `(inputs, generator) -> inputs`, on a batch of images."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from polyfuse.errors import DataError


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


def rotate(images: Tensor, generator: Generator, *, degrees: float = 5.0) -> Tensor:
    """Turn each image about its centre by its own small angle; edges repeat.

    Args:
        images: `(n, channels, height, width)` floating.
        generator: draws the angles, evenly between both ways.
        degrees: at most so far.

    Raises:
        DataError: more than 45 degrees, at which a digit may become another.

    Example:
        >>> rotate(torch.zeros(2, 3, 24, 64), torch.Generator()).shape
        torch.Size([2, 3, 24, 64])
    """
    return _warped(images, _turn(images, generator, degrees))


def scale(images: Tensor, generator: Generator, *, amount: float = 0.1) -> Tensor:
    """Make each image larger or smaller about its centre, by a factor of its own; edges repeat.

    Args:
        images: `(n, channels, height, width)` floating.
        generator: draws the factors, evenly between `1 - amount` and `1 + amount`.
        amount: below 0.5.

    Raises:
        DataError: an amount that would halve an image, or below 0.

    Example:
        >>> scale(torch.zeros(2, 3, 24, 64), torch.Generator()).shape
        torch.Size([2, 3, 24, 64])
    """
    return _warped(images, _zoom(images, generator, amount))


def colour(
    images: Tensor, generator: Generator, *, contrast: float = 0.2, brightness: float = 0.1
) -> Tensor:
    """Change each image's contrast, and the brightness of each of its channels.

    Args:
        images: `(n, channels, height, width)`, from 0 to 1.
        generator: draws both.
        contrast: differences from the image's mean change by up to this share; at most 0.99, so
            that light and dark are never exchanged.
        brightness: what is added to a channel is between minus this and this.

    Returns:
        Images from 0 to 1: what would be beyond is cut off.

    Raises:
        DataError: a contrast above 0.99, a brightness above 1, or either below 0.

    Example:
        >>> colour(torch.ones(1, 3, 8, 8), torch.Generator()).max().item() <= 1
        True
    """
    _refuse_beyond("contrast", contrast, 0.99)
    _refuse_beyond("brightness", brightness, 1)
    n, channels = images.shape[:2]
    mean = images.mean((1, 2, 3), keepdim=True)
    factor = 1 + _between(images, (n, 1, 1, 1), generator, contrast)
    added = _between(images, (n, channels, 1, 1), generator, brightness)
    return torch.addcmul(mean * (1 - factor) + added, images, factor).clamp_(0, 1)


def noise(images: Tensor, generator: Generator, *, deviation: float = 0.05) -> Tensor:
    """Add noise to every pixel, in each image as strong as it draws.

    Args:
        images: `(n, channels, height, width)`, from 0 to 1.
        generator: draws strengths, evenly from 0 to `deviation`, and the noise, normally.
        deviation: of the strongest noise.

    Returns:
        Images from 0 to 1: what would be beyond is cut off.

    Raises:
        DataError: a deviation above 1, or below 0.

    Example:
        >>> noise(torch.ones(1, 3, 8, 8), torch.Generator()).max().item() <= 1
        True
    """
    _refuse_beyond("deviation", deviation, 1)
    shape = (len(images), 1, 1, 1)
    strength = deviation * torch.rand(shape, generator=generator, dtype=images.dtype)
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return drawn.mul_(strength).add_(images).clamp_(0, 1)


def cut_out(images: Tensor, generator: Generator, *, holes: int = 1, side: float = 0.25) -> Tensor:
    """Paint squares of the image's mean colour over each image (DeVries and Taylor 2017).

    Args:
        images: `(n, channels, height, width)` floating.
        generator: draws the squares' middles, anywhere in the image.
        holes: squares an image.
        side: of a square, as a share of the shorter side of the image; at most 0.5, so that no
            square covers a digit that fills the image.

    Raises:
        DataError: a side beyond 0.5, or a number below 0.

    Example:
        >>> cut_out(torch.zeros(2, 3, 24, 64), torch.Generator()).shape
        torch.Size([2, 3, 24, 64])
    """
    _refuse_beyond("side", side, 0.5)
    if holes < 0:
        raise DataError(f"holes={holes}; type 0 or more")
    n, _, height, width = images.shape
    half = side * min(height, width) / 2
    hidden = torch.zeros(n, height, width, dtype=torch.bool)
    for _ in range(holes):
        middle = torch.rand(n, 2, 1, generator=generator)
        down, along = (
            (torch.arange(size) + 0.5 - size * middle[:, axis]).abs_() < half
            for axis, size in enumerate((height, width))
        )
        hidden |= down[:, :, None] & along[:, None, :]
    return torch.where(hidden[:, None], images.mean((2, 3), keepdim=True), images)


def reading(
    images: Tensor,
    generator: Generator,
    *,
    across: float = 2.0,
    down: float = 1.0,
    degrees: float = 4.0,
    amount: float = 0.08,
    contrast: float = 0.2,
    brightness: float = 0.1,
    deviation: float = 0.03,
    holes: int = 0,
    side: float = 0.25,
) -> Tensor:
    """Shift, turn and scale each image in one step, then change colours, add noise, cut out.

    All of it leaves a string of digits as it reads: nothing is flipped, nothing turned far. An
    option at 0 leaves its part out.

    Args:
        images: `(n, channels, height, width)`, from 0 to 1.
        generator: draws all.
        across: at most so many pixels left or right, and parts of pixels.
        down: at most so many pixels up or down.
        degrees: as for `rotate`.
        amount: as for `scale`.
        contrast: as for `colour`.
        brightness: as for `colour`.
        deviation: as for `noise`.
        holes: as for `cut_out`.
        side: as for `cut_out`.

    Returns:
        Images from 0 to 1.

    Raises:
        DataError: as those parts do.

    Example:
        >>> reading(torch.zeros(2, 3, 24, 64), torch.Generator(), holes=1).shape
        torch.Size([2, 3, 24, 64])
    """
    if across or down or degrees or amount:
        map_ = _turn(images, generator, degrees) @ _zoom(images, generator, amount)
        images = _warped(images, map_, _moved(images, generator, across, down))
    if contrast or brightness:
        images = colour(images, generator, contrast=contrast, brightness=brightness)
    if deviation:
        images = noise(images, generator, deviation=deviation)
    return cut_out(images, generator, holes=holes, side=side) if holes else images


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "shift": shift,
    "rotate": rotate,
    "scale": scale,
    "colour": colour,
    "noise": noise,
    "cut_out": cut_out,
    "reading": reading,
    "street_number": street_number,
}


def _draw(n: int, most: int, generator: Generator) -> Tensor:
    return torch.randint(-most, most + 1, (n, 1), generator=generator)


def _between(like: Tensor, shape: tuple[int, ...], generator: Generator, most: float) -> Tensor:
    """Draw evenly between minus the most and the most."""
    return most * (2 * torch.rand(shape, generator=generator, dtype=like.dtype) - 1)


def _refuse_beyond(name: str, value: float, limit: float) -> None:
    if not 0 <= value <= limit:
        raise DataError(f"{name}={value}; type 0 or more, and at most {limit}")


def _turn(images: Tensor, generator: Generator, degrees: float) -> Tensor:
    """Return a rotation for each image, `(n, 2, 2)`, in pixels."""
    _refuse_beyond("degrees", degrees, 45)
    angle = math.pi / 180 * _between(images, (len(images),), generator, degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)


def _zoom(images: Tensor, generator: Generator, amount: float) -> Tensor:
    """Return a change of size for each image, `(n, 2, 2)`, in pixels."""
    _refuse_beyond("amount", amount, 0.5)
    factor = 1 + _between(images, (len(images), 1, 1), generator, amount)
    return torch.eye(2, dtype=images.dtype) / factor


def _moved(images: Tensor, generator: Generator, across: float, down: float) -> Tensor:
    """Return a shift for each image, `(n, 2)`, in pixels."""
    most = torch.tensor([across, down], dtype=images.dtype)
    return most * _between(images, (len(images), 2), generator, 1)


def _warped(images: Tensor, map_: Tensor, moved: Tensor | None = None) -> Tensor:
    """Sample each image where a linear map about its centre says, bilinearly; edges repeat.

    Args:
        images: `(n, channels, height, width)` floating.
        map_: `(n, 2, 2)`: from a pixel of the answer to one of the image, both from the centre.
        moved: `(n, 2)` pixels right and down that the content moves.
    """
    _, _, height, width = images.shape
    size = torch.tensor([width, height], dtype=images.dtype)
    along, down = (map_ * (size / size[:, None])).unbind(2)  # a grid goes from -1 to 1 either way
    moved = images.new_zeros(len(images), 2) if moved is None else moved
    offset = -2 * (along * moved[:, :1] / width + down * moved[:, 1:] / height)
    # Adding rows to columns takes a tenth of the time of torch's affine_grid.
    columns = along[:, None] * _centres(width, images)
    rows = down[:, None] * _centres(height, images) + offset[:, None]
    grid = columns[:, None] + rows[:, :, None]
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _centres(size: int, like: Tensor) -> Tensor:
    """Return the middles of pixels, from -1 to 1, `(size, 1)`."""
    return ((2 * torch.arange(size, dtype=like.dtype) + 1) / size - 1)[:, None]

"""Crops as views: one, five, ten, or a grid of them; masks are pasted back where they were cut."""

from dataclasses import dataclass

from torch import Tensor

from polyfuse.errors import DataError
from polyfuse.tta.base import Matrix, Size, View, sized
from polyfuse.tta.moves import Flip


@dataclass(frozen=True)
class Crop(View):
    """A part of the image.

    Attributes:
        height: pixels.
        width: pixels.
        down: where it lies, from 0 (at the upper edge) to 1 (at the lower).
        across: where it lies, from 0 (at the left edge) to 1 (at the right).

    Raises:
        DataError: a size below one pixel, a place outside 0 to 1.

    Example:
        >>> import torch
        >>> Crop(2, 2, down=1, across=0).apply(torch.arange(9.0).view(1, 1, 3, 3))[0, 0].tolist()
        [[3.0, 4.0], [6.0, 7.0]]
    """

    height: int
    width: int
    down: float = 0.5
    across: float = 0.5
    partial = True
    cut = True

    def __post_init__(self) -> None:
        """Check size and place."""
        sides = self.height, self.width
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise DataError(f"the size of a crop is {sides}; give whole pixels from 1 on")
        if not (0 <= self.down <= 1 and 0 <= self.across <= 1):
            raise DataError(
                f"a crop is at down={self.down}, across={self.across}; give shares from 0 to 1"
            )

    @property
    def name(self) -> str:
        """Return size and place."""
        return f"crop-{self.height}x{self.width}-down={self.down:g},across={self.across:g}"

    def apply(self, images: Tensor) -> Tensor:
        """Return the parts.

        Raises:
            DataError: the images are smaller.
        """
        top, left = self._corner(sized(images))
        return images[..., top : top + self.height, left : left + self.width]

    def size(self, size: Size) -> Size:
        """Return the crop's."""
        return self.height, self.width

    def matrix(self, size: Size) -> Matrix:
        """Add the corner."""
        top, left = self._corner(size)
        return (1.0, 0.0, float(left)), (0.0, 1.0, float(top))

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Paste them where they were cut; the rest is 0."""
        top, left = self._corner(size)
        whole = masks.new_zeros((*masks.shape[:-2], *size))
        whole[..., top : top + self.height, left : left + self.width] = masks
        return whole

    def _corner(self, size: Size) -> tuple[int, int]:
        spare = size[0] - self.height, size[1] - self.width
        if min(spare) < 0:
            raise DataError(
                f"a crop of {self.height} x {self.width} does not fit into images of {size[0]} x "
                f"{size[1]}; crop less, or put a Scale before it"
            )
        return int(self.down * spare[0] + 1e-6), int(self.across * spare[1] + 1e-6)


def five_crop(height: int, width: int) -> list[View]:
    """Return crops at the four corners and in the middle.

    Args:
        height: of each, in pixels.
        width: of each, in pixels.

    Example:
        >>> [(crop.down, crop.across) for crop in five_crop(24, 48)]
        [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]
    """
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]
    return [Crop(height, width, down, across) for down, across in places]


def ten_crop(height: int, width: int) -> list[View]:
    """Return the five crops, and those of the mirror image.

    Args:
        height: of each, in pixels.
        width: of each, in pixels.

    Example:
        >>> len(ten_crop(24, 48))
        10
    """
    crops = five_crop(height, width)
    return crops + [Flip().then(crop) for crop in crops]


def multi_crop(height: int, width: int, *, rows: int = 2, columns: int = 2) -> list[View]:
    """Return a grid of crops from edge to edge; they overlap where they are larger than its cells.

    Args:
        height: of each, in pixels.
        width: of each, in pixels.
        rows: of the grid; a single one lies in the middle.
        columns: of the grid; a single one lies in the middle.

    Raises:
        DataError: no row or column.

    Example:
        >>> len(multi_crop(16, 24, rows=2, columns=4))
        8
    """
    return [Crop(height, width, down, across) for down in _even(rows) for across in _even(columns)]


def _even(count: int) -> list[float]:
    if count < 1:
        raise DataError(f"a grid of crops has {count} rows or columns; it must be 1 or more")
    return [0.5] if count == 1 else [number / (count - 1) for number in range(count)]

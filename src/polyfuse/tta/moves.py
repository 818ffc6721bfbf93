"""Views that move pixels about: flips, quarter turns, shifts. Their ways back are exact."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polyfuse.errors import DataError
from polyfuse.parameters import one_of
from polyfuse.tta.base import SAME, Matrix, Size, View, sized


@dataclass(frozen=True)
class Flip(View):
    """The mirror image.

    Attributes:
        axis: "horizontal" swaps left and right, "vertical" up and down.

    Raises:
        DataError: another axis.

    Example:
        >>> Flip().apply(torch.arange(4.0).view(1, 1, 2, 2))[0, 0].tolist()
        [[1.0, 0.0], [3.0, 2.0]]
    """

    axis: str = "horizontal"

    def __post_init__(self) -> None:
        """Check the axis."""
        one_of("axis", self.axis, ["horizontal", "vertical"])

    @property
    def name(self) -> str:
        """Return the name, with the axis always."""
        return f"flip-{self.axis}"

    def apply(self, images: Tensor) -> Tensor:
        """Return the images mirrored."""
        return images.flip(-1 if self.axis == "horizontal" else -2)

    def matrix(self, size: Size) -> Matrix:
        """Mirror a point."""
        height, width = map(float, size)
        if self.axis == "horizontal":
            return (-1.0, 0.0, width), (0.0, 1.0, 0.0)
        return (1.0, 0.0, 0.0), (0.0, -1.0, height)

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Mirror them again."""
        return self.apply(masks)


@dataclass(frozen=True)
class Turn(View):
    """Quarter turns, counter-clockwise; height and width change places with each.

    Attributes:
        quarters: 0 to 3.

    Raises:
        DataError: another number.

    Example:
        >>> Turn(1).apply(torch.arange(6.0).view(1, 1, 2, 3))[0, 0].tolist()
        [[2.0, 5.0], [1.0, 4.0], [0.0, 3.0]]
    """

    quarters: int

    def __post_init__(self) -> None:
        """Check the number."""
        if self.quarters not in (0, 1, 2, 3) or isinstance(self.quarters, bool | float):
            raise DataError(f"quarters is {self.quarters!r}; use 0, 1, 2 or 3 quarter turns")

    def apply(self, images: Tensor) -> Tensor:
        """Return the images turned."""
        return torch.rot90(images, self.quarters, (-2, -1)) if self.quarters else images

    def size(self, size: Size) -> Size:
        """Swap height and width at one and three quarters."""
        return (size[1], size[0]) if self.quarters % 2 else size

    def matrix(self, size: Size) -> Matrix:
        """Turn a point back."""
        height, width = map(float, size)
        turned: dict[int, Matrix] = {
            0: SAME,
            1: ((0.0, -1.0, width), (1.0, 0.0, 0.0)),
            2: ((-1.0, 0.0, width), (0.0, -1.0, height)),
            3: ((0.0, 1.0, 0.0), (-1.0, 0.0, height)),
        }
        return turned[self.quarters]

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Turn them back."""
        return torch.rot90(masks, -self.quarters, (-2, -1)) if self.quarters else masks


@dataclass(frozen=True)
class Shift(View):
    """The image moved by whole pixels; what leaves the frame is lost, so the view is partial.

    Attributes:
        across: pixels to the right; to the left where negative.
        down: pixels down; up where negative.
        fill: of what is laid bare; None repeats the edge.

    Example:
        >>> Shift(across=1).apply(torch.arange(4.0).view(1, 1, 2, 2))[0, 0].tolist()
        [[0.0, 0.0], [2.0, 2.0]]
    """

    across: int = 0
    down: int = 0
    fill: float | None = None
    partial = True

    def apply(self, images: Tensor) -> Tensor:
        """Return the images moved.

        Raises:
            DataError: nothing of them would be left.
        """
        height, width = self._checked(sized(images))
        if self.fill is None:
            moved = _moved(images, self.down, -2)
            return _moved(moved, self.across, -1)
        moved = torch.full_like(images, self.fill)
        new, old = _kept(height, self.down), _kept(height, -self.down)
        right, left = _kept(width, self.across), _kept(width, -self.across)
        moved[..., new, right] = images[..., old, left]
        return moved

    def matrix(self, size: Size) -> Matrix:
        """Move a point back."""
        return (1.0, 0.0, -float(self.across)), (0.0, 1.0, -float(self.down))

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Move them back; what had left the frame is 0."""
        return Shift(-self.across, -self.down, fill=0.0).apply(masks)

    def _checked(self, size: Size) -> Size:
        height, width = size
        if abs(self.down) >= height or abs(self.across) >= width:
            raise DataError(
                f"a shift by {self.across} across and {self.down} down leaves nothing of images "
                f"{height} high and {width} wide; shift less"
            )
        return size


def _kept(length: int, by: int) -> slice:
    """Return where that which stays in the frame comes to lie after a shift."""
    return slice(max(by, 0), length + min(by, 0))


def _moved(images: Tensor, by: int, axis: int) -> Tensor:
    if not by:
        return images
    length = images.shape[axis]
    index = (torch.arange(length, device=images.device) - by).clamp_(0, length - 1)
    return images.index_select(axis, index)

"""Views in another size: scaled, resized, letterboxed. The original size is restored exactly."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from polyfuse.errors import DataError
from polyfuse.parameters import one_of
from polyfuse.tta.base import Matrix, Size, View, sized

MODES = ("bilinear", "nearest", "bicubic")
PLACES = ("centre", "corner")


def resized(images: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """Return images, or masks, in another size; the same where they have it.

    Example:
        >>> import torch
        >>> resized(torch.ones(1, 1, 2, 2), (3, 5)).shape
        torch.Size([1, 1, 3, 5])
    """
    if images.shape[-2:] == size:
        return images
    corners = None if mode == "nearest" else False
    return functional.interpolate(images, size, mode=mode, align_corners=corners)


class _Resized(View):
    """A view that differs in size alone; masks come back in exactly the image's size."""

    mode: str

    def apply(self, images: Tensor) -> Tensor:
        """Return the images in the size of the view."""
        return resized(images, self.size(sized(images)), self.mode)

    def matrix(self, size: Size) -> Matrix:
        """Scale a point back."""
        height, width = self.size(size)
        return (size[1] / width, 0.0, 0.0), (0.0, size[0] / height, 0.0)

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Resize them to the image's size, whatever the factor."""
        return resized(masks, size, self.mode)


@dataclass(frozen=True)
class Scale(_Resized):
    """The image in another size of the same shape, rounded to whole pixels.

    Attributes:
        factor: above 0.
        mode: of interpolation: "bilinear", "nearest" or "bicubic".

    Raises:
        DataError: another mode, a factor that is none.

    Example:
        >>> Scale(1.5).size((24, 63))
        (36, 94)
    """

    factor: float
    mode: str = "bilinear"

    def __post_init__(self) -> None:
        """Check factor and mode."""
        one_of("mode", self.mode, MODES)
        if not 0 < self.factor <= 64:
            raise DataError(f"factor is {self.factor}; it must be above 0 and 64 at most")

    def size(self, size: Size) -> Size:
        """Return both sides times the factor, at least one pixel."""
        height, width = (max(1, round(side * self.factor)) for side in size)
        return height, width


@dataclass(frozen=True)
class Resize(_Resized):
    """The image in this size, whatever its own.

    Attributes:
        height: pixels.
        width: pixels.
        mode: of interpolation: "bilinear", "nearest" or "bicubic".

    Raises:
        DataError: another mode, a size below one pixel.

    Example:
        >>> import torch
        >>> Resize(32, 80).apply(torch.zeros(1, 3, 24, 64)).shape
        torch.Size([1, 3, 32, 80])
    """

    height: int
    width: int
    mode: str = "bilinear"

    def __post_init__(self) -> None:
        """Check size and mode."""
        one_of("mode", self.mode, MODES)
        check_size(self.height, self.width)

    def size(self, size: Size) -> Size:
        """Return this size."""
        return self.height, self.width


@dataclass(frozen=True)
class Letterbox(View):
    """The whole image at its own shape in a frame of this size, padded.

    It comes last: `Flip().then(Letterbox(640, 640))` flips what is in the frame. To flip frame and
    all would put padding where the net has never seen any.

    Attributes:
        height: pixels of the frame.
        width: pixels of the frame.
        fill: of the padding.
        place: of the image in the frame: "centre" or "corner" (the upper left one).
        mode: of interpolation: "bilinear", "nearest" or "bicubic".

    Raises:
        DataError: another mode or place, a size below one pixel.

    Example:
        >>> import torch
        >>> Letterbox(4, 4).apply(torch.ones(1, 1, 2, 4))[0, 0, :, 0].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    height: int
    width: int
    fill: float = 0.0
    place: str = "centre"
    mode: str = "bilinear"

    def __post_init__(self) -> None:
        """Check size, place and mode."""
        one_of("mode", self.mode, MODES)
        one_of("place", self.place, PLACES)
        check_size(self.height, self.width)

    def apply(self, images: Tensor) -> Tensor:
        """Return the images in their frames."""
        framed = images.new_full((*images.shape[:-2], self.height, self.width), self.fill)
        (height, width), (top, left) = self._inside(sized(images))
        inside = resized(images, (height, width), self.mode)
        framed[..., top : top + height, left : left + width] = inside
        return framed

    def size(self, size: Size) -> Size:
        """Return the frame's."""
        return self.height, self.width

    def matrix(self, size: Size) -> Matrix:
        """Take a point out of the frame, and scale it back."""
        (height, width), (top, left) = self._inside(size)
        across, down = size[1] / width, size[0] / height
        return (across, 0.0, -left * across), (0.0, down, -top * down)

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Take them out of the frame, and resize them to the image's size."""
        (height, width), (top, left) = self._inside(size)
        inside = masks[..., top : top + height, left : left + width]
        return resized(inside, size, self.mode)

    def _inside(self, size: Size) -> tuple[Size, tuple[int, int]]:
        """Return the size of the image in the frame, and where it begins."""
        factor = min(self.height / size[0], self.width / size[1])
        height, width = (max(1, round(side * factor)) for side in size)
        centred = self.place == "centre"
        top, left = (self.height - height) // 2, (self.width - width) // 2
        return (height, width), ((top, left) if centred else (0, 0))


def check_size(height: int, width: int) -> None:
    """Refuse what is no size in pixels.

    Raises:
        DataError: a side below 1, or above 65,536.

    Example:
        >>> check_size(24, 64)
    """
    if not all(isinstance(side, int) and 1 <= side <= 1 << 16 for side in (height, width)):
        raise DataError(f"the size is {height!r} x {width!r}; give whole pixels from 1 on")

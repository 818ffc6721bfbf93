"""What a view is: one augmented version of images, and the way back from it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import chain
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from polyfuse.errors import DataError, printable

Size = tuple[int, int]  # height and width, in pixels
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]

SAME: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
_LONGEST = 120  # characters of a name, so that it stays a file name


class View(ABC):
    """One augmented version of images `(n, channels, height, width)`, and the way back from it.

    Views are small immutable values. `a.then(b)` is the view that does `a`, and `b` to what comes
    out; `product` makes such views of lists. A view that moves nothing has the defaults below.

    Attributes:
        partial: not every pixel of the image is in the view, as with crops and shifts.
        cut: its edges are cuts through the image, where a net sees least: they have less say.
    """

    partial: bool = False
    cut: bool = False

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Return the augmented images, `(n, channels, ...)` in the size that `size` tells."""

    @property
    def name(self) -> str:
        """Return a stable name made of kind and options, which also is a file name.

        Example:
            >>> Identity().then(Identity()).name
            'identity'
        """
        options = [
            f"{f.name}={_text(getattr(self, f.name))}"
            for f in fields(self)  # type: ignore[arg-type]
            if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        kind = type(self).__name__.lower()
        return file_name("-".join([kind, ",".join(options)]) if options else kind)

    def size(self, size: Size) -> Size:
        """Return height and width of the view of an image of this height and width."""
        return size

    def matrix(self, size: Size) -> Matrix:
        """Return the way back of a point: `x = a*x' + b*y' + c`, `y = d*x' + e*y' + f`.

        Points `(x', y')` in the view and `(x, y)` in the image are in pixels from the upper left
        corner of the upper left pixel, whose middle is (0.5, 0.5).

        Args:
            size: of the image.
        """
        return SAME

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Return masks `(..., *size)` of the image for masks of the view; 0 where it has no say.

        Args:
            masks: `(n, channels, *self.size(size))`, floating.
            size: of the image.
        """
        return masks

    def then(self, *others: "View") -> "View":
        """Return the view that does this one, and the others to what comes out."""
        return in_turn([self, *others])


@dataclass(frozen=True)
class Identity(View):
    """The image as it is."""

    def apply(self, images: Tensor) -> Tensor:
        """Return the images."""
        return images


@dataclass(frozen=True)
class InTurn(View):
    """Several views one after another, each of what the one before returned.

    Attributes:
        parts: in the order in which they are applied.
    """

    parts: tuple[View, ...]

    @property
    def name(self) -> str:
        """Return the parts' names, joined."""
        return file_name("+".join(part.name for part in self.parts))

    @property
    def partial(self) -> bool:  # type: ignore[override]
        """Tell whether one of the parts leaves pixels out."""
        return any(part.partial for part in self.parts)

    @property
    def cut(self) -> bool:  # type: ignore[override]
        """Tell whether one of the parts is a crop."""
        return any(part.cut for part in self.parts)

    def apply(self, images: Tensor) -> Tensor:
        """Return what the last part makes of it."""
        for part in self.parts:
            images = part.apply(images)
        return images

    def size(self, size: Size) -> Size:
        """Return the size of what the last part returns."""
        return self._sizes(size)[-1]

    def matrix(self, size: Size) -> Matrix:
        """Return the product of the parts' ways back."""
        matrix = SAME
        for part, before in zip(self.parts, self._sizes(size), strict=False):
            matrix = _multiplied(matrix, part.matrix(before))
        return matrix

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Undo the parts, the last one first."""
        sizes = self._sizes(size)[:-1]
        for part, before in zip(reversed(self.parts), reversed(sizes), strict=True):
            masks = part.undo_masks(masks, before)
        return masks

    def _sizes(self, size: Size) -> list[Size]:
        sizes = [size]
        for part in self.parts:
            sizes.append(part.size(sizes[-1]))
        return sizes


def in_turn(views: Sequence[View]) -> View:
    """Return the view that does these one after another.

    Example:
        >>> in_turn([]).name
        'identity'
    """
    flat = chain.from_iterable(v.parts if isinstance(v, InTurn) else (v,) for v in views)
    parts = tuple(view for view in flat if not isinstance(view, Identity))
    return Identity() if not parts else parts[0] if len(parts) == 1 else InTurn(parts)


def as_views(views: Any) -> list[View]:
    """Return views, and lists of views, as one list.

    Raises:
        DataError: nothing in it, what is no view, two of one name.

    Example:
        >>> [view.name for view in as_views([Identity()])]
        ['identity']
    """
    found = list(_flat(views))
    odd = [view for view in found if not isinstance(view, View)]
    if odd or not found:
        got = printable(repr(odd[0]), 80) if odd else "an empty list"
        raise DataError(
            f"expected views, got {got}; give a list of views, such as those of "
            "polyfuse.tta.VIEWS, or random_view(function) for a function of your own"
        )
    names = [view.name for view in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"views are named twice: {', '.join(twice)}; leave one out, or give random views "
            "another seed"
        )
    return found


def coverage(view: View, size: Size) -> Tensor | None:
    """Return the say `(height, width)` that a view has in each pixel of an image, 0 to 1.

    Crops have most in their middle and least, but some, at their edges, so that there is no seam
    where they overlap.

    Returns:
        None where the whole image is in the view.

    Example:
        >>> coverage(Identity(), (24, 64))
    """
    if not view.partial:
        return None
    down, across = (_slope(side) if view.cut else torch.ones(side) for side in view.size(size))
    return view.undo_masks((down[:, None] * across)[None, None], size)[0, 0]


def sized(images: Tensor) -> Size:
    """Return height and width of images.

    Raises:
        DataError: no `(n, channels, height, width)` tensor.

    Example:
        >>> sized(torch.zeros(2, 3, 24, 64))
        (24, 64)
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"expected images (n, channels, height, width), got {got}")
    return images.shape[-2], images.shape[-1]


def file_name(name: str) -> str:
    """Return a name cut to what file systems take, with a checksum for what was cut off.

    Example:
        >>> file_name("flip-axis=horizontal")
        'flip-axis=horizontal'
    """
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{crc32(name.encode()):08x}"


def _slope(length: int) -> Tensor:
    steps = torch.arange(1, length + 1, dtype=torch.float32)
    slope = torch.minimum(steps, steps.flip(0))
    return slope / slope.max()


def _flat(views: Any) -> Iterable[Any]:
    if isinstance(views, Iterable) and not isinstance(views, str | Tensor):
        for each in views:
            yield from _flat(each)
    else:
        yield views


def _text(value: Any) -> str:
    """Return an option's value without what file names may not hold."""
    shown = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else value
    text = str(shown).replace("+", "")
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)


def _multiplied(one: Matrix, other: Matrix) -> Matrix:
    """Return `one` of what `other` returns."""
    (a, b, c), (d, e, f) = one
    (g, h, i), (j, k, m) = other
    return (
        (a * g + b * j, a * h + b * k, a * i + b * m + c),
        (d * g + e * j, d * h + e * k, d * i + e * m + f),
    )

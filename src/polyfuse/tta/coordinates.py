"""Where points and boxes of a view are in the image, and what its mirror image exchanges."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyfuse.errors import DataError
from polyfuse.tta.base import Matrix, Size, View

Pairs = Sequence[tuple[int, int]]

UNITS = ("pixel", "index", "relative")
FORMS = ("xyxy", "xywh", "cxcywh")


def mirrored(matrix: Matrix) -> bool:
    """Tell whether a view is a mirror image: left and right change places.

    Example:
        >>> mirrored(((-1.0, 0.0, 8.0), (0.0, 1.0, 0.0)))
        True
    """
    (a, b, _), (c, d, _) = matrix
    return a * d - b * c < 0


def order(pairs: Pairs, count: int, device: torch.device) -> Tensor:
    """Return the index `(count,)` that swaps these pairs.

    Raises:
        DataError: a number outside 0 to `count` - 1, or in two pairs.

    Example:
        >>> order([(0, 2)], 3, torch.device("cpu")).tolist()
        [2, 1, 0]
    """
    named = [number for pair in pairs for number in pair]
    check_places(named, count)
    index = list(range(count))
    for one, other in pairs:
        index[one], index[other] = other, one
    return torch.tensor(index, device=device)


def moved_points(points: Tensor, view: View, size: Size, units: str) -> Tensor:
    """Return points `(..., 2 or more)` of a view where they are in the image.

    Example:
        >>> from polyfuse.tta.moves import Shift
        >>> moved_points(torch.tensor([[3.0, 3.0]]), Shift(across=1), (8, 8), "pixel").tolist()
        [[2.0, 3.0]]
    """
    (a, b, c), (d, e, f) = _in_units(view.matrix(size), view.size(size), size, units)
    x, y, rest = points[..., 0], points[..., 1], points[..., 2:]
    moved = torch.stack([a * x + b * y + c, d * x + e * y + f], -1)
    return torch.cat([moved, rest], -1) if rest.shape[-1] else moved


def moved_boxes(boxes: Tensor, view: View, size: Size, *, form: str, units: str) -> Tensor:
    """Return boxes `(..., 4 or more)` of a view where they are in the image.

    Example:
        >>> from polyfuse.tta.moves import Turn
        >>> box = torch.tensor([[0.0, 0.0, 2.0, 1.0]])
        >>> moved_boxes(box, Turn(1), (4, 6), form="xyxy", units="pixel").tolist()
        [[5.0, 0.0, 6.0, 2.0]]
    """
    corners, rest = corners_of(boxes[..., :4], form), boxes[..., 4:]
    one = moved_points(corners[..., :2], view, size, units)
    other = moved_points(corners[..., 2:], view, size, units)
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    return torch.cat([formed(low, high, form), rest], -1)


def corners_of(boxes: Tensor, form: str) -> Tensor:
    """Return boxes `(..., 4)` as two corners.

    Example:
        >>> corners_of(torch.tensor([1.0, 1.0, 2.0, 3.0]), "xywh").tolist()
        [1.0, 1.0, 3.0, 4.0]
    """
    first, second = boxes[..., :2], boxes[..., 2:]
    if form == "xywh":
        return torch.cat([first, first + second], -1)
    if form == "cxcywh":
        return torch.cat([first - second / 2, first + second / 2], -1)
    return boxes


def formed(low: Tensor, high: Tensor, form: str) -> Tensor:
    """Return boxes of two corners in another form.

    Example:
        >>> formed(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0]), "xywh").tolist()
        [1.0, 1.0, 2.0, 3.0]
    """
    if form == "xywh":
        return torch.cat([low, high - low], -1)
    if form == "cxcywh":
        return torch.cat([(low + high) / 2, high - low], -1)
    return torch.cat([low, high], -1)


def _in_units(matrix: Matrix, view: Size, size: Size, units: str) -> Matrix:
    """Return a way back between pixels as one between these units."""
    (a, b, c), (d, e, f) = matrix
    if units == "index":  # the middle of a pixel is half a pixel off its corner
        return (a, b, c + (a + b - 1) / 2), (d, e, f + (d + e - 1) / 2)
    if units == "relative":
        (tall, wide), (height, width) = view, size
        across, down = (a * wide / width, b * tall / width), (d * wide / height, e * tall / height)
        return (*across, c / width), (*down, f / height)
    return matrix


def check_places(places: Sequence[int], count: int) -> None:
    """Refuse numbers that are no places, or named twice.

    Raises:
        DataError: these.

    Example:
        >>> check_places([0, 2], 3)
    """
    if len(set(places)) != len(places) or not all(0 <= place < count for place in places):
        raise DataError(f"{list(places)} must be different numbers from 0 to {count - 1}")

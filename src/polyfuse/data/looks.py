"""How images are shown to a model: size, cut to their boxes or whole, threads and memory."""

import math
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.images import Box
from polyfuse.errors import DataError, did_you_mean, printable

Crop = Literal["union", "whole"]
CROPS: tuple[Crop, ...] = get_args(Crop)
# Options that change no number, or only together with the fingerprint.
MAY_CHANGE = ("root", "workers", "cache", "report", "exclude")
MARGIN = 0.15  # Goodfellow et al. 2013, section 5: the box around all digits grows by 30 %
CACHE = 256  # megabytes
_LARGEST = 4096  # pixels of a side
_LONGEST = 64  # characters
_MEGABYTE = 1_000_000
Boxes = NDArray[np.float32]


class Look(NamedTuple):
    """How images are shown to a model, and with how much memory and how many threads.

    Attributes:
        size: (height, width).
        crop: "union": cut to the box around all boxes of the image, where it has any; or "whole".
        margin: share of its width and height by which that box grows on each side.
        workers: threads that decode.
        cache: bytes of decoded images that one process keeps.
    """

    size: tuple[int, int]
    crop: str
    margin: float
    workers: int
    cache: int


def look(
    size: Sequence[int],
    crop: str = "whole",
    margin: float = MARGIN,
    workers: int | None = None,
    cache: int = CACHE,
    longest: int = 6,
) -> Look:
    """Return how images are shown, checked.

    Args:
        size: height and width.
        crop: "union" or "whole".
        margin: share of the box around all boxes by which it grows on each side.
        workers: threads that decode; None is as many as there are cores, at most 8.
        cache: megabytes (1,000,000 bytes) of decoded images that each process keeps.
        longest: characters of a string at most, which is checked here with the rest.

    Raises:
        DataError: options that cannot be, all at once.

    Example:
        >>> look([24, 64], "union").margin
        0.15
    """
    faults = []
    if len(size) != 2 or not all(1 <= side <= _LARGEST for side in size):
        faults.append(f"size={list(size)}; give height and width, 1 to {_LARGEST}: [64, 128]")
    if crop not in CROPS:
        faults.append(
            f"crop={printable(repr(crop))}{did_you_mean(str(crop), CROPS)}; it is union or whole"
        )
    if not 0 <= margin <= 10:  # NaN is not, either
        faults.append(f"margin={margin}; give a share of the box from 0 to 10")
    if workers is not None and workers < 1:
        faults.append(f"workers={workers}; give 1 or more threads")
    if cache < 0:
        faults.append(f"cache={cache}; give megabytes from 0")
    if not 1 <= longest <= _LONGEST:
        faults.append(f"longest={longest}; give 1 to {_LONGEST} characters")
    if faults:
        raise DataError("\n".join(faults))
    threads = workers or min(8, os.cpu_count() or 1)
    return Look((size[0], size[1]), crop, margin, threads, cache * _MEGABYTE)


def outside(boxes: Boxes, width: int, height: int) -> list[str]:
    """Tell the boxes whose middle lies outside an image; what else reaches over an edge is cut.

    Of the contest's 30,000 training images 25 have a box that begins a pixel or two left of or
    above the image, which is no mistake to stop for.

    Args:
        boxes: `(boxes, 4)` left, top, width, height; NaN is no box.
        width: of the image.
        height: of the image.

    Example:
        >>> outside(np.float32([[-1, 0, 8, 8], [20, 0, 8, 8]]), 20, 10)
        ['left 20, top 0, 8 x 8 pixels in an image of 20 x 10']
    """
    if not len(boxes):
        return []
    x, y = boxes[:, 0] + boxes[:, 2] / 2, boxes[:, 1] + boxes[:, 3] / 2
    with np.errstate(invalid="ignore"):
        far = (x < 0) | (x > width) | (y < 0) | (y > height)
    return [
        f"left {left:g}, top {top:g}, {wide:g} x {high:g} pixels in an image of {width} x {height}"
        for left, top, wide, high in boxes[far].tolist()
    ]


def union(boxes: Boxes, width: int, height: int, margin: float) -> Box | None:
    """Return the box around all boxes, grown by a margin on each side, inside the image.

    Args:
        boxes: `(boxes, 4)` left, top, width, height; NaN is no box.
        width: of the image.
        height: of the image.
        margin: share of the box's own width and height.

    Returns:
        (left, top, right, bottom), at least a pixel each way; None where there is no box.

    Example:
        >>> union(np.float32([[10, 10, 10, 20], [20, 10, 10, 20]]), 100, 31, 0.1)
        (8.0, 8.0, 32.0, 31)
    """
    there = boxes[~np.isnan(boxes[:, 0])].astype(np.float64)
    if not len(there):
        return None
    sides = []
    for axis, most in ((0, width), (1, height)):
        low = float(there[:, axis].min())
        high = float((there[:, axis] + there[:, axis + 2]).max())
        grown = margin * (high - low)
        low, high = max(0, low - grown), min(most, high + grown)
        if high - low < 1:  # a box beside the image, or one thinner than a pixel
            low = min(max(0, math.floor((low + high) / 2)), most - 1)
            high = low + 1
        sides.append((low, high))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom

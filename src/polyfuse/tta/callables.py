"""Any function of images as a view: random, but always the same draw for a seed."""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from polyfuse.data.augment import AUGMENTATIONS
from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.tta.base import Size, View, file_name

Augmentation = Callable[..., Tensor]


@dataclass(frozen=True)
class Random(View):
    """One draw of a random function of images, such as a transform of torchvision or kornia.

    A view is the same for every image, or its weight would mean nothing: each image is given to the
    function by itself, `(1, channels, height, width)`, after the seed is set. The answer does not
    depend on how many images come together. The generators of torch, NumPy and Python are seeded,
    and get their own state back.

    Attributes:
        function: maps images to images; with a second parameter `generator` it gets one.
        seed: of the draw.
        moves: it may move pixels: then masks, points and boxes have no way back, and are refused.
        together: the function draws once for all images, so they may come as one batch.
        label: what it is called; by default the function's own name.
    """

    function: Augmentation = field(compare=False)
    seed: int = 0
    moves: bool = True
    together: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        """Name the function."""
        if not callable(self.function):
            raise DataError(
                f"expected a function of images, got {printable(repr(self.function), 80)}"
            )
        if not self.label:
            object.__setattr__(self, "label", _called(self.function))

    @property
    def name(self) -> str:
        """Return the function's name and the seed."""
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in self.label)
        return file_name(f"{plain.lstrip('.')}-seed={self.seed}")

    def apply(self, images: Tensor) -> Tensor:
        """Return what the function makes of each image.

        Raises:
            DataError: what it returns is no batch of images.
        """
        each = [images] if self.together else [image[None] for image in images]
        found = [self._drawn(part) for part in each]
        odd = [one for one in found if not isinstance(one, Tensor) or one.ndim != 4]
        if odd or any(len(one) != len(part) for one, part in zip(found, each, strict=True)):
            got = tuple(found[0].shape) if isinstance(found[0], Tensor) else type(found[0]).__name__
            raise DataError(
                f"{self.name} made {got} of images of shape {tuple(each[0].shape)}; its function "
                "must return as many images"
            )
        return torch.cat(found) if len(found) > 1 else found[0]

    def undo_masks(self, masks: Tensor, size: Size) -> Tensor:
        """Return them, if the function moves nothing.

        Raises:
            DataError: it may.
        """
        self.refuse()
        return masks

    def matrix(self, size: Size) -> Any:
        """Return that nothing moves.

        Raises:
            DataError: it may.
        """
        self.refuse()
        return super().matrix(size)

    def refuse(self) -> None:
        """Refuse to undo what nobody knows.

        Raises:
            DataError: the function may move pixels.
        """
        if self.moves:
            raise DataError(
                f"the view {self.name} may move pixels, and nobody knows the way back of masks, "
                "points and boxes; say moves=False of a function that changes values only (colour, "
                "noise, blur), or leave it out"
            )

    def _drawn(self, images: Tensor) -> Tensor:
        with _seeded(self.seed, images):
            if _takes_generator(self.function):
                generator = Generator(images.device).manual_seed(self.seed)
                return self.function(images, generator)
            return self.function(images)


def random_views(
    function: str | Augmentation,
    n: int = 1,
    *,
    seed: int = 0,
    moves: bool = True,
    together: bool = False,
    options: Mapping[str, Any] | None = None,
) -> list[View]:
    """Return `n` draws of a random function as views.

    Args:
        function: maps images to images, `(images)` or `(images, generator)`; or a name in
            `AUGMENTATIONS`.
        n: how many, 1 or more.
        seed: of the first; the others have the seeds after it.
        moves: it may move pixels: then masks, points and boxes are refused.
        together: the function draws once for all images of a batch.
        options: of the function.

    Raises:
        DataError: an unknown name, no view asked for.

    Example:
        >>> [view.name for view in random_views("shift", 2, seed=7)]
        ['shift-seed=7', 'shift-seed=8']
    """
    if n < 1:
        raise DataError(f"{n} random views were asked for; ask for 1 or more")
    if isinstance(function, str):
        function = _known(function)
    label = _called(function)
    if options:
        function = partial(function, **options)
        label += "-" + ",".join(f"{key}={value}" for key, value in sorted(options.items()))
    return [Random(function, seed + i, moves, together, label) for i in range(n)]


def _known(name: str) -> Augmentation:
    if name not in AUGMENTATIONS:
        raise DataError(
            f"unknown augmentation '{printable(name)}'{did_you_mean(name, AUGMENTATIONS)}; known: "
            f"{', '.join(AUGMENTATIONS)}; or give a function"
        )
    return AUGMENTATIONS[name]


def _called(function: Any) -> str:
    if isinstance(function, partial):
        return _called(function.func)
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>").lower()


def _takes_generator(function: Augmentation) -> bool:
    try:
        return "generator" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins do not tell
        return False


@contextmanager
def _seeded(seed: int, images: Tensor) -> Iterator[None]:
    """Seed every generator that a transform may draw from; give each its state back."""
    devices = [images.device] if images.device.type == "cuda" else []
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)

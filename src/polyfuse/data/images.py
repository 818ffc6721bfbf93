"""New images without labels, from a folder or an array, in the shape that a run was trained on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse import predictions
from polyfuse.data.arrays import Arrays, pixels
from polyfuse.data.base import Rows, Split
from polyfuse.errors import DataError, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_PIXELS = 64 << 20


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, decoded when asked for and resized to one size.

    Attributes:
        paths: files.
        names: their names, as the submission file wants them.
        size: (height, width).
    """

    paths: Sequence[Path]
    names: Sequence[str]
    size: tuple[int, int]
    labels: None = None
    groups: None = None
    blank: None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def inputs(self, rows: Rows) -> Tensor:
        """Return images `rows` as `(m, 3, height, width)` float32 from 0 to 1."""
        pixels = np.stack([_decode(self.paths[row], self.size) for row in rows])
        return torch.from_numpy(pixels).movedim(-1, 1).float().div_(255)

    def fingerprint(self) -> str:
        """Return a SHA-256 over names, sizes and times of the files."""
        facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        return hashlib.sha256(repr((facts, self.size)).encode()).hexdigest()


def new_inputs(path: str | Path, shape: Sequence[int]) -> Split:
    """Read new, unlabelled inputs: a folder of images, or a `.npy` array.

    Args:
        path: a folder with png, jpg, bmp, gif, tiff or webp files, or a `.npy` file.
        shape: of one input of the run, for example `(3, 24, 64)`. Images are resized to it; an
            array must have it, or `(24, 64, 3)`. Of uint8 images 0 to 255 is read as 0 to 1.

    Raises:
        DataError: nothing there, files that are no images (all named), another shape.

    Example:
        >>> new_inputs("/no/such/folder", (3, 24, 64))
        Traceback (most recent call last):
        polyfuse.errors.DataError: there is no folder or .npy file '/no/such/folder'
    """
    place, shown = Path(path), printable(path)
    if place.is_dir():
        return _folder(place, shape)
    if place.suffix == ".npy" and place.exists():
        return _array(predictions.read(place), shape, shown)
    raise DataError(f"there is no folder or .npy file '{shown}'")


def _folder(folder: Path, shape: Sequence[int]) -> ImageFolder:
    if len(shape) != 3 or shape[0] != 3:
        raise DataError(
            f"the run takes inputs of shape {tuple(shape)}, not images; give a .npy file"
        )
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"'{printable(folder)}' has no images ({', '.join(SUFFIXES)})")
    _check_all(files)
    return ImageFolder(files, [p.name for p in files], (shape[1], shape[2]))


def _check_all(files: Sequence[Path]) -> None:
    """Read every header now: bad files are known before any work, and all of them at once."""
    faults = [fault for file in files if (fault := _fault(file))]
    if faults:
        listed = "\n".join(faults[:20]) + (f"\nand {len(faults) - 20} more" if faults[20:] else "")
        raise DataError(
            f"{len(faults)} of {len(files)} images cannot be read:\n{listed}\n"
            "remove them or replace them"
        )


def _fault(file: Path) -> str | None:
    from PIL import Image

    try:
        if not file.is_file():
            return f"{printable(file)}: not a regular file"
        with Image.open(file) as image:
            if image.width * image.height > _PIXELS:
                return f"{printable(file)}: {image.width} x {image.height} pixels is too large"
            image.verify()
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        return f"{printable(file)}: {printable(error)}"
    return None


def _decode(file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = size
    try:
        with Image.open(file) as image:
            small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(small, dtype=np.uint8)
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise DataError(f"cannot read the image '{printable(file)}': {printable(error)}") from None


def _array(array: NDArray[Any], shape: Sequence[int], shown: str) -> Arrays:
    wanted = tuple(shape)
    turned = array.ndim == 4 and (array.shape[3], *array.shape[1:3]) == wanted
    if turned and array.shape[1:] != wanted:
        array = np.moveaxis(array, -1, 1)
    if array.shape[1:] != wanted:
        raise DataError(f"'{shown}' has shape {array.shape}; the run takes (n, {str(wanted)[1:]}")
    try:
        return Arrays(np.ascontiguousarray(pixels(array)))
    except DataError as error:
        raise DataError(f"'{shown}': {error}") from None

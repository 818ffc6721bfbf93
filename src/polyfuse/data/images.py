"""A folder of images without labels, decoded when asked for, in the size a run was trained on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.data.base import Rows
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


def image_folder(folder: Path, shape: Sequence[int]) -> ImageFolder:
    """Open a folder of png, jpg, bmp, gif, tiff or webp files; every header is read at once.

    Args:
        folder: files of other kinds are passed over.
        shape: of one input of the run, `(3, height, width)`; images are resized to it.

    Raises:
        DataError: no images, or files that are no images, all named.

    Example:
        >>> image_folder(Path("."), (64,))
        Traceback (most recent call last):
        polyfuse.errors.DataError: the run takes inputs of shape (64,), not images; give a .npy file
    """
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

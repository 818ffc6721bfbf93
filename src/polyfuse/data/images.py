"""Images, decoded with Pillow: a file's bytes to pixels, and a folder of new, unlabelled ones."""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.data.base import Rows
from polyfuse.errors import DataError, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Pillow would try all it knows, PostScript among them, whatever the name says.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_PIXELS = 64 << 20
_WIDE = ("I", "F")  # and "I;16" and so on: modes that do not become eight bits without a choice
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Placed = Callable[[int, int], Box | None]


def decode(
    raw: bytes | Path, size: tuple[int, int], place: Placed = lambda width, height: None
) -> NDArray[np.uint8]:
    """Return the pixels of an image file, or of a part of it, in one size.

    Args:
        raw: the file's bytes, or its path.
        size: (height, width) of what is returned.
        place: from the image's width and height to the box to be shown; None shows all of it.

    Returns:
        `(3, height, width)` uint8, red, green and blue; bilinear, and smooth where it is reduced.

    Raises:
        DataError: no png, jpg, bmp, gif, tiff or webp file, a damaged one, one of more than 64
            megapixels, or one of 16 bits; what `place` refuses.

    Example:
        >>> decode(b"hello", (2, 2))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot identify image file
    """
    from PIL import Image

    height, width = size
    with _faults_told(), Image.open(_readable(raw), formats=FORMATS) as image:
        _refuse_unfit(image)
        box = place(image.width, image.height)
        whole = image.convert("RGB")
        shown = whole.resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(shown, dtype=np.uint8).transpose(2, 0, 1)


def side_by_side(work: Callable[[Sequence[int]], None], count: int, workers: int) -> None:
    """Do a work for the numbers below `count`, divided among threads.

    Pillow and hashlib give Python's lock up while they work, so threads are enough.

    Args:
        work: called with some of the numbers, once a thread.
        count: of the numbers.
        workers: threads; with one, or a single number, none is started.

    Example:
        >>> done = []
        >>> side_by_side(done.extend, 5, workers=2)
        >>> sorted(done)
        [0, 1, 2, 3, 4]
    """
    if workers < 2 or count < 2:
        work(range(count))
        return
    with ThreadPoolExecutor(min(workers, count), "decode") as pool:
        # In strides: neighbours are alike in size, so that all threads have as much to do.
        for _ in pool.map(work, [range(i, count, workers) for i in range(min(workers, count))]):
            pass


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, decoded when asked for and resized to one size.

    Attributes:
        paths: files.
        names: their names, as the submission file wants them.
        size: (height, width).
        workers: threads that decode side by side.
    """

    paths: Sequence[Path]
    names: Sequence[str]
    size: tuple[int, int]
    workers: int = 2
    streams: ClassVar[bool] = True  # see data/ahead.py
    labels: None = None
    groups: None = None
    blank: None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def inputs(self, rows: Rows) -> Tensor:
        """Return images `rows` as `(m, 3, height, width)` float32 from 0 to 1."""
        pixels = np.empty((len(rows), 3, *self.size), np.uint8)

        def read(places: Sequence[int]) -> None:
            for place in places:
                pixels[place] = self._decoded(self.paths[rows[place]])

        side_by_side(read, len(rows), self.workers)
        return torch.from_numpy(pixels).float().div_(255)

    def _decoded(self, file: Path) -> NDArray[np.uint8]:
        try:
            return decode(file, self.size)
        except DataError as error:
            raise DataError(f"cannot read the image '{printable(file)}': {error}") from None

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

    if not file.is_file():
        return f"{printable(file)}: not a regular file"
    try:
        with _faults_told(), Image.open(file, formats=FORMATS) as image:
            _refuse_unfit(image)
            image.verify()
    except DataError as error:
        return f"{printable(file)}: {error}"
    return None


def _refuse_unfit(image: Any) -> None:
    """Refuse, by its header, an image that is too large, or whose numbers are no 8-bit colours."""
    if image.width * image.height > _PIXELS:
        raise DataError(f"{image.width} x {image.height} pixels is too large")
    if image.mode.partition(";")[0] in _WIDE:
        raise DataError(f"pixels of mode {printable(image.mode)}; save it with 8 bits a channel")


def _readable(raw: bytes | Path) -> Any:
    return io.BytesIO(raw) if isinstance(raw, bytes) else raw


@contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        fact = "cannot identify image file" if "BytesIO" in str(error) else printable(error)
        raise DataError(fact or type(error).__name__) from None

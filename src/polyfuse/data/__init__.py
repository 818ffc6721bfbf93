"""Data sets that recipes name, each a function that returns three splits; and new inputs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from polyfuse.data.arrays import new_array, read_npz
from polyfuse.data.base import Split, Splits
from polyfuse.data.diabetes import diabetes
from polyfuse.data.digits import digits
from polyfuse.data.images import image_folder
from polyfuse.data.labelled_images import labelled_images
from polyfuse.data.street_numbers import mchar, street_digits, svhn_format1, svhn_format2
from polyfuse.errors import DataError, printable

DATASETS: dict[str, Callable[..., Splits]] = {
    "street_digits": street_digits,
    "mchar": mchar,
    "svhn_format1": svhn_format1,
    "svhn_format2": svhn_format2,
    "labelled_images": labelled_images,
    "digits": digits,
    "diabetes": diabetes,
    "arrays": read_npz,
}


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
    place = Path(path)
    if place.is_dir():
        return image_folder(place, shape)
    if place.suffix == ".npy" and place.exists():
        return new_array(place, shape)
    raise DataError(f"there is no folder or .npy file '{printable(path)}'")

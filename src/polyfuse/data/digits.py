"""Scikit-learn's bundled digits as a data set: 1,797 real images of ten classes, embedded."""

import numpy as np

from polyfuse.classical import bundled_digits
from polyfuse.data.arrays import Arrays
from polyfuse.data.base import Splits
from polyfuse.errors import DataError


def digits(*, train: int = 1000, val: int = 297, test: int = 500, seed: int = 0) -> Splits:
    """Deal the digits into three splits.

    Args:
        train: images to train on.
        val: images to choose on.
        test: images that only tell what was won.
        seed: deals them.

    Returns:
        Three `Arrays` of images `(n, 1, 8, 8)` from 0 to 1 and classes 0 to 9; a row is named by
        its number in scikit-learn's `load_digits`.

    Raises:
        DataError: a split without an image, or more images than there are.

    Example:
        >>> splits = digits(train=100, val=50, test=50)
        >>> [len(split) for split in splits], splits.train.inputs(np.arange(2)).shape
        ([100, 50, 50], torch.Size([2, 1, 8, 8]))
    """
    images, labels = bundled_digits()
    sizes = {"train": train, "val": val, "test": test}
    faults = [f"{name}={size}; type 1 or more" for name, size in sizes.items() if size < 1]
    total = sum(sizes.values())
    if total > len(labels):
        faults.append(f"{total} images are asked for, and there are {len(labels)}; type fewer")
    if faults:
        raise DataError("\n".join(faults))
    order = np.random.default_rng(seed).permutation(len(labels))[:total]
    parts = np.split(order, [train, train + val])
    inputs = images[:, None] / np.float32(16)
    return Splits(
        *(Arrays(inputs[rows], labels[rows], names=list(map(str, rows))) for rows in parts)
    )

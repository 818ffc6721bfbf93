"""The embedded digits: dealt once, each in one split."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from polyfuse.data import DATASETS
from polyfuse.data.digits import digits
from polyfuse.errors import DataError


def test_each_image_is_in_one_split_as_scikit_learn_has_it():
    images, labels = load_digits(return_X_y=True)
    dealt = []
    for split in digits(train=900, val=397, test=500, seed=3):
        rows = [int(name) for name in split.names]
        inputs = split.inputs(np.arange(len(split))).numpy().reshape(-1, 64)
        np.testing.assert_array_equal(16 * inputs, images[rows])
        np.testing.assert_array_equal(split.labels, labels[rows])
        dealt += rows
    assert sorted(dealt) == list(range(1797))
    assert DATASETS["digits"] is digits


def test_the_seed_deals_them():
    same, again, other = (digits(seed=seed).train.fingerprint() for seed in (1, 1, 2))
    assert same == again != other


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [
        ({"train": 0, "val": -1}, ["train=0; type 1 or more", "val=-1; type 1 or more"]),
        ({"train": 1500}, ["2297 images are asked for, and there are 1797; type fewer"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(sizes, facts):
    with pytest.raises(DataError) as caught:
        digits(**sizes)
    assert str(caught.value).splitlines() == facts

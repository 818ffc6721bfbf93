"""Dealing by names: every image is dealt once, by chance, and by nothing but its name."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.data.faults import Faults
from polyfuse.data.listing import Listed, dealt, dealt_splits

NAMES = st.lists(st.text(max_size=5), unique=True, min_size=5, max_size=40)


def listed(names):
    return Listed(names, names, np.arange(len(names))[:, None])


@given(NAMES, st.integers(0, 9))
def test_the_order_of_some_is_that_of_all(names, seed):
    order = [names[i] for i in dealt(names, seed)]
    assert sorted(order) == sorted(names)
    some = names[1:]
    assert [some[i] for i in dealt(some, seed)] == [n for n in order if n != names[0]]


@given(NAMES, st.integers(0, 9))
def test_every_image_is_dealt_to_one_split_with_its_label(names, seed):
    counts = {"train": None, "val": None, "test": None}
    splits = dealt_splits({"": listed(names)}, counts, seed, Faults("root"))
    assert list(splits) == ["train", "val", "test"]
    assert sorted(n for split in splits.values() for n in split.names) == sorted(names)
    assert len(splits["val"].names) == len(splits["test"].names) == len(names) // 5
    for split in splits.values():
        assert [names[row] for row in split.labels[:, 0]] == list(split.names)
        places = [names.index(name) for name in split.names]
        assert places == sorted(places)


def test_the_deal_is_fair():
    names = [f"{i}.png" for i in range(4000)]
    first = np.array([dealt(names, seed)[:800] for seed in range(5)])
    assert abs(first.mean() - 2000) < 60  # five deviations of the mean of 4,000 numbers
    assert len({tuple(row) for row in first}) == 5

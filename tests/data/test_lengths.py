"""Lengths of strings as labels: the rows of the strings themselves, in line with them."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import Arrays, Splits
from polyfuse.data.base import task_of
from polyfuse.data.lengths import Lengths, lengths_of, with_target
from polyfuse.errors import DataError


def strings(labels, **options):
    inputs = torch.arange(3.0 * len(labels)).view(-1, 3)
    return Arrays(inputs, labels, **{"blank": 4, **options})


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=9))
def test_a_label_is_the_number_of_characters_that_are_not_blank(read):
    split = Lengths(strings([one + [4] * (5 - len(one)) for one in read]))
    assert split.labels.tolist() == [len(one) for one in read]
    assert split.labels.dtype == np.int64
    assert split.labels.shape == (len(read),)


def test_all_else_is_the_strings_own():
    base = strings([[1, 4], [2, 3]], groups=[7, 8], names=["a", "b"])
    split = Lengths(base)
    assert len(split) == 2
    assert list(split.names) == ["a", "b"]
    assert split.groups.tolist() == [7, 8]
    assert torch.equal(split.inputs(np.array([1, 0])), base.inputs(np.array([1, 0])))
    assert split.blank is None
    assert task_of(split) == "classification"


def test_the_fingerprint_is_another_and_follows_the_strings():
    one, same, other = (Lengths(strings([[1, last], [2, 3]])) for last in (4, 4, 2))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert one.fingerprint() != one.split.fingerprint()
    # As many characters, but other ones: the data are not the same.
    assert Lengths(strings([[0, 4], [2, 3]])).fingerprint() != one.fingerprint()


def test_labels_that_nobody_knows_stay_unknown():
    assert Lengths(strings([[1, 4]])).labels is not None
    assert Lengths(Arrays(torch.zeros(2, 3), blank=4)).labels is None


def test_workers_get_it_whole():
    split = pickle.loads(pickle.dumps(Lengths(strings([[1, 4], [2, 3]]))))
    assert split.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("split", "fact"),
    [
        (Arrays(torch.zeros(2, 3), [0, 1]), r"labels of shape \(2,\) and blank=None"),
        (Arrays(torch.zeros(2, 3), [[0, 1], [1, 1]]), r"shape \(2, 2\) and blank=None"),
        (Arrays(torch.zeros(2, 3)), "no labels and blank=None"),
        (Arrays(torch.zeros(2, 3), [0, 1], blank=1), r"labels of shape \(2,\) and blank=1"),
    ],
)
def test_what_has_no_length_is_refused(split, fact):
    with pytest.raises(DataError, match=fact):
        Lengths(split)


def test_splits_and_what_makes_them():
    def made(*, rows=2):
        return Splits(*(strings([[1, 4]] * n) for n in (rows, 1, 3)))

    assert [len(split) for split in lengths_of(made())] == [2, 1, 3]
    assert with_target(made, "length")(rows=4).train.labels.tolist() == [1] * 4
    for target in ("characters", None):
        assert with_target(made, target) is made

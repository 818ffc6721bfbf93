"""Batches that are read ahead: the same ones in the same order, and at most one too many."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse.data.ahead import batches
from polyfuse.data.arrays import Arrays
from polyfuse.errors import DataError
from polyfuse.fit import FitOptions, fit_member
from polyfuse.inference import predict


class Streamed(Arrays):
    """Arrays that say they take time to be read, and note who read what."""

    streams = True

    def inputs(self, rows):
        self.seen.append((rows.tolist(), threading.current_thread() is threading.main_thread()))
        if 9 in rows:
            raise DataError("row 9 is damaged")
        return super().inputs(rows)


def streamed(rows=8):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, 3, generator=generator)
    split = Streamed(values, (values.sum(1) > 0).long().numpy())
    object.__setattr__(split, "seen", [])
    return split


PARTS = [np.array([3, 1]), np.array([0]), np.array([7, 7, 2])]


def test_batches_are_the_same_in_the_same_order_and_read_in_a_thread():
    split = streamed()
    found = list(batches(split, PARTS))
    expected = list(batches(Arrays(split.values), PARTS))
    assert len(found) == 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert split.seen == [(part.tolist(), False) for part in PARTS]
    assert list(batches(split, [])) == []


def test_one_batch_is_read_while_another_is_used():
    split = streamed()
    begun = batches(split, PARTS)
    next(begun)
    begun.close()
    assert [rows for rows, _ in split.seen] == [part.tolist() for part in PARTS[:2]]


def test_a_fault_is_told_at_its_own_batch():
    split = streamed(10)
    begun = batches(split, [np.array([0]), np.array([9]), np.array([1])])
    assert next(begun).shape == (1, 3)
    with pytest.raises(DataError, match="row 9 is damaged"):
        next(begun)


def test_training_and_prediction_are_the_same_to_the_bit():
    def trained(split):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
        learn, stop = np.arange(6), np.arange(6, 8)
        options = FitOptions(epochs=3, batch_size=2, patience=5)
        fit_member(net, split, learn, stop, options, seed=1)
        return predict(net, split)

    split = streamed()
    plain = Arrays(split.values, split.labels)
    np.testing.assert_array_equal(trained(split), trained(plain))
    assert sum(main for _, main in split.seen) == 1  # two rows, to see whether the model fits

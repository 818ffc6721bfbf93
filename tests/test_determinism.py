"""Seeds and threads: for the length of a block, and everything given back after it."""

import contextlib
import random

import numpy as np
import pytest
import torch

from polyfuse.determinism import seeded, threads


def drawn():
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_the_same_key_draws_the_same():
    with seeded(0, 1):
        one = drawn()
    with seeded(0, 1):
        assert drawn() == one


@pytest.mark.parametrize("key", [(1, 0), (0, 2), (0,), (0, 1, 1)])
def test_another_key_draws_others_from_every_source(key):
    with seeded(0, 1):
        one = drawn()
    with seeded(*key):
        assert all(a != b for a, b in zip(drawn(), one, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_the_states_outside_go_on_as_if_nothing_had_been(fails):
    def begin():
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    begin()
    expected = drawn()
    begin()
    with contextlib.suppress(KeyError), seeded(0):
        drawn()
        if fails:
            raise KeyError
    assert drawn() == expected


def test_blocks_may_be_nested():
    with seeded(1):
        expected = drawn()
    with seeded(1):
        with seeded(2):
            drawn()
        assert drawn() == expected


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_given_back(fails):
    before = torch.get_num_threads()
    with contextlib.suppress(KeyError), threads(before + 2):
        assert torch.get_num_threads() == before + 2
        if fails:
            raise KeyError
    assert torch.get_num_threads() == before

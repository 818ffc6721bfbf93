"""Looks at weights: each value is looked at within so many, on the CPU at once, elsewhere later."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.averaging import finite
from polyfuse.averaging.finite import Lookout, not_finite, sums_are_finite

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=9),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_every_value_is_looked_at_within_so_many_looks(sizes, looks, random):
    before = finite.LEAST, finite.PIECE
    finite.LEAST, finite.PIECE = 1, 8
    try:
        tensors = {str(i): torch.zeros(size) for i, size in enumerate(sizes)}
        lookout = Lookout(tensors, looks)
        assert all(lookout.all_well() for _ in range(random.randrange(2 * looks)))
        hit = random.choice([tensor for tensor in tensors.values() if len(tensor)] or [None])
        if hit is not None:
            hit[random.randrange(len(hit))] = random.choice([torch.nan, torch.inf, -torch.inf])
            assert not all(lookout.all_well() for _ in range(looks))
            assert not lookout.all_well()  # looks at all from now on
            hit.zero_()
            assert lookout.all_well()
    finally:
        finite.LEAST, finite.PIECE = before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_dtypes(dtype):
    good = torch.full((4, 300), 400.0).to(dtype)[:, ::3]
    bad = good.clone()
    bad[3, 99] = torch.nan
    assert sums_are_finite([good])
    assert not sums_are_finite([good, bad])
    assert not_finite({"good": good, "bad": bad}) == ["bad"]


def test_a_small_model_is_looked_at_whole():
    assert not Lookout({"a": torch.zeros(9), "b": torch.tensor(torch.nan)}, 32).all_well()


def test_a_sum_that_overflows_is_no_alarm():
    huge = torch.full((100,), 3e38)
    assert not sums_are_finite([huge])
    assert not_finite({"huge": huge}) == []
    assert Lookout({"huge": huge}, 1).all_well()


class Late:
    """The look of a GPU: its result is there after the next one has begun."""

    def __init__(self, tensors):
        self.finite, self.asked = sums_are_finite(tensors), 0

    def is_done(self):
        self.asked += 1
        return self.asked > 1

    def is_finite(self):
        return self.finite


def test_a_look_that_ends_later_is_told_then(monkeypatch):
    monkeypatch.setattr(finite, "_Look", Late)
    weight = torch.zeros(3)
    lookout = Lookout({"a": weight}, 1)
    assert lookout.all_well()
    weight[1] = torch.inf
    assert [lookout.all_well() for _ in range(3)] == [True, False, False]
    weight[1] = 0
    assert lookout.all_well()

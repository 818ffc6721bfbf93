"""Boxes: any tiling reads as the tensor does, any slice of it; what does not tile is told."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.checkpoints.base import InMemory
from polyfuse.checkpoints.boxes import Box, Boxes, is_run, untiled
from polyfuse.dtypes import as_elements


@st.composite
def tilings(draw):
    """Draw a shape and boxes that tile it: cut along one dimension after the other."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    boxes = [((), ())]
    for size in shape:
        cut = []
        for offsets, sizes in boxes:
            cuts = [0, *sorted(draw(st.sets(st.integers(1, max(size - 1, 1)), max_size=2))), size]
            cuts = [at for at in cuts if at <= size] if size > 1 else [0, size]
            pairs = itertools.pairwise(cuts)
            cut += [((*offsets, low), (*sizes, high - low)) for low, high in pairs]
        boxes = cut
    return shape, draw(st.permutations(boxes))


def boxes_of(tensor, places):
    """Return the parts of a tensor, as each rank would have saved them."""
    return Boxes(
        tuple(tensor.shape),
        tuple(
            Box(o, n, InMemory(tensor[tuple(slice(a, a + b) for a, b in zip(o, n, strict=True))]))
            for o, n in places
        ),
    )


@given(tilings(), st.data())
def test_any_slice_of_any_tiling_reads_as_the_tensor(tiling, data):
    shape, places = tiling
    count = math.prod(shape)
    tensor = torch.arange(count, dtype=torch.int32).view(shape)
    assert not count or untiled(places, shape) == ""
    start = data.draw(st.integers(0, count))
    out = torch.full((data.draw(st.integers(0, count - start)),), -1, dtype=torch.int32)
    boxes_of(tensor, places).fill(as_elements(out), start)
    assert torch.equal(out, tensor.flatten()[start : start + len(out)])


@given(tilings(), st.data())
def test_a_tiling_with_one_box_moved_grown_lost_or_twice_is_told(tiling, data):
    shape, places = tiling
    if not math.prod(shape):
        return
    at = data.draw(st.integers(0, len(places) - 1))
    offsets, sizes = places[at]
    changes = [places[:at] + places[at + 1 :], [*places, places[at]]]
    for dimension in range(len(shape)):
        moved, grown = list(offsets), list(sizes)
        moved[dimension] += 1
        grown[dimension] += 1
        changes += [
            [*places[:at], (tuple(moved), sizes), *places[at + 1 :]],
            [*places[:at], (offsets, tuple(grown)), *places[at + 1 :]],
        ]
    assert all(untiled(changed, shape) for changed in changes)


@pytest.mark.parametrize(
    ("places", "fault"),
    [
        ([((0, 0), (2, 3))], "they reach to 2 instead of 4 of dimension 0"),
        ([((1, 0), (3, 3))], "they leave a hole at 0 of dimension 0"),
        ([((0, 0), (2, 3)), ((3, 0), (1, 3))], "they leave a hole at 2 of dimension 0"),
        ([((0, 0), (4, 2)), ((0, 1), (4, 2))], "they overlap at 1 of dimension 1"),
        ([((0, 0), (4, 3)), ((0, 0), (4, 3))], "they are not one a place"),
        ([], "they reach to 0 instead of 4 of dimension 0"),
    ],
)
def test_what_keeps_boxes_from_tiling(places, fault):
    assert untiled(places, (4, 3)) == fault


def test_many_boxes_take_time_by_their_number():
    count = 20_000
    assert untiled([((0, i), (1, 1)) for i in range(count)], (1, count)) == ""


@pytest.mark.parametrize(
    ("sizes", "shape", "expected"),
    [
        ((), (), True),
        ((2, 3), (4, 3), True),
        ((4, 2), (4, 3), False),
        ((1, 2), (4, 3), True),
        ((1, 2, 3), (4, 5, 3), True),
        ((2, 2, 3), (4, 5, 3), False),
        ((1, 1, 2), (4, 5, 3), True),
        ((1, 2, 2), (4, 5, 3), False),
    ],
)
def test_a_box_is_a_run_if_its_elements_follow_one_another(sizes, shape, expected):
    assert is_run(Box((0,) * len(shape), sizes, InMemory(torch.zeros(sizes))), shape) is expected


class Whole(InMemory):
    whole = True


def test_boxes_are_read_whole_if_one_must_be():
    half = torch.zeros(2, 3)
    boxes = (Box((0, 0), (2, 3), InMemory(half)), Box((2, 0), (2, 3), Whole(half)))
    assert Boxes((4, 3), boxes).whole
    assert not Boxes((2, 3), boxes[:1]).whole


class Counted(InMemory):
    """Notes how many elements are read of it."""

    read = 0

    def fill(self, out, start):
        Counted.read += len(out)
        super().fill(out, start)


def test_only_the_rows_that_are_asked_for_are_read():
    halves = [torch.zeros(100, 4), torch.zeros(100, 6)]
    places = [((0, 0), (100, 4)), ((0, 4), (100, 6))]
    boxes = [Box(*p, Counted(half)) for p, half in zip(places, halves, strict=True)]
    Counted.read = 0
    Boxes((100, 10), tuple(boxes)).fill(as_elements(torch.empty(15)), 503)
    assert Counted.read == 20

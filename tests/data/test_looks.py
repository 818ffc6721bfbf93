"""How images are cut: always inside the image, around all boxes, at least a pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.data.looks import look, outside, union
from polyfuse.errors import DataError

SIDES = st.integers(1, 300)
NUMBERS = st.floats(-400, 400, width=32)
WIDTHS = st.floats(0.125, 400, width=32)
BOXES = st.lists(st.tuples(NUMBERS, NUMBERS, WIDTHS, WIDTHS), min_size=1, max_size=6)


@given(BOXES, SIDES, SIDES, st.floats(0, 2))
def test_the_cut_is_inside_the_image_and_at_least_a_pixel(boxes, width, height, margin):
    left, top, right, bottom = union(np.float32(boxes), width, height, margin)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left >= 1 - 1e-9
    assert bottom - top >= 1 - 1e-9


@given(BOXES, SIDES, SIDES, st.floats(0, 2))
def test_the_cut_holds_what_of_the_boxes_is_in_the_image(boxes, width, height, margin):
    left, top, right, bottom = union(np.float32(boxes), width, height, margin)
    for x, y, w, h in np.float32(boxes).astype(float):
        if x + w > 0 and x < width:
            assert left <= max(0, x) + 1e-6
            assert right >= min(width, x + w) - 1e-6
        if y + h > 0 and y < height:
            assert top <= max(0, y) + 1e-6
            assert bottom >= min(height, y + h) - 1e-6


@given(BOXES, SIDES, SIDES)
def test_boxes_whose_middle_is_in_the_image_are_no_fault(boxes, width, height):
    told = outside(np.float32(boxes), width, height)
    middles = [(x + w / 2, y + h / 2) for x, y, w, h in np.float32(boxes)]
    far = [not (0 <= x <= width and 0 <= y <= height) for x, y in middles]
    assert len(told) == sum(far)


def test_missing_boxes_are_no_boxes():
    nothing = np.full((6, 4), np.nan, np.float32)
    assert union(nothing, 10, 10, 0.1) is None
    assert outside(nothing, 10, 10) == []
    nothing[0] = [2, 3, 4, 5]
    assert union(nothing, 10, 10, 0.0) == (2, 3, 6, 8)


@pytest.mark.parametrize("margin", [float("nan"), -0.1, 10.1])
def test_margins_that_cannot_be(margin):
    with pytest.raises(DataError, match="give a share of the box from 0 to 10"):
        look([4, 4], margin=margin)

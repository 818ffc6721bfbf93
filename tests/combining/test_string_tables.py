"""Strings in a table of answers: in the characters that the classes are called."""

import string

import numpy as np
import pytest

from polyfuse.combining.submissions import submission


def written(labels, classes=None, blank=10):
    table = submission(
        np.array(labels), "multi_head", ids=None, columns=["id"], classes=classes, blank=blank
    )
    return [line.partition(",")[2] for line in table.splitlines()[1:]]


def test_digits_are_written_as_they_are_called_or_counted():
    assert written([[4, 2, 10], [10, 1, 1], [0, 0, 7]]) == ["42", "", "007"]
    assert written([[4, 2, 10]], classes=[*"0123456789", "none"]) == ["42"]
    assert written([[4, 3, 2]], blank=3) == ["4"]
    assert written([[4, 2, 0]], blank=0) == ["42"]


def test_letters_are_written_as_they_are_called():
    letters = [*string.ascii_letters]
    assert written([[0, 27, 51], [52, 0, 0]], classes=[*letters, "-"], blank=52) == ["aBZ", ""]
    assert written([[1, 0]], classes=["-", *letters], blank=0) == ["a"]


@pytest.mark.parametrize("classes", [None, [f"class {n}" for n in range(37)], ["a"] * 37])
def test_without_characters_numbers_stand_apart(classes):
    assert written([[11, 1, 36], [1, 11, 36]], classes=classes, blank=36) == ["11 1", "1 11"]

"""Text and labels: any alphabet there and back, and what no alphabet has."""

import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.errors import DataError
from polyfuse.sequences import DIGITS, decode, drop_blanks, encode, strings

PLATES = "京津沪ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
ALPHABETS = [DIGITS, string.ascii_letters, string.ascii_letters + DIGITS, PLATES, "x"]


@st.composite
def texts(draw):
    alphabet = draw(st.sampled_from(ALPHABETS))
    return alphabet, draw(st.lists(st.text(alphabet, max_size=8), max_size=6))


@given(texts(), st.integers(0, 3))
def test_encode_then_decode_then_write_is_the_text(drawn, spare):
    alphabet, given_texts = drawn
    positions = max([len(text) for text in given_texts], default=0) + spare
    labels = encode(given_texts, positions=max(positions, 1), alphabet=alphabet)
    assert labels.shape == (len(given_texts), max(positions, 1))
    assert labels.dtype == np.int64
    blank = len(alphabet)
    np.testing.assert_array_equal(decode(labels, blank=blank), labels)
    np.testing.assert_array_equal(drop_blanks(labels, blank=blank), labels)
    assert strings(labels, blank=blank, alphabet=alphabet) == given_texts


@given(texts())
def test_scores_that_say_so_are_read_as_the_text(drawn):
    alphabet, given_texts = drawn
    labels = encode(given_texts, alphabet=alphabet)
    scores = np.eye(len(alphabet) + 1)[labels]
    written = strings(torch.from_numpy(scores), blank=len(alphabet), alphabet=alphabet)
    assert written == given_texts


def test_case_counts_and_eight_characters_fit():
    labels = encode(["aBcDeFgH"], alphabet=string.ascii_letters)
    assert labels.shape == (1, 8)
    assert strings(labels, blank=52, alphabet=string.ascii_letters) == ["aBcDeFgH"]
    assert (labels != encode(["AbCdEfGh"], alphabet=string.ascii_letters)).all()


def test_the_blank_may_be_any_class_that_no_character_needs():
    assert encode(["1", ""], blank=0, positions=2).tolist() == [[1, 0], [0, 0]]
    assert encode(["1"], blank=12, positions=2).tolist() == [[1, 12]]
    with pytest.raises(DataError, match="has '0', which is not in the alphabet"):
        encode(["10"], blank=0)
    with pytest.raises(DataError, match="blank=-1 is no class"):
        encode(["10"], blank=-1)


def test_nothing_to_write_is_written():
    assert encode([]).shape == (0, 1)
    assert encode([""], positions=3).tolist() == [[10, 10, 10]]
    assert strings(np.zeros((0, 3), int), blank=10) == []


def test_all_faults_of_texts_are_told_at_once_and_harmlessly():
    with pytest.raises(DataError) as caught:
        encode(["12", "1\x1b[31m", "12345", "1a"], positions=3)
    lines = str(caught.value).splitlines()
    assert lines == [
        "text 1, '1\\x1b[31m', has '\\x1b', which is not in the alphabet",
        "text 1, '1\\x1b[31m', has 6 characters, more than 3",
        "text 2, '12345', has 5 characters, more than 3",
        "text 3, '1a', has 'a', which is not in the alphabet",
    ]
    with pytest.raises(DataError, match="and 45 more"):
        encode(["x"] * 50)


@pytest.mark.parametrize("alphabet", ["", "0120", None, ["0", "1"]])
def test_an_alphabet_that_is_none_is_refused(alphabet):
    for call in (encode, strings):
        with pytest.raises(DataError, match="alphabet"):
            call([] if call is encode else np.zeros((1, 1), int), blank=5, alphabet=alphabet)


def test_a_class_without_a_character_is_refused_not_written_as_two():
    # Written as numbers, class 11 would be told from 1 and 1 by nobody.
    with pytest.raises(DataError, match="class 11 has no character in an alphabet of 10"):
        strings(np.array([[11, 36]]), blank=36)
    with pytest.raises(DataError, match="class -2 has no character"):
        strings(np.array([[-2, 36]]), blank=36)

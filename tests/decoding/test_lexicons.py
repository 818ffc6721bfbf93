"""Lexicons from files: any alphabet, each word once, and every fault with the line's text."""

import numpy as np
import pytest

from polyfuse.decoding import Decoder, Forbid, Lexicon
from polyfuse.errors import DataError, RunError
from polyfuse.population_decoding import LARGEST, read_lexicon
from polyfuse.sequences import strings

LETTERS = "abAB"


def test_words_of_any_alphabet_are_read_once_each(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffaB\r\nAb\n\n  bb \naB\n".encode())
    words = read_lexicon(file, positions=3, blank=4, alphabet=LETTERS)
    assert strings(words, blank=4, alphabet=LETTERS) == ["aB", "Ab", "bb"]
    assert words.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"aB\nxy\nabab\n", "has 'x', which is not in the alphabet"),
        (b"aB\nxy\nabab\n", "has 4 characters, more than 3"),
        (b"\n \n", "has no words; write one string a line"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_lexicon_are_refused(tmp_path, content, fault):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"words\.txt'") as told:
        read_lexicon(tmp_path / "words.txt", positions=3, blank=4, alphabet=LETTERS)
    assert fault in str(told.value)


def test_a_file_that_is_too_large_or_a_folder_is_not_read(tmp_path):
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(LARGEST + 1)
    for path, fault in ((tmp_path / "large.txt", "at most"), (tmp_path, "not a regular file")):
        with pytest.raises(RunError, match=fault):
            read_lexicon(path, positions=3, blank=4)


def test_words_and_patterns_are_of_the_alphabet():
    labels = np.array([[2, 1, 4], [0, 3, 4], [1, 1, 4], [0, 0, 4]] * 5)  # Ab, aB, bb, aa
    logits = 2 * np.eye(5)[labels]
    logits[::4, 1, 0] += 2.5  # Ab is read Aa, which is no word
    heads = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    words = np.unique(labels, axis=0)
    decoder = Decoder([Lexicon(words), Forbid(("b?",), LETTERS)], blank=4)
    decoder.fit(heads[None], labels)
    assert decoder.strengths[0] > 0
    assert decoder.strengths[1] == 0  # it would spoil every bb
    read = strings(decoder.predict(heads[None])[:, -1], blank=4, alphabet=LETTERS)
    assert read[:4] == ["Ab", "aB", "bb", "aa"]

"""What strings are like: counted as plain counting does, drawn as it is, on the contest's own."""

import json
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import Arrays, sequences
from polyfuse.data.annotations import annotations_of
from polyfuse.data.drawing import drawn, length_lines, tables_of
from polyfuse.data.statistics import statistics_of, statistics_of_split
from polyfuse.errors import DataError

strings = st.lists(st.text("0123456789", max_size=4), min_size=1, max_size=30)


@given(strings)
def test_counts_are_those_of_plain_counting(texts):
    found = statistics_of(sequences.encode(texts, positions=4), blank=10)
    lengths = Counter(map(len, texts))
    assert found.rows == len(texts)
    assert found.lengths.tolist() == [lengths[n] for n in range(5)]
    for position in range(4):
        said = Counter(text[position] for text in texts if len(text) > position)
        assert found.characters[position].tolist() == [said[c] for c in "0123456789"]


@given(strings)
def test_what_comes_after_a_blank_counts_nowhere(texts):
    labels = sequences.encode(texts, positions=4)
    after = np.logical_or.accumulate(labels == 10, 1)
    hurt = np.where(after & (np.cumsum(after, 1) > 1), 3, labels)
    one, other = statistics_of(labels, blank=10), statistics_of(hurt, blank=10)
    assert one.facts() == other.facts()


def test_classes_are_strings_of_one():
    found = statistics_of(np.array([2, 2, 0]), blank=None, alphabet=["a", "b", "c"])
    assert found.lengths.tolist() == [0, 3]
    assert found.characters.tolist() == [[1, 0, 2]]
    many = statistics_of_split(Arrays(np.zeros((2, 1)), [3, 25]))
    assert many.alphabet[25] == "25"


def test_boxes_are_measured_and_holes_are_none():
    boxes = np.array([[[0, 0, 3, 8], [5, 0, 5, 6]], [[0, 0, 4, 7], [np.nan] * 4]])
    found = statistics_of(np.array([[1, 2], [3, 10]]), blank=10, boxes=boxes)
    assert sorted(found.sizes["width"]) == [3, 4, 5]
    assert found.spreads["height"]._asdict() == {
        "least": 6.0,
        "low": np.percentile([6, 7, 8], 5),
        "median": 7.0,
        "high": np.percentile([6, 7, 8], 95),
        "most": 8.0,
    }
    assert statistics_of(np.array([1]), blank=None, boxes=boxes[1:, 1:]).spreads == {}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2)), "only classes and strings"),
        (np.zeros((2, 2, 2), int), "only classes and strings"),
        (np.array([[11, 10]]), "beyond the 10 characters"),
        (np.array([[-1, 10]]), "beyond the 10 characters"),
    ],
)
def test_labels_of_another_kind_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        statistics_of(labels, blank=10)


def test_numbers_to_predict_are_refused_and_unknown_labels_are_none():
    assert statistics_of_split(Arrays(np.zeros((1, 1)))) is None
    with pytest.raises(DataError, match="regression are no classes"):
        statistics_of_split(Arrays(np.zeros((1, 1)), [[0.5]], task="regression"))


def write_mchar(folder, **entries):
    (folder / "mchar_train.json").write_text(json.dumps(entries))


def entry(label, **changes):
    count = len(label)
    sides = {"left": [1] * count, "top": [2] * count, "width": [3] * count, "height": [4] * count}
    return {"label": label, **sides, **changes}


def test_entries_that_are_none_are_counted_and_left_out(tmp_path):
    write_mchar(tmp_path, a=entry([1, 9]), b=entry([11]), c=entry([5], width=[-1]), d={})
    found = annotations_of(tmp_path)["train"]
    assert (found.rows, found.left_out) == (1, 3)
    assert found.lengths.tolist() == [0, 0, 1, 0, 0, 0, 0]
    write_mchar(tmp_path, d={})
    with pytest.raises(DataError, match=r"none of the 1 entries of .* is sound"):
        annotations_of(tmp_path)


def test_labelled_folders_of_any_alphabet(tmp_path):
    for part, text in {
        "train": "file_name,file_code\n1.png,aB3\n2.png,Ba\n",
        "val": "file_name,file_code\n1.png,<&\n",
        "test": "file_name\n1.png\n",
    }.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "labels.csv").write_text(text)
    found = annotations_of(tmp_path)
    assert list(found) == ["train", "val"]
    assert found["train"].alphabet == ["3", "B", "a"]
    assert found["train"].characters.tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 0]]
    ElementTree.fromstring(drawn("a < b", found))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mchar_val.json", "[1]", "has no entries"),
        ("mchar_val.json", "{", "is not JSON"),
        ("train_32x32.mat", "no", "cannot read"),
        ("labels.csv", "a,b\n", "its first line must be"),
        ("labels.csv", "file_name\n1.png\n", "has labels"),
        ("other.txt", "", "no annotation file"),
    ],
)
def test_what_is_no_annotation_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        annotations_of(tmp_path)


def test_all_files_that_are_damaged_are_told_at_once(tmp_path):
    for name in ("mchar_train.json", "mchar_val.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match=r"(?s)mchar_train.*mchar_val"):
        annotations_of(tmp_path)


def test_the_contests_annotations_are_as_its_readme_says(shared_data):
    found = annotations_of(shared_data / "mchar")
    assert list(found) == ["train", "val"]
    assert found["train"].lengths.tolist() == [0, 4636, 16262, 7813, 1280, 8, 1]
    assert (found["train"].rows, found["val"].rows) == (30000, 10000)
    assert len(found["train"].sizes["width"]) == found["train"].characters.sum() == 65765
    assert all(one.left_out == 0 for one in found.values())


def test_real_captchas_have_four_digits(shared_data):
    found = annotations_of(shared_data / "captcha4")["all"]
    assert (found.rows, found.lengths.tolist()) == (4000, [0, 0, 0, 0, 4000])
    assert (found.characters.sum(1) == 4000).all()


def test_the_true_layout_of_svhn(shared_data):
    pytest.importorskip("h5py", reason="SVHN format 1 is HDF5")
    found = annotations_of(shared_data / "svhn_format1")
    assert list(found) == ["train", "test", "extra"]
    assert all(one.rows >= 3 and one.sizes and not one.left_out for one in found.values())


def test_one_file_is_called_after_itself(tmp_path):
    write_mchar(tmp_path, a=entry([1, 9]))
    (found,) = annotations_of(tmp_path).values()
    (other,) = annotations_of(tmp_path / "mchar_train.json").items()
    assert (other[0], other[1].facts()) == ("mchar_train", found.facts())


def test_digits_of_format_2_are_strings_of_one_and_ten_means_zero(tmp_path):
    io = pytest.importorskip("scipy.io")
    for part, labels in {"train": [10, 1, 10, 9], "test": [2, 11, 0]}.items():
        y = np.array(labels, np.uint8)[:, None]
        images = np.zeros((32, 32, 3, len(y)), np.uint8)
        io.savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": y})
    found = annotations_of(tmp_path)
    assert found["train"].characters.tolist() == [[2, 1, 0, 0, 0, 0, 0, 0, 0, 1]]
    assert (found["test"].rows, found["test"].left_out) == (1, 2)


def test_a_picture_has_every_number_that_the_terminal_has():
    draw = np.random.default_rng(0)
    found = {}
    for name, rows in {"train": 1200, "val": 20, "test": 9}.items():
        texts = [str(draw.integers(10 ** draw.integers(1, 5))) for _ in range(rows)]
        found[name] = statistics_of(sequences.encode(texts, positions=6), blank=10)
    document = ElementTree.fromstring(drawn("mine", found))
    said = [one.text for one in document.iter("{http://www.w3.org/2000/svg}text")]
    assert {"train: 1,200", "val: 20", "test: 9"} <= set(said)
    (table,) = tables_of("train", found["train"])
    cells = [cell for row in table.rows for cell in row[1:] if cell != "0.0"]
    assert not Counter(cells) - Counter(said)
    lines = length_lines(found["train"])
    assert sum(int(line[3:13].replace(",", "")) for line in lines) == 1200

"""The user's own arrays: converted and checked once, from memory and from .npz files."""

import importlib
import io
import os
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.data.arrays import Arrays
from polyfuse.errors import DataError

reader = importlib.import_module("polyfuse.data.arrays")  # the package has a function of that name
X, Y = np.arange(8.0).reshape(4, 2), np.array([0, 1, 2, 1])


def held(**changes):
    """Return the arrays of a whole file; None leaves one out."""
    splits = ("train", "val", "test")
    whole = {f"{s}_inputs": X for s in splits} | {f"{s}_labels": Y for s in splits}
    return {name: array for name, array in {**whole, **changes}.items() if array is not None}


def saved(path, save=np.savez, **changes):
    save(path, **held(**changes))
    return str(path)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "u2", "?"])
@pytest.mark.parametrize("kind", [np.asarray, np.ndarray.tolist, torch.as_tensor])
def test_numbers_of_any_kind_become_float32(dtype, kind):
    inputs = Arrays(kind(X.astype(dtype))).inputs(np.array([2, 0]))
    assert inputs.dtype == torch.float32
    np.testing.assert_array_equal(inputs.numpy(), X.astype(dtype)[[2, 0]].astype(np.float32))


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], Y, torch.tensor([0, 1, 2, 1]), Y.astype("u1")])
def test_labels_of_any_kind_become_int64(labels):
    split = Arrays(X, labels)
    assert split.labels.dtype == np.int64
    np.testing.assert_array_equal(split.labels, Y)
    assert len(split) == 4


def test_names_count_unless_given():
    assert Arrays(X).names == ["0", "1", "2", "3"]
    assert Arrays(X, names=("a", "b", "c", "d")).names == ["a", "b", "c", "d"]


def test_what_is_unknown_stays_unknown():
    split = Arrays(X)
    assert (split.labels, split.groups, split.blank) == (None, None, None)


REFUSED = {
    "no rows": ({"values": X[:0]}, r"shape \(0, 2\) have no rows"),
    "a single number": ({"values": 3.0}, "have no rows"),
    "text": ({"values": np.array(["a", "b"])}, "inputs must be numbers"),
    "objects": ({"values": np.array([None, 1])}, "inputs must be numbers"),
    "ragged": ({"values": [[1], [2, 3]]}, "inputs must be numbers"),
    "foreign byte order": ({"values": X.astype(">f4")}, "inputs must be numbers .*byte order"),
    "complex": ({"values": X + 1j}, "complex"),
    "fewer labels": ({"values": X, "labels": Y[:3]}, r"labels of shape \(3,\) for 4 rows"),
    "one label": ({"values": X, "labels": 3}, r"labels of shape \(\) for 4 rows"),
    "negative labels": ({"values": X, "labels": -Y}, "smallest is -2"),
    "labels past int64": ({"values": X, "labels": Y.astype("u8") - np.uint64(1)}, "smallest is -1"),
    "floating labels": ({"values": X, "labels": Y / 2}, "whole numbers from 0, got float64"),
    "text labels": ({"values": X, "labels": list("abcd")}, "whole numbers from 0, got <U1"),
    "missing labels": ({"values": X, "labels": [0, None, 1, 2]}, "got object"),
    "ragged labels": ({"values": X, "labels": [[1], [1, 2], [1], [1]]}, "labels are no array"),
    "labels without positions": ({"values": X, "labels": np.zeros((4, 0), int)}, r"shape \(4, 0\)"),
    "fewer groups": ({"values": X, "groups": [0, 1]}, r"groups of shape \(2,\) for 4 rows"),
    "groups of two axes": ({"values": X, "groups": np.zeros((4, 2), int)}, "groups of shape"),
    "fewer names": ({"values": X, "names": ["a"]}, "1 names for 4 rows"),
}


@pytest.mark.parametrize(("given_arrays", "fact"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:overflow")
def test_misfits_are_refused(given_arrays, fact):
    with pytest.raises(DataError, match=fact):
        Arrays(**given_arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 2, 2)])
def test_inputs_that_are_no_numbers_are_refused_with_their_rows(value, shape):
    values = np.zeros(shape)
    values[2] = value
    with pytest.raises(DataError, match=r"NaN or infinity in 1 of 4 rows \(first: \[2\]\)"):
        Arrays(values)


def test_the_fingerprint_sees_every_change():
    def fingerprint(**changes):
        values = X.astype("f4")
        base = {"values": values, "labels": Y, "groups": Y, "names": list("abcd")}
        return Arrays(**{**base, **changes}).fingerprint()

    touched = X.copy()
    touched[3, 1] += 1
    changes = [
        {},
        {"values": touched},
        {"values": X.reshape(4, 1, 2)},
        {"labels": [0, 1, 2, 0]},
        {"labels": None},
        {"groups": [0, 1, 2, 0]},
        {"groups": None},
        {"names": list("abce")},
    ]
    assert fingerprint() == fingerprint()
    assert len({fingerprint(**change) for change in changes}) == len(changes)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_holds_three_splits(tmp_path, save):
    groups = np.array([5, 5, 6, 6])
    path = saved(tmp_path / "a.npz", save, test_labels=None, train_groups=groups)
    splits = reader.read_npz(path=path, blank=2)
    assert splits.test.labels is None
    np.testing.assert_array_equal(splits.train.groups, groups)
    assert splits.val.groups is None
    for split in splits:
        np.testing.assert_array_equal(split.values.numpy(), X)
        assert split.blank == 2


def test_a_file_of_the_other_byte_order_is_read(tmp_path):
    path = saved(tmp_path / "a.npz", train_inputs=X.astype(">f4"), train_labels=Y.astype(">i4"))
    train = reader.read_npz(path=path).train
    np.testing.assert_array_equal(train.values.numpy(), X)
    np.testing.assert_array_equal(train.labels, Y)


def test_missing_arrays_are_named_with_what_is_there(tmp_path):
    path = saved(tmp_path / "a.npz", train_labels=None, test_inputs=None)
    with pytest.raises(DataError, match="lacks train_labels, test_inputs; it has test_labels, "):
        reader.read_npz(path=path)


FAULTS = {
    "objects": ({"train_labels": np.array([None] * 4)}, "train_labels' holds object, not numbers"),
    "NaN": ({"val_inputs": X * np.nan}, r"a\.npz', val split: inputs hold NaN"),
    "lengths": ({"test_labels": Y[:3]}, "test split: labels of shape"),
    "negative": ({"val_labels": -Y}, "val split: labels must be whole numbers from 0"),
    "one label": ({"val_labels": np.array(3)}, "val split: labels of shape"),
}


@pytest.mark.parametrize(("changes", "fact"), FAULTS.values(), ids=FAULTS)
def test_faults_are_named_with_file_and_split(tmp_path, changes, fact):
    with pytest.raises(DataError, match=fact):
        reader.read_npz(path=saved(tmp_path / "a.npz", **changes))


@pytest.mark.parametrize("raw", [b"", b"hello", b"PK\x05\x06", b"\x93NUMPY\x01\x00"])
def test_what_is_no_archive_is_refused(tmp_path, raw):
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.npz' is not an \.npz"):
        reader.read_npz(path=str(tmp_path / "a.npz"))


def test_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        reader.read_npz(path=str(tmp_path / "a.npz"))
    with pytest.raises(DataError, match="not a regular file"):
        reader.read_npz(path=str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="not a regular file"):
        reader.read_npz(path=str(tmp_path / "fifo"))


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LIMIT", 20_000)
    path = saved(tmp_path / "a.npz", np.savez_compressed, more=np.zeros(10_000))
    assert os.path.getsize(path) < 20_000
    with pytest.raises(DataError, match="unpacks to more than 20,000 bytes"):
        reader.read_npz(path=path)


@pytest.mark.parametrize(
    ("save", "size"), [(np.savez, 10), (np.savez, 100_000), (np.savez_compressed, 10)]
)
def test_an_entry_that_lies_about_its_size_is_refused(tmp_path, save, size):
    path = saved(tmp_path / "a.npz", save)
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    at = raw.index(b"PK\x01\x02")  # the central directory: packed and unpacked size
    raw[at + 20 : at + 28] = 2 * size.to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.npz"):
        reader.read_npz(path=path)


def test_a_member_that_is_no_npy_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(DataError, match=r"notes\.txt' is not a \.npy array"):
        reader.read_npz(path=path)


@given(st.data(), st.sampled_from([np.savez, np.savez_compressed]))
def test_random_damage_is_refused_or_harmless(tmp_path_factory, data, save):
    stream = io.BytesIO()
    save(stream, **held())
    raw = bytearray(stream.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(raw[: data.draw(st.none() | st.integers(0, len(raw)))])
    try:
        splits = reader.read_npz(path=str(path))
    except DataError as error:
        assert "damaged.npz" in str(error)  # noqa: PT017  # damage may be harmless, too
    else:  # the archive's own checksums saw no damage to what was read
        np.testing.assert_array_equal(splits.train.values.numpy(), X)

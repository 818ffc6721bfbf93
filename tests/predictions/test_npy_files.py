"""Predictions on disk: what is written reads back, and no damaged file does harm."""

import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyfuse import predictions
from polyfuse.errors import DataError

KINDS = sorted(predictions.KINDS)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
dtypes = st.tuples(st.sampled_from("<>"), st.sampled_from(KINDS)).map("".join).map(np.dtype)
arrays = hnp.arrays(dtypes, shapes)


def saved(array, version=None, **options):
    """Return the bytes that NumPy itself writes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version, **options)
    return stream.getvalue()


def with_header(text, data=b""):
    """Return a .npy file of any header."""
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def header(shape="(3,)", descr="'<f4'", fortran="False"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def mapped(raw, folder):
    path = folder / "a.npy"
    path.write_bytes(raw)
    return predictions.map_array(path)


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype.newbyteorder("=")
    assert ours.tobytes() == theirs.astype(ours.dtype).tobytes()


@given(arrays)
def test_what_is_written_reads_back(tmp_path_factory, array):
    path = tmp_path_factory.getbasetemp() / "a.npy"
    predictions.write(path, array)
    assert_same(predictions.read(path), array)
    np.testing.assert_array_equal(np.load(path), array)


@given(arrays, st.booleans(), st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_what_numpy_writes_is_read(array, fortran, version):
    given_array = np.asfortranarray(array) if fortran else array
    assert_same(predictions.parse(saved(given_array, version), "a.npy"), given_array)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_every_kind_and_shape_reads_back(tmp_path, kind, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    predictions.write(tmp_path / "a.npy", array)
    assert_same(predictions.read(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[:, 1]])
def test_views_are_written_as_they_look(tmp_path, view):
    array = np.arange(12.0).reshape(4, 3)[view]
    predictions.write(tmp_path / "a.npy", array)
    assert_same(predictions.read(tmp_path / "a.npy"), array)


def test_the_file_is_the_same_every_time_and_numpys_own(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    predictions.write(tmp_path / "a.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == saved(array, (1, 0))


def test_nan_payloads_survive(tmp_path):
    array = np.array([0x7FC00001, 0xFF800000], np.uint32).view(np.float32)
    predictions.write(tmp_path / "a.npy", array)
    assert predictions.read(tmp_path / "a.npy").view(np.uint32).tolist() == [0x7FC00001, 0xFF800000]


def test_what_is_read_is_the_callers_own():
    raw = saved(np.zeros(3))
    array = predictions.parse(raw, "a.npy")
    array += 1
    assert predictions.parse(raw, "a.npy").tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 1]),
        np.array(["text"]),
        np.array([b"raw"]),
        np.array([1j]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, np.longdouble),
    ],
    ids=lambda a: str(a.dtype),
)
def test_only_numbers_are_written_and_read(tmp_path, array):
    with pytest.raises(DataError, match=r"a\.npy' holds .*not numbers; convert it first"):
        predictions.write(tmp_path / "a.npy", array)
    assert os.listdir(tmp_path) == []
    with pytest.raises(DataError, match=r"a\.npy' holds .*not numbers"):
        predictions.parse(saved(array), "a.npy")


class Trap:
    """A pickle that would leave a mark if it were loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("how", ["array", "pickle"])
def test_no_pickle_is_ever_loaded(tmp_path, how):
    trap = Trap(tmp_path / "mark")
    raw = saved(np.array([trap], object)) if how == "array" else pickle.dumps(trap)
    with pytest.raises(DataError, match="not"):
        predictions.parse(raw, "a.npy")
    assert not (tmp_path / "mark").exists()


def test_every_truncation_is_refused():
    raw = saved(np.arange(6.0))
    for length in range(len(raw)):
        with pytest.raises(DataError, match=r"'a\.npy'"):
            predictions.parse(raw[:length], "a.npy")


def test_trailing_bytes_are_refused():
    with pytest.raises(DataError, match="should have 176 bytes by its header but has 177"):
        predictions.parse(saved(np.arange(6.0)) + b"\0", "a.npy")


BAD = {
    "negative": with_header(header("(-3,)"), bytes(12)),
    "two negatives": with_header(header("(-1, -3)"), bytes(12)),
    "zero and negative": with_header(header("(0, -1)")),
    "huge": with_header(header(f"({2**40}, {2**40})"), bytes(12)),
    "huge and empty": with_header(header(f"(0, {2**63})")),
    "65 axes": b"\x93NUMPY\x01\x00\xff\x00"
    + header("(" + "0," * 65 + ")").encode().ljust(254)
    + b"\n",
    "boolean": with_header(header("(True,)"), bytes(4)),
    "float": with_header(header("(3.0,)"), bytes(12)),
    "list": with_header(header("[3]"), bytes(12)),
    "no shape": with_header("{'descr': '<f4', 'fortran_order': False}", bytes(12)),
    "more keys": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'a': 1}"),
    "no dict": with_header("5"),
    "code": with_header("__import__('os').abort()"),
    "open bracket": with_header("{'descr': ("),
    "open quote": with_header("'''"),
    "deep": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000,
    "descr ()": with_header(header(descr="()")),
    "descr 5": with_header(header(descr="5")),
    "fortran 1": with_header(header(fortran="1"), bytes(12)),
    "zeros": bytes(128),
    "html": b"<!doctype html>" + b" " * 200,
    "zip": b"PK\x03\x04" + bytes(100),
    "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
    "header beyond the end": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD)
def test_damaged_headers_are_refused(raw):
    with pytest.raises(DataError, match=r"'a\.npy'"):
        predictions.parse(raw, "a.npy")


@given(st.data())
def test_random_damage_is_refused_or_harmless(data):
    raw = bytearray(saved(np.arange(6.0).reshape(2, 3)))
    for at in data.draw(st.lists(st.integers(0, 127), max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    try:
        array = predictions.parse(bytes(raw), "a.npy")
    except DataError as error:
        assert "'a.npy'" in str(error)  # noqa: PT017  # damage may be harmless, too
    else:
        assert array.nbytes == 48


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(raw):
    with pytest.raises(DataError, match=r"'a\.npy'"):
        predictions.parse(raw, "a.npy")


def test_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a regular file"):
        predictions.read(tmp_path)


# memory-mapped ---------------------------------------------------------------------------------


@settings(max_examples=40)
@given(arrays, st.booleans())
def test_a_map_holds_what_was_written(tmp_path_factory, array, fortran):
    given_array = np.asfortranarray(array) if fortran else array
    assert_same(mapped(saved(given_array), tmp_path_factory.getbasetemp()), given_array)


def test_a_map_may_be_written_to_and_the_file_stays(tmp_path):
    raw = saved(np.arange(3.0))
    array = mapped(raw, tmp_path)
    array += 1
    assert array.tolist() == [1, 2, 3]
    assert (tmp_path / "a.npy").read_bytes() == raw


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD)
def test_damaged_headers_are_not_mapped(tmp_path, raw):
    with pytest.raises(DataError, match=r"a\.npy'"):
        mapped(raw, tmp_path)


def test_truncated_long_and_pickled_files_are_not_mapped(tmp_path):
    raw = saved(np.arange(6.0))
    trap = saved(np.array([Trap(tmp_path / "mark")], object))
    for damaged in (raw[:-1], raw + b"\0", raw[:64], b"", trap):
        with pytest.raises(DataError, match=r"a\.npy'"):
            mapped(damaged, tmp_path)
    assert not (tmp_path / "mark").exists()


def test_a_link_is_followed_only_where_it_may_be(tmp_path):
    predictions.write(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "link.npy").symlink_to("a.npy")
    assert predictions.map_array(tmp_path / "link.npy").tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="cannot read"):
        predictions.map_array(tmp_path / "link.npy", follow=False)


def test_a_map_may_be_larger_than_memory(tmp_path):
    shape = (1 << 20, 1 << 20)
    with open(tmp_path / "a.npy", "wb") as file:
        file.write(predictions.npy_files.header_bytes(np.dtype("u1"), shape))
        try:
            file.truncate(file.tell() + (1 << 40))
        except OSError:
            pytest.skip("this file system has no files of a terabyte")
    array = predictions.map_array(tmp_path / "a.npy")
    assert array.shape == shape
    assert array[-1, -1] == array[0, 0] == 0

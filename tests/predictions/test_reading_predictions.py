"""What people have is read: six formats, one answer; nothing damaged does harm."""

import csv
import gzip
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from polyfuse.errors import DataError, MissingExtraError
from polyfuse.predictions import read_labels, read_predictions

LOGITS = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
NAMES = ["cat", "dog", "owl"]
IDS = [f"{i}.png" for i in range(7)]


def table(header, rows, separator=","):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=separator).writerows([header, *rows] if header else rows)
    return stream.getvalue().encode()


def rows_of(array, ids=None):
    cells = [[repr(float(x)) for x in row] for row in array]
    return [[name, *row] for name, row in zip(ids, cells, strict=True)] if ids else cells


def torch_saved(value, legacy=False):
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def numpy_saved(function, *arrays, **named):
    stream = io.BytesIO()
    function(stream, *arrays, **named)
    return stream.getvalue()


TENSOR = torch.from_numpy(LOGITS)
FORMATS = {
    "a.npy": numpy_saved(np.save, LOGITS),
    "fortran.npy": numpy_saved(np.save, np.asfortranarray(LOGITS)),
    "swapped.npy": numpy_saved(np.save, LOGITS.astype(">f4")),
    "a.npz": numpy_saved(np.savez, LOGITS),
    "packed.npz": numpy_saved(np.savez_compressed, logits=LOGITS),
    "two.npz[logits]": numpy_saved(np.savez, logits=LOGITS, labels=np.arange(7)),
    "a.pt": torch_saved(TENSOR),
    "a.pth": torch_saved({"val": {"logits": TENSOR, "targets": torch.arange(7)}, "epoch": 3}),
    "two.pt[test.logits]": torch_saved({"val": TENSOR + 1, "test": {"logits": TENSOR}}),
    "list.pt[1]": torch_saved([TENSOR + 1, TENSOR]),
    "a.safetensors": "safetensors",
    "header.csv": table(NAMES, rows_of(LOGITS)),
    "plain.csv": table(None, rows_of(LOGITS)),
    "ids.csv": table(["id", *NAMES], rows_of(LOGITS, IDS)),
    "no_header.csv": table(None, rows_of(LOGITS, IDS)),
    "a.tsv": table(["file_name", *NAMES], rows_of(LOGITS, IDS), "\t"),
    "semicolons.csv": table(["", *NAMES], rows_of(LOGITS, IDS), ";"),
    "bom.csv": b"\xef\xbb\xbf" + table(["id", *NAMES], rows_of(LOGITS, IDS)),
    "counted.csv": table(["image", "0", "1", "2"], rows_of(LOGITS, IDS)),
    "a.parquet": "parquet",
}
WITH_IDS = {"ids.csv", "no_header.csv", "a.tsv", "semicolons.csv", "bom.csv", "counted.csv"}
WITH_NAMES = {"header.csv", "ids.csv", "a.tsv", "semicolons.csv", "bom.csv"}


def placed(folder, name, content):
    path = folder / name.partition("[")[0]
    if content == "safetensors":
        save_file({"logits": TENSOR}, path)
    elif content == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        columns = {"id": IDS, **{n: LOGITS[:, i] for i, n in enumerate(NAMES)}}
        parquet.write_table(pyarrow.table(columns), path)
    else:
        path.write_bytes(content)
    return folder / name


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_numbers(tmp_path, name):
    member = read_predictions(placed(tmp_path, name, FORMATS[name]))
    np.testing.assert_array_equal(member.array, LOGITS)
    assert member.array.dtype.isnative
    assert member.name == str(tmp_path / name)
    assert member.ids == (IDS if name in {*WITH_IDS, "a.parquet"} else None)
    counted = ["0", "1", "2"] if name == "counted.csv" else None
    assert member.classes == (NAMES if name in {*WITH_NAMES, "a.parquet"} else counted)
    assert member.space is None
    assert read_predictions(tmp_path / name, space="logit").space == "logit"


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_read_may_be_changed_and_the_file_stays(tmp_path, name):
    path = placed(tmp_path, name, FORMATS[name])
    before = (tmp_path / name.partition("[")[0]).read_bytes()
    read_predictions(path).array[:] = 0
    assert (tmp_path / name.partition("[")[0]).read_bytes() == before
    np.testing.assert_array_equal(read_predictions(path).array, LOGITS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_tensors_of_other_dtypes(tmp_path, dtype):
    torch.save(TENSOR.to(getattr(torch, dtype)).T, tmp_path / "a.pt")  # strided, too
    found = read_predictions(tmp_path / "a.pt").array
    assert found.dtype == {"bfloat16": "float32"}.get(dtype, dtype)
    np.testing.assert_array_equal(found, TENSOR.to(getattr(torch, dtype)).T.double().numpy())


def test_a_file_may_be_named_with_brackets(tmp_path):
    np.save(tmp_path / "a[1].npy", LOGITS)
    np.testing.assert_array_equal(read_predictions(tmp_path / "a[1].npy").array, LOGITS)


@pytest.mark.parametrize(
    ("header", "cells", "values", "space"),
    [
        (["id", "target"], ["0.25", "1.0"], [0.25, 1.0], None),
        (["PassengerId", "Survived"], ["0", "1"], [0, 1], "label"),
        (["image_id", "breed"], ["pug", "akita"], [1, 0], "label"),
        (["id", "price"], ["1e3", "-2"], [1000.0, -2.0], None),
    ],
)
def test_submissions_of_one_column(tmp_path, header, cells, values, space):
    path = tmp_path / "s.csv"
    path.write_bytes(table(header, [["7", cells[0]], ["9", cells[1]]]))
    member = read_predictions(path)
    assert member.array.tolist() == values
    assert (member.ids, member.space) == (["7", "9"], space)
    assert member.array.dtype.kind == ("i" if space else "f")
    assert member.facts["column"] == header[1]
    assert member.classes == (["akita", "pug"] if "pug" in cells else None)


HEADERS = {
    "labels without header": ("a.png,cat\nb.png,dog\nc.png,cat\n", None),
    "labels with header": ("name,label\na.png,cat\nb.png,cat\n", ["name", "label"]),
    "a certain row": ("1,0\n0,1\n", None),
    "no say at first": ("nan,nan\n0.5,0.5\n", None),
    "no say at first, with ids": ("a,nan,nan\nb,0.5,0.5\n", None),
    "a class named none": ("none,mild\n0.5,0.5\n", ["none", "mild"]),
    "from pandas": (",0,1\n0,0.5,0.5\n", ["", "0", "1"]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_told_from_rows(tmp_path, name):
    from polyfuse.predictions.csv_files import read_csv

    text, names = HEADERS[name]
    (tmp_path / "a.csv").write_text(text)
    assert read_csv(tmp_path / "a.csv").names == names


def test_a_header_may_be_stated(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("cat\ndog\nowl\n")
    assert read_labels(path).names == ["dog", "owl"]
    assert read_labels(path, header=False).names == ["cat", "dog", "owl"]
    path.write_text("0.1,0.5,0.9\n1,2,3\n")
    member = read_predictions(path, task="quantiles", header=True)
    assert (member.levels, member.array.tolist()) == ((0.1, 0.5, 0.9), [[1, 2, 3]])


def test_wide_tables_are_read_some_rows_at_a_time(tmp_path, monkeypatch):
    from polyfuse.predictions import csv_files

    monkeypatch.setattr(csv_files, "_CELLS", 1)
    (tmp_path / "a.csv").write_bytes(FORMATS["ids.csv"])
    member = read_predictions(tmp_path / "a.csv")
    np.testing.assert_array_equal(member.array, LOGITS)
    assert member.ids == IDS


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    from polyfuse.predictions import csv_files

    monkeypatch.setattr(csv_files, "_LINE", 64)
    (tmp_path / "a.csv").write_text("id,a\n" + '"' + "x" * 100)
    with pytest.raises(DataError, match="holds a line of 64 characters; it is no text table"):
        read_predictions(tmp_path / "a.csv")


def test_missing_numbers_are_nan_and_the_id_column_can_be_chosen(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("p,q,fold,case\n0.5,0.5,1,x\n,NA,2,y\n\n\n")
    member = read_predictions(path, id_column="case")
    assert member.ids == ["x", "y"]
    assert member.classes == ["p", "q", "fold"]
    np.testing.assert_array_equal(member.array, [[0.5, 0.5, 1], [np.nan, np.nan, 2]])
    with pytest.raises(DataError, match="has no column 'cose'; did you mean 'case'"):
        read_predictions(path, id_column="cose")


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(cells, numbers, numbers), min_size=1, max_size=6), st.sampled_from(",;\t")
)
def test_any_table_that_the_csv_module_writes_reads_back(tmp_path_factory, rows, separator):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    written = [[name, repr(a), repr(b)] for name, a, b in rows]
    path.write_bytes(table(["id", "a", "b"], written, separator))
    member = read_predictions(path)
    assert member.ids == [row[0] for row in rows]
    np.testing.assert_array_equal(member.array, [row[1:] for row in rows])


def test_more_rows_than_are_held_as_text(tmp_path):
    values = np.random.default_rng(1).random((20_000, 2))
    ids = [f"n{i}" for i in range(20_000)]
    path = tmp_path / "long.csv"
    path.write_bytes(table(["id", "a", "b"], rows_of(values, ids)))
    member = read_predictions(path)
    np.testing.assert_array_equal(member.array, values)
    assert member.ids == ids
    path.write_bytes(path.read_bytes() + b"x,0.5,oops\n")
    with pytest.raises(DataError, match=r"row 20,001, column 'b': 'oops' is no number"):
        read_predictions(path)


# labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "values", "names", "ids"),
    [
        ("y.npy", numpy_saved(np.save, np.array([2, 0])), [2, 0], None, None),
        ("y.npy", numpy_saved(np.save, np.array(["b", "a"])), [1, 0], ["a", "b"], None),
        ("y.npy", numpy_saved(np.save, np.array([b"b", b"a"])), [1, 0], ["a", "b"], None),
        ("y.npy", numpy_saved(np.save, np.array([[1.0], [0.0]])), [1, 0], None, None),
        ("y.npy", numpy_saved(np.save, np.array([0.5, 2.0])), [0.5, 2.0], None, None),
        ("y.npz[y]", numpy_saved(np.savez, y=np.array([1, 2]), x=LOGITS), [1, 2], None, None),
        ("y.pt", torch_saved({"x": TENSOR, "y": torch.tensor([3, 1])}), [3, 1], None, None),
        ("y.csv", b"id,label\nx,dog\ny,cat\n", [1, 0], ["cat", "dog"], ["x", "y"]),
        ("y.csv", b"id,label\nx,3\ny,-1\n", [3, -1], None, ["x", "y"]),
        ("y.csv", b"4\n5\n", [4, 5], None, None),
        ("y.csv", b"id,a,b\nx,1,2\ny,3,4\n", [[1, 2], [3, 4]], None, ["x", "y"]),
    ],
)
def test_labels(tmp_path, name, content, values, names, ids):
    placed(tmp_path, name, content)
    found = read_labels(tmp_path / name)
    assert (found.values.tolist(), found.names, found.ids) == (values, names, ids)
    assert found.values.dtype in (np.int64, np.float64)


def test_one_of_several_columns_of_labels(tmp_path):
    path = tmp_path / "y.csv"
    path.write_text("id,fold,breed\nx,0,pug\ny,1,akita\n")
    with pytest.raises(DataError, match="these columns: fold, breed; name the one that holds"):
        read_labels(path)
    assert read_labels(path, column="breed").names == ["akita", "pug"]
    assert read_labels(path, column="fold").values.tolist() == [0, 1]
    with pytest.raises(DataError, match="did you mean 'breed'"):
        read_labels(path, column="bread")


def test_one_text_among_labels_makes_all_of_them_texts(tmp_path):
    (tmp_path / "y.csv").write_text("id,label\na,1\nb,2\nc,x\n")
    assert read_labels(tmp_path / "y.csv").names == ["1", "2", "x"]
    with pytest.raises(DataError, match="row 3, column 'label': 'x' is no number"):
        read_predictions(tmp_path / "y.csv")


@pytest.mark.parametrize("content", ["id,label\nx,dog\ny,\n", "id,label\nx,1\ny,\n"])
def test_rows_without_a_label_are_refused(tmp_path, content):
    (tmp_path / "y.csv").write_text(content)
    with pytest.raises(DataError, match=r"no label in 1 rows \(first: 2\); leave these rows out"):
        read_labels(tmp_path / "y.csv")


# what is refused -------------------------------------------------------------------------------


def stated(size):
    """Return an .npz whose only entry states another size than it has."""
    raw = bytearray(numpy_saved(np.savez_compressed, a=np.zeros(1000)))
    at = raw.index(b"PK\1\2")
    raw[at + 24 : at + 28] = struct.pack("<I", size)
    return bytes(raw)


def a_bomb():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        header = numpy_saved(np.save, np.zeros(0)).replace(b"(0,)", b"(40000000,)")[:128]
        with archive.open("a.npy", "w", force_zip64=True) as entry:
            entry.write(header.ljust(127) + b"\n")
            for _ in range(320):
                entry.write(bytes(1_000_000))
    return stream.getvalue()


class Trap:
    """A pickle that would leave a mark if it were loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


WHOLE = numpy_saved(np.save, LOGITS)
DAMAGED = {
    "truncated.npy": (WHOLE[:-1], "should have 212 bytes by its header but has 211"),
    "long.npy": (WHOLE + b"\0", "truncated or damaged"),
    "negative.npy": (WHOLE.replace(b"(7, 3)", b"(-7,3)"), "should have"),
    "huge.npy": (WHOLE.replace(b"(7, 3), }         ", b"(9999999999, 3), }"), "should have"),
    "header.npy": (WHOLE.replace(b"'descr'", b"'dascr'"), "is not a .npy array"),
    "objects.npy": (numpy_saved(np.save, np.array([None]), allow_pickle=True), "not numbers"),
    "text.npy": (numpy_saved(np.save, np.array(["a"])), "not numbers"),
    "complex.npy": (numpy_saved(np.save, np.array([1j])), "not numbers"),
    "scalar.npy": (numpy_saved(np.save, np.array(1.0)), "is empty: its shape is ()"),
    "none.npy": (numpy_saved(np.save, np.zeros((0, 3))), "is empty: its shape is (0, 3)"),
    "short.npz": (numpy_saved(np.savez, LOGITS)[:-30], "is no sound .npz of arrays"),
    "bomb.npz": (a_bomb, "would unpack"),
    "more.npz": (stated(4096), "is no sound .npz|should have"),
    "giant.npz": (stated(0xFFFFFFF0), "would unpack"),
    "objects.npz": (numpy_saved(np.savez, a=np.array([None])), "not numbers"),
    "two.npz": (numpy_saved(np.savez, a=LOGITS, b=LOGITS), r"has several arrays; .*two.npz\[a\]'"),
    "empty.npz": (numpy_saved(np.savez), "it holds nothing"),
    "two.npz[c]": (numpy_saved(np.savez, a=LOGITS, b=LOGITS), "has no array 'c'"),
    "flipped.pt": (torch_saved(TENSOR).replace(TENSOR.numpy().tobytes()[:8], bytes(8)), "CRC"),
    "short.pt": (torch_saved(TENSOR)[:-30], "holds no sound zip archive"),
    "old.pt": (torch_saved(TENSOR, legacy=True), "from before torch 1.6"),
    "two.pt": (
        torch_saved({"a": TENSOR, "b": TENSOR}),
        r"has several: .*name one: '.*two.pt\[a\]'",
    ),
    "two.pt[c]": (torch_saved({"a": TENSOR, "b": TENSOR}), "has no tensor 'c'"),
    "none.pt": (torch_saved({"a": 1}), "holds no tensor that can be read"),
    "a.npy[x]": (WHOLE, "holds no arrays by name; leave"),
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"id,cat,dog\n", "has a header and no rows"),
    "ragged.csv": (b"id,a,b\nx,1,2\ny,1\nz,1,2,3\n", "has 3 columns, but row 2 has 2, row 3 has 4"),
    "blank.csv": (b"id,a,b\nx,1,2\n\ny,1,2\n", "row 2 has 0"),
    "quote.csv": (b'id,a\n"x,1\ny,2\n', "is no CSV as RFC 4180 has it"),
    "nul.csv": (b"id,a\nx,1\0\n", "holds a NUL character"),
    "latin.csv": ("id,a\nü,1\n".encode("latin-1"), "is no UTF-8 text"),
    "utf16.csv": ("id,a\nx,1\n".encode("utf-16"), "is no UTF-8 text"),
    "twice.csv": (b"id,a,a\nx,1,2\n", "names these columns more than once: a"),
    "text.csv": (b"id,a,b\nx,1,hm\ny,2,ho\n", "has columns without numbers: b; drop them"),
    "comma.csv": (
        b"id;a\nx;1\ny;2\n" + b"z;3\n" * 9000 + b'v;"0,5"\n',
        "write decimals with a point",
    ),
    "thousands.csv": (b"id,a\nx,1\n" + b"y,2\n" * 9000 + b"z,1_000\n", "'1_000' is no number"),
    "a.csv.gz": (gzip.compress(b"id,a\nx,1\n"), "is packed; unpack it: gunzip"),
    "page.npy": (b"<!doctype html>" + bytes(200), "is not a .npy array"),
    "a.bin": (b"hello", "is none of .npy, .npz"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_or_several_things_is_refused_by_name(tmp_path, name):
    content, message = DAMAGED[name]
    plain = name.partition("[")[0]
    (tmp_path / plain).write_bytes(content() if callable(content) else content)
    with pytest.raises(DataError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        read_predictions(tmp_path / name)
    assert plain in str(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.csv"])
def test_nothing_is_unpickled(tmp_path, name):
    trap = Trap(tmp_path / "mark")
    writers = {
        "a.npy": lambda: numpy_saved(np.save, np.array([trap], object), allow_pickle=True),
        "a.npz": lambda: numpy_saved(np.savez, a=np.array([trap], object)),
        "a.pt": lambda: torch_saved({"logits": trap, "more": TENSOR}),
        "a.csv": lambda: pickle.dumps(trap),
    }
    (tmp_path / name).write_bytes(writers[name]())
    try:
        read_predictions(tmp_path / name)
    except DataError as error:
        assert str(tmp_path / name) in str(error)  # noqa: PT017  # the tensor beside it may be read
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["a.npy", "two.npz[logits]", "a.pth", "ids.csv"])
def test_every_truncation_is_refused_or_an_honest_table(tmp_path, name):
    whole = FORMATS[name]
    path = tmp_path / name.partition("[")[0]
    for length in range(0, len(whole) - 3, 11):
        path.write_bytes(whole[:length])
        if name.endswith("csv"):
            cut = whole[:length].count(b"\n")
            try:
                member = read_predictions(path)
            except DataError:
                continue
            assert len(member.array) <= cut + 1
        else:
            with pytest.raises(DataError, match=path.name):
                read_predictions(tmp_path / name)


def test_no_file_no_fifo_no_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path, message in (
        (tmp_path / "none.csv", "No such file"),
        (tmp_path / "pipe.csv", "is not a regular file"),
        (tmp_path, "is not a regular file"),
        ("a\0b.npy", "cannot read"),
    ):
        with pytest.raises(DataError, match=message):
            read_predictions(path)


def test_parquet_without_its_package_names_the_command(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(MissingExtraError, match=r"pip install 'polyfuse\[parquet\]'"):
        read_predictions(tmp_path / "a.parquet")


def test_parquet_of_lists_of_texts_and_damaged(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": IDS, "probs": LOGITS.tolist()}), path)
    member = read_predictions(path)
    np.testing.assert_array_equal(member.array, LOGITS)
    assert (member.ids, member.classes) == (IDS, None)
    parquet.write_table(pyarrow.table({"id": [1, 2], "label": ["b", "a"]}), path)
    assert read_labels(path).values.tolist() == [1, 0]
    parquet.write_table(pyarrow.table({"id": [1, 2], "label": [5, None]}), path)
    assert read_predictions(path).ids == ["1", "2"]
    with pytest.raises(DataError, match="no label in 1 rows"):
        read_labels(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="is no sound Parquet file"):
        read_predictions(path)


def test_words_that_are_not_known(tmp_path):
    np.save(tmp_path / "a.npy", LOGITS)
    with pytest.raises(DataError, match="did you mean 'prob'"):
        read_predictions(tmp_path / "a.npy", space="probs")
    with pytest.raises(DataError, match="is no table; leave id_column away"):
        read_predictions(tmp_path / "a.npy", id_column="id")

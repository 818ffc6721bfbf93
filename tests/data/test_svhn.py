"""SVHN: the true annotations equal the contest's, ten is zero, and foreign files do no harm."""

import builtins
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from polyfuse.data import DATASETS
from polyfuse.data.street_numbers import digit_struct, svhn_format1, svhn_format2
from polyfuse.data.street_numbers.digit_struct import read_digit_struct
from polyfuse.data.street_numbers.hdf5_objects import Bytes, Objects, Unusual
from polyfuse.errors import DataError, MissingExtraError

FIELDS = ("label", "left", "top", "width", "height")
SIZE = [16, 32]


@pytest.fixture(scope="module")
def real(shared_data):
    pytest.importorskip("h5py", reason="h5py reads SVHN format 1: pip install 'polyfuse[svhn]'")
    return shared_data / "svhn_format1"


@pytest.fixture
def struct(tmp_path):
    """Return a function that writes a digitStruct.mat as MATLAB lays it out."""
    h5py = pytest.importorskip("h5py", reason="h5py writes and reads SVHN format 1")

    def write(entries, damage=lambda file: None, libver=None):
        path = tmp_path / "digitStruct.mat"
        with h5py.File(path, "w", libver=libver) as file:
            held, top = file.create_group("#refs#"), file.create_group("digitStruct")
            shape = len(entries), 1
            names = top.create_dataset("name", shape, h5py.ref_dtype)
            boxes = top.create_dataset("bbox", shape, h5py.ref_dtype)
            for i, (name, fields) in enumerate(entries):
                codes = np.array([[ord(c)] for c in name], np.uint16)
                names[i, 0] = held.create_dataset(f"n{i}", data=codes).ref
                group = held.create_group(f"b{i}")
                boxes[i, 0] = group.ref
                for field, values in fields.items():
                    put(h5py, held, group, field, values)
            damage(file)
        return path

    return write


def put(h5py, held, group, field, values):
    if len(values) == 1:
        group.create_dataset(field, data=np.array([[float(values[0])]]))
        return
    references = group.create_dataset(field, (len(values), 1), h5py.ref_dtype)
    for j, value in enumerate(values):
        one = held.create_dataset(f"{group.name[-2:]}{field}{j}", data=np.array([[float(value)]]))
        references[j, 0] = one.ref


ONE = ("1.png", {name: [5.0] for name in FIELDS})
TWO = ("2.png", {name: [7.0, 10.0] for name in FIELDS})


def refused(path):
    with pytest.raises(DataError) as caught:
        read_digit_struct(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("part", "split", "count"), [("train", "train", 39), ("test", "val", 40)])
def test_true_annotations_are_those_of_the_contest(shared_data, real, part, split, count):
    read = read_digit_struct(real / part / "digitStruct.mat")
    text = (shared_data / "mchar" / f"mchar_{split}.json").read_text()
    contest = list(json.loads(text).values())[:count]
    assert [entry.name for entry in read] == [f"{i + 1}.png" for i in range(count)]
    for entry, same in zip(read, contest, strict=True):
        assert [label % 10 for label in entry.fields["label"]] == same["label"]
        assert all(entry.fields[name] == same[name] for name in FIELDS[1:])
    assert any(10.0 in entry.fields["label"] for entry in read)


def listed(real, tmp_path, **options):
    """Read the miniature: it has annotations of 119 images, and nine of them."""
    report = tmp_path / "faults.csv"
    with pytest.raises(DataError, match="x missing image"):
        svhn_format1(root=str(real), size=SIZE, report=str(report), **options)
    return svhn_format1(root=str(real), size=SIZE, exclude=str(report), **options)


def test_the_miniature(real, tmp_path):
    splits = listed(real, tmp_path, margin=0.0)
    assert [len(split) for split in splits] == [2, 1, 3]
    dealt = sorted([*splits.train.names, *splits.val.names])
    assert dealt == ["train/1.png", "train/2.png", "train/3.png"]
    assert list(splits.test.names) == ["1.png", "2.png", "3.png"]  # as a submission has them
    test = read_digit_struct(real / "test" / "digitStruct.mat")[:3]
    for row, entry in enumerate(test):
        digits = [int(label) % 10 for label in entry.fields["label"]]
        assert splits.test.labels[row].tolist() == digits + [10] * (6 - len(digits))
        image = Image.open(real / "test" / entry.name).convert("RGB")
        x, y, w, h = (np.array(entry.fields[name]) for name in FIELDS[1:])
        box = (x.min(), y.min(), (x + w).max(), (y + h).max())
        shown = image.resize((32, 16), Image.Resampling.BILINEAR, box=box)
        inputs = splits.test.inputs(np.array([row]))[0].permute(1, 2, 0) * 255
        np.testing.assert_array_equal(inputs.round().byte().numpy(), np.asarray(shown))


def test_extra_images_join_those_to_train_on(real, tmp_path):
    splits = listed(real, tmp_path, extra=True, val=2)
    assert [len(split) for split in splits] == [4, 2, 3]
    names = {*splits.train.names, *splits.val.names}
    assert names == {f"{part}/{i}.png" for part in ("train", "extra") for i in (1, 2, 3)}


def test_a_missing_annotation_and_a_missing_folder(real, tmp_path):
    shutil.copytree(real / "train", tmp_path / "train")
    with pytest.raises(DataError, match=r"there is no file '.*/test/digitStruct.mat'"):
        svhn_format1(root=str(tmp_path))


def test_recipes_name_them():
    assert (DATASETS["svhn_format1"], DATASETS["svhn_format2"]) == (svhn_format1, svhn_format2)


def test_what_was_written_is_read(struct):
    entries = [ONE, TWO, ("photo.png", {})]
    seen = []
    read = read_digit_struct(struct(entries), lambda done, total: seen.append((done, total)))
    assert [(entry.name, dict(entry.fields)) for entry in read] == entries
    assert seen == [(3, 3)]


def slowly(monkeypatch):
    """Have every object read by h5py."""

    def unusual(self, name, box):
        raise Unusual("all of it")

    monkeypatch.setattr(digit_struct._Struct, "_quickly", unusual)


def entries_or_error(path):
    try:
        return read_digit_struct(path)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("part", ["train", "test", "extra"])
def test_true_files_are_read_from_their_bytes_alone_as_h5py_reads_them(real, part, monkeypatch):
    path = real / part / "digitStruct.mat"
    with monkeypatch.context() as patch:
        patch.setattr(digit_struct._Struct, "_fields", None)  # what h5py would be asked by
        quick = read_digit_struct(path)
    slowly(monkeypatch)
    assert read_digit_struct(path) == quick


def test_what_another_program_wrote_is_read_by_h5py(struct, monkeypatch):
    path = struct([ONE, TWO], libver="latest")
    objects = digit_struct._Struct._quickly

    def none(self, name, box):
        with pytest.raises(Unusual):
            objects(self, name, box)
        raise Unusual("all of it")

    monkeypatch.setattr(digit_struct._Struct, "_quickly", none)
    assert [(entry.name, dict(entry.fields)) for entry in read_digit_struct(path)] == [ONE, TWO]


def narrow(file):
    """Have a number of another type."""
    del file["#refs#/b0/left"]
    file["#refs#/b0"].create_dataset("left", data=np.array([[5]], ">i2"))


def test_numbers_of_another_type_are_read(struct):
    read = read_digit_struct(struct([ONE, TWO], narrow))
    assert [(entry.name, dict(entry.fields)) for entry in read] == [ONE, TWO]


def test_damaged_bytes_are_read_as_h5py_reads_them(real, tmp_path, monkeypatch):
    raw = (real / "test" / "digitStruct.mat").read_bytes()
    target, rng = tmp_path / "digitStruct.mat", np.random.default_rng(1)
    differing = 0
    for _ in range(15):
        bad = bytearray(raw)
        for place in rng.integers(0, len(bad), 200):
            bad[place] = rng.integers(256)
        target.write_bytes(bad)
        quick = entries_or_error(target)
        with monkeypatch.context() as patch:
            slowly(patch)
            slow = entries_or_error(target)
        assert isinstance(quick, str) or isinstance(slow, str) or same(quick, slow)
        differing += quick != entries_or_error(real / "test" / "digitStruct.mat")
    assert differing


def same(quick, slow):
    """Tell whether entries are the same; NaN is NaN."""
    return repr(quick) == repr(slow)


def test_a_true_file_cut_anywhere(real, tmp_path):
    raw = (real / "train" / "digitStruct.mat").read_bytes()
    target = tmp_path / "digitStruct.mat"
    for size in np.linspace(0, len(raw) - 1, 25).astype(int):
        target.write_bytes(raw[:size])
        assert "or a damaged one" in refused(target)


def test_a_true_file_with_other_bytes_is_read_or_refused(real, tmp_path):
    raw = (real / "train" / "digitStruct.mat").read_bytes()
    target, rng = tmp_path / "digitStruct.mat", np.random.default_rng(0)
    ends = []
    for _ in range(40):
        bad = bytearray(raw)
        for place in rng.integers(0, len(bad), 20):
            bad[place] = rng.integers(256)
        target.write_bytes(bad)
        try:
            ends.append(len(read_digit_struct(target)))
        except DataError as error:
            ends.append(str(error))
    assert any(isinstance(end, str) for end in ends)
    assert {end for end in ends if isinstance(end, int)} <= {39}


def test_no_file_of_this_layout(tmp_path):
    path = tmp_path / "digitStruct.mat"
    assert "there is no file" in refused(path)
    path.mkdir()
    assert "there is no file" in refused(path)
    path.rmdir()
    savemat(path, {"digitStruct": np.zeros(3)})
    assert "is no digitStruct of MATLAB 7.3" in refused(path)


def linked(file):
    h5py = pytest.importorskip("h5py")
    del file["#refs#/b0/left"]
    file["#refs#/b0/left"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft(file):
    h5py = pytest.importorskip("h5py")
    del file["#refs#/b0/left"]
    file["#refs#/b0/left"] = h5py.SoftLink("/digitStruct/name")


def elsewhere(file):
    del file["#refs#/b0/left"]
    where = [("/etc/passwd", 0, 8)]
    file["#refs#/b0"].create_dataset("left", (1, 1), np.float64, external=where)


def virtual(file):
    h5py = pytest.importorskip("h5py")
    layout = h5py.VirtualLayout((1, 1), np.float64)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (1, 1))
    del file["#refs#/b0/left"]
    file["#refs#/b0"].create_virtual_dataset("left", layout)


def elsewhere_digit(file):
    pointed = file["#refs#"].create_dataset("odd", (1, 1), float, external=[("/etc/passwd", 0, 8)])
    file["#refs#/b1/left"][1, 0] = pointed.ref


def many_values(file):
    pointed = file["#refs#"].create_dataset("odd", data=np.zeros((9, 9)))
    file["#refs#/b1/left"][1, 0] = pointed.ref


def text(file):
    del file["#refs#/b0/left"]
    file["#refs#/b0/left"] = "a text"


def a_bomb(file):
    del file["#refs#/b0/left"]
    options = {"chunks": (1 << 25,), "maxshape": (None,), "compression": "gzip"}
    file["#refs#/b0"].create_dataset("left", (8,), np.float64, **options)


def long(file):
    del file["#refs#/b0/left"]
    file["#refs#/b0"].create_dataset("left", (1 << 40,), np.float64, chunks=(64,))


def a_number_for_a_group(file):
    file["digitStruct/bbox"][0, 0] = file["digitStruct/name"][0, 0]


def a_group_for_a_number(file):
    file["#refs#/b1/left"][1, 0] = file["#refs#/b0"].ref


def nothing(file):
    h5py = pytest.importorskip("h5py")
    file["#refs#/b1/left"][1, 0] = h5py.Reference()


def fewer(file):
    del file["digitStruct/bbox"]
    h5py = pytest.importorskip("h5py")
    file["digitStruct"].create_dataset("bbox", (1, 1), h5py.ref_dtype)


def no_references(file):
    del file["digitStruct/bbox"]
    file["digitStruct/bbox"] = np.zeros((2, 1))


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (linked, "left is a link to elsewhere"),
        (soft, "left is a link to elsewhere"),
        (elsewhere, "values that lie in another file"),
        (virtual, "values that lie in another file"),
        (elsewhere_digit, "values that lie in another file"),
        (many_values, "or a damaged one"),
        (text, "values of type object"),
        (a_bomb, "values that unpack to too much"),
        (long, "1,099,511,627,776 values where there are 64 at most"),
        (a_number_for_a_group, "a reference points to something of another kind"),
        (a_group_for_a_number, "a reference points to something of another kind"),
        (nothing, "a reference points to something of another kind"),
        (fewer, "has 2 names and 1 images' boxes"),
        (no_references, "bbox has no references"),
    ],
)
def test_a_file_of_a_stranger_leads_nowhere_and_takes_no_memory(struct, damage, fact):
    assert fact in refused(struct([ONE, TWO], damage))


def test_without_h5py_the_command_that_installs_it(tmp_path, monkeypatch):
    path = tmp_path / "digitStruct.mat"
    path.write_bytes(b"")
    load = builtins.__import__

    def without(name, *rest, **options):
        if name == "h5py":
            raise ImportError(name)
        return load(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyfuse\[svhn\]'"):
        read_digit_struct(path)


# Format 2: the true images, cut to 32 x 32, in files as SVHN has them.


def cropped(folder, counts, **changes):
    """Write files of format 2; image k of a file is k in all its pixels, but for the colour."""
    rng = np.random.default_rng(0)
    held = {}
    for part, count in counts.items():
        images = np.zeros((32, 32, 3, count), np.uint8)
        images[:] = np.arange(count) % 256
        images[:, :, 1] = {"train": 1, "test": 2, "extra": 3}[part]
        images[3, 5, 2] = 77
        labels = rng.integers(1, 11, (count, 1)).astype(np.uint8)
        held[part] = {"X": images, "y": labels, **changes.get(part, {})}
        savemat(folder / f"{part}_32x32.mat", held[part], do_compression=True)
    return {part: found["y"].reshape(-1) for part, found in held.items()}


COUNTS = {"train": 1000, "test": 30}


def test_cut_out_digits_are_classes_and_ten_is_zero(tmp_path):
    labels = cropped(tmp_path, COUNTS)
    splits = svhn_format2(root=str(tmp_path))
    assert [len(split) for split in splits] == [900, 100, 30]
    for split in splits:
        assert (split.images.shape[1:], split.images.dtype) == ((3, 32, 32), np.uint8)
        assert split.blank is None
        for row, name in enumerate(split.names):
            part, _, number = name.partition("/")
            assert split.labels[row] == labels[part][int(number) - 1] % 10
            assert split.images[row, 0, 31, 0] == (int(number) - 1) % 256
            assert split.images[row, 2, 3, 5] == 77  # row, then column
    assert splits.test.labels.tolist().count(0) == labels["test"].tolist().count(10) > 0


def test_neighbours_are_dealt_together_and_are_groups(tmp_path):
    cropped(tmp_path, COUNTS)
    splits = svhn_format2(root=str(tmp_path))
    train, val = ({int(n.split("/")[1]) - 1 for n in split.names} for split in splits[:2])
    assert train | val == set(range(1000))
    assert {row // 50 for row in train}.isdisjoint({row // 50 for row in val})
    for split in splits[:2]:
        rows = [int(name.split("/")[1]) - 1 for name in split.names]
        assert split.groups.tolist() == [row // 50 for row in rows]
    other = svhn_format2(root=str(tmp_path), seed=1)
    assert other.val.names != splits.val.names
    assert svhn_format2(root=str(tmp_path)).val.names == splits.val.names


def test_fewer_and_extra_images(tmp_path):
    cropped(tmp_path, {**COUNTS, "extra": 200})
    splits = svhn_format2(root=str(tmp_path), extra=True, train=300, val=60)
    assert [len(split) for split in splits] == [300, 60, 30]
    assert len(svhn_format2(root=str(tmp_path), extra=True).train) == 1080
    with pytest.raises(DataError, match="val=900 and train=200 images, and there are 1000"):
        svhn_format2(root=str(tmp_path), train=200, val=900)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"X": np.zeros((32, 32, 3, 9), np.uint8)}, r"X uint8 of shape \(32, 32, 3, 9\) and 30"),
        ({"X": np.zeros((3, 32, 32, 30), np.uint8)}, r"X must be uint8 \(32, 32, 3, n\)"),
        ({"X": np.zeros((32, 32, 3, 30))}, "X float64 of shape"),
        ({"y": np.zeros((30, 1), np.uint8)}, "30 labels outside 1 to 10.*row 1 has 0"),
        ({"y": np.full((30, 1), 11, np.uint8)}, "30 labels outside 1 to 10.*row 1 has 11"),
        ({"y": np.full((30, 1), np.nan)}, "30 labels outside 1 to 10"),
        ({"y": np.full((30, 1), "a")}, "30 labels outside 1 to 10"),
    ],
)
def test_files_of_format_2_that_hold_something_else(tmp_path, changes, fact):
    cropped(tmp_path, COUNTS, test=changes)
    with pytest.raises(DataError, match=fact):
        svhn_format2(root=str(tmp_path))


def test_files_of_format_2_that_are_damaged(tmp_path):
    cropped(tmp_path, COUNTS)
    file = tmp_path / "test_32x32.mat"
    raw = file.read_bytes()
    for size in np.linspace(0, len(raw) - 1, 12).astype(int):
        file.write_bytes(raw[:size])
        with pytest.raises(DataError, match=r"test_32x32.mat"):
            svhn_format2(root=str(tmp_path))
    file.unlink()
    with pytest.raises(DataError, match=r"test_32x32.mat': No such file"):
        svhn_format2(root=str(tmp_path))
    savemat(file, {"X": np.zeros(3)})
    with pytest.raises(DataError, match="lacks X or y; it has X"):
        svhn_format2(root=str(tmp_path))


def test_a_file_that_says_it_holds_too_much(tmp_path):
    cropped(tmp_path, COUNTS)
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": np.zeros((32, 32, 3, 30), np.uint8), "y": np.ones((30, 1), np.uint8)})
    raw = file.read_bytes()
    claim = np.array([32, 32, 3, 30], "<i4").tobytes()
    file.write_bytes(raw.replace(claim, np.array([32, 32, 3, 1 << 30], "<i4").tobytes(), 1))
    with pytest.raises(DataError, match=r"X of shape .* is larger than 4,294,967,296 values"):
        svhn_format2(root=str(tmp_path))


def test_a_file_that_is_cut_short_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "digitStruct.mat"
    path.write_bytes(bytes(1 << 18))
    with path.open("rb") as file:
        objects = Objects(Bytes(file.fileno()), 0, 64)
        with pytest.raises(Unusual, match="no object header"):
            objects.values(1 << 17)
        os.truncate(path, 100)
        for address in (96, 1 << 17, 1 << 16):
            with pytest.raises(Unusual, match=r"no object header|cut"):
                objects.values(address)

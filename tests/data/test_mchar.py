"""The contest's files: real annotations, read as they are; and everything that may be wrong."""

import copy
import json
import os
import pickle
import shutil
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import contest
from polyfuse.data import DATASETS, streamed
from polyfuse.data.base import alphabet_of
from polyfuse.data.street_numbers import mchar
from polyfuse.data.street_numbers.mchar import read_entries
from polyfuse.errors import DataError

SIZE = [16, 32]
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("contest") / "mchar"
    return root, contest.make(shared_data, root)


@pytest.fixture
def mine(folder, tmp_path):
    """Return a copy of the folder, to be damaged, and its entries."""
    shutil.copytree(folder[0], tmp_path / "mchar")
    return tmp_path / "mchar", copy.deepcopy(folder[1])


def read(root, **options):
    return mchar(root=str(root), **{"size": SIZE, "workers": 1, **options})


def faults_of(root, **options):
    with pytest.raises(DataError) as caught:
        read(root, **options)
    return str(caught.value)


def test_recipes_name_it():
    assert DATASETS["mchar"] is mchar


def test_rows_are_the_entries_in_their_order(folder):
    root, entries = folder
    splits = read(root)
    assert [len(split) for split in splits] == [24, 8, 5]
    for name, split in zip(("train", "val"), splits, strict=False):
        assert list(split.names) == list(entries[name])
        for row, entry in zip(split.labels.tolist(), entries[name].values(), strict=True):
            assert row == entry["label"] + [10] * (6 - len(entry["label"]))
        assert (split.labels.shape[1], split.labels.dtype) == (6, np.int64)
        assert (split.blank, alphabet_of(split), split.groups) == (10, "0123456789", None)


def test_boxes_are_kept_as_they_are(folder):
    root, entries = folder
    first = next(iter(entries["train"].values()))
    boxes = read(root).train.boxes
    assert (boxes.shape, boxes.dtype) == ((24, 6, 4), np.float32)
    count = len(first["label"])
    columns = [first[field] for field in ("left", "top", "width", "height")]
    np.testing.assert_array_equal(boxes[0, :count], np.transpose(columns))
    assert np.isnan(boxes[0, count:]).all()


def test_test_images_are_in_the_order_of_the_sample_submission(folder):
    test = read(folder[0]).test
    assert list(test.names) == contest.TEST
    assert (test.labels, test.boxes) == (None, None)
    expected = Image.open(folder[0] / "mchar_test_a" / contest.TEST[0])
    np.testing.assert_array_equal(pixels(test, 0), resized(expected))


def test_without_a_sample_they_are_in_the_order_of_their_names(mine):
    (mine[0] / "mchar_sample_submit_A.csv").unlink()
    assert list(read(mine[0]).test.names) == sorted(contest.TEST)


def pixels(split, row):
    """Return one image, height first, as whole numbers."""
    inputs = split.inputs(np.array([row]))
    assert inputs.dtype == torch.float32
    return (inputs[0] * 255).round().byte().permute(1, 2, 0).numpy()


def resized(image, box=None):
    """Return what Pillow's own calls make of an image."""
    wanted = Image.Resampling.BILINEAR
    return np.asarray(image.convert("RGB").resize((SIZE[1], SIZE[0]), wanted, box=box))


def test_whole_images_are_resized(folder):
    root, entries = folder
    train = read(root).train
    for row, name in enumerate(list(entries["train"])[:4]):
        expected = resized(Image.open(root / "mchar_train" / name))
        np.testing.assert_array_equal(pixels(train, row), expected)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_images_are_cut_to_the_union_of_their_boxes(folder, margin):
    root, entries = folder
    splits = read(root, crop="union", margin=margin)
    for split, name in ((splits.train, "train"), (splits.val, "val")):
        for row, (file, entry) in enumerate(list(entries[name].items())[:4]):
            image = Image.open(root / f"mchar_{name}" / file)
            x0, y0 = min(entry["left"]), min(entry["top"])
            x1 = max(map(sum, zip(entry["left"], entry["width"], strict=True)))
            y1 = max(map(sum, zip(entry["top"], entry["height"], strict=True)))
            across, down = margin * (x1 - x0), margin * (y1 - y0)
            box = (max(0, x0 - across), max(0, y0 - down))
            box += (min(image.width, x1 + across), min(image.height, y1 + down))
            np.testing.assert_array_equal(pixels(split, row), resized(image, box))
    whole = Image.open(root / "mchar_test_a" / contest.TEST[0])
    np.testing.assert_array_equal(pixels(splits.test, 0), resized(whole))


def test_validation_images_may_be_whole_as_test_images_are(folder):
    cut, whole = read(folder[0], crop="union"), read(folder[0])
    mixed = read(folder[0], crop="union", val_crop="whole")
    assert mixed.train.fingerprint() == cut.train.fingerprint()
    assert mixed.val.fingerprint() == whole.val.fingerprint() != cut.val.fingerprint()


@pytest.mark.parametrize("options", [{"workers": 3}, {"cache": 0}, {"workers": 3, "cache": 0}])
def test_threads_and_memory_change_nothing(folder, options):
    one, other = read(folder[0]).train, read(folder[0], **options).train
    rows = np.array([5, 0, 23, 5])
    assert torch.equal(one.inputs(rows), other.inputs(rows))
    assert torch.equal(one.inputs(rows), pickle.loads(pickle.dumps(other)).inputs(rows))
    assert one.fingerprint() == other.fingerprint()


def test_the_cache_is_a_budget_and_its_images_are_read_once(mine):
    image = 3 * SIZE[0] * SIZE[1]
    root, _ = mine
    kept = read(root, cache=1)
    assert kept.train._kept.rows == 24
    assert sum(split._kept.pixels.nbytes for split in kept) == 37 * image
    none = read(root, cache=0)
    before = kept.train.inputs(np.arange(24))
    shutil.rmtree(root / "mchar_train")
    assert torch.equal(kept.train.inputs(np.arange(24)), before)
    with pytest.raises(DataError, match=r"image 'mchar_train/.*\.png': there is no such file"):
        none.train.inputs(np.array([0]))


def test_a_budget_that_is_smaller_keeps_the_first_training_images(folder, monkeypatch):
    monkeypatch.setattr("polyfuse.data.looks._MEGABYTE", 10 * 3 * SIZE[0] * SIZE[1])
    splits = read(folder[0], cache=1)
    assert [split._kept.rows for split in splits] == [10, 0, 0]
    whole = read(folder[0], cache=0)
    rows = np.array([3, 20, 9, 10])
    assert torch.equal(splits.train.inputs(rows), whole.train.inputs(rows))


def test_the_fingerprint_is_that_of_the_contents(mine):
    root, entries = mine
    before = [split.fingerprint() for split in read(root)]
    moved = shutil.copytree(root, root.with_name("elsewhere"))
    for file in (moved / "mchar_train").iterdir():
        os.utime(file, ns=(0, 0))
    assert [split.fingerprint() for split in read(moved)] == before
    first = moved / "mchar_train" / next(iter(entries["train"]))
    image = Image.open(first)
    image.putpixel((0, 0), (255, 0, 0))
    image.save(first)
    entries["val"][next(iter(entries["val"]))]["label"][0] = 3
    contest.write(moved, "val", entries["val"])
    contest.sample(moved, sorted(contest.TEST))
    after = [split.fingerprint() for split in read(moved)]
    assert not set(before) & set(after)


def test_the_fingerprint_sees_how_images_are_shown(folder):
    options = [{}, {"size": [16, 33]}, {"crop": "union"}, {"crop": "union", "margin": 0.2}]
    options += [{"longest": 7}]
    assert len({read(folder[0], **option).train.fingerprint() for option in options}) == 5


def test_a_fingerprint_decodes_and_reads_nothing_again(folder, monkeypatch):
    split = read(folder[0]).train
    monkeypatch.setattr(streamed, "decode", None)
    monkeypatch.setattr(type(split.source), "read", None)
    assert len(split.fingerprint()) == 64
    assert pickle.loads(pickle.dumps(split)).fingerprint() == split.fingerprint()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Have checks remembered, and a minute pass for every one that is begun from now on."""
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))
    now = time.time
    monkeypatch.setattr("polyfuse.remembered.time.time", lambda: now() + 60)
    return tmp_path / "cache" / "digests.json"


@pytest.fixture
def reads(monkeypatch):
    """Return the files that are decoded from now on."""
    seen, real = [], streamed.StreamedImages._checked

    def checked(self, row, found):
        seen.append(self.listed.files[row])
        return real(self, row, found)

    monkeypatch.setattr(streamed.StreamedImages, "_checked", checked)
    return seen


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_files_that_were_found_good_are_not_checked_again(mine, cache, reads, kind):
    root, _ = mine
    if kind == "tar":
        shutil.make_archive(str(root / "mchar_train"), "tar", root / "mchar_train")
        shutil.rmtree(root / "mchar_train")
    first = read(root)
    assert len(reads) == 37
    again = read(root, crop="union", cache=0)
    assert len(reads) == 37
    assert read(root).train.fingerprint() == first.train.fingerprint()
    assert again.train.fingerprint() != first.train.fingerprint()
    rows = np.arange(24)
    assert torch.equal(read(root).train.inputs(rows), first.train.inputs(rows))


def test_a_changed_file_or_box_is_checked_again(mine, cache, reads):
    root, entries = mine
    read(root)
    victim = root / "mchar_val" / next(iter(entries["val"]))
    victim.write_bytes(victim.read_bytes()[:-100])
    reads.clear()
    assert "1 x unreadable image" in faults_of(root)
    assert len(reads) == 8  # of the split that it is in
    assert "1 x unreadable image" in faults_of(root)
    assert len(reads) == 16  # faults are not remembered
    next(iter(entries["train"].values()))["left"][0] = 5000
    contest.write(root, "train", entries["train"])
    assert "1 x box outside the image, 1 x unreadable image" in faults_of(root)


def test_progress_is_told_to_the_end(folder):
    seen = []
    read(folder[0], notify=lambda done, total: seen.append((done, total)))
    assert seen == [(24, 37), (32, 37), (37, 37)]


def test_folders_may_be_tars(mine):
    root, _ = mine
    plain = [split.fingerprint() for split in read(root)]
    for place in ("mchar_train", "mchar_test_a"):
        shutil.make_archive(str(root / place), "tar", root, place)
        shutil.rmtree(root / place)
    splits = read(root)
    assert [split.fingerprint() for split in splits] == plain
    assert splits.train.listed.files[0].startswith("mchar_train.tar/")


def test_real_boxes_that_begin_outside_are_cut_not_refused(shared_data, mine):
    root, entries = mine
    real = read_entries(shared_data / "mchar" / "mchar_train.json")
    over = [e for e in real if min(e.fields["left"] + e.fields["top"]) < 0]
    assert len(over) == 25
    for entry in over[:3]:
        entries["train"][entry.name] = dict(entry.fields)
        contest.draw(entry.fields, 0).save(root / "mchar_train" / entry.name)
    contest.write(root, "train", entries["train"])
    splits = read(root, crop="union", margin=0.0)
    assert len(splits.train) == 27
    fields = over[0].fields
    box = (max(0, min(fields["left"])), max(0, min(fields["top"])))
    box += (max(map(sum, zip(fields["left"], fields["width"], strict=True))),)
    box += (max(map(sum, zip(fields["top"], fields["height"], strict=True))),)
    row = list(splits.train.names).index(over[0].name)
    expected = resized(Image.open(root / "mchar_train" / over[0].name), box)
    np.testing.assert_array_equal(pixels(splits.train, row), expected)


def bomb():
    """Return a png of 200 bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    side = (60_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def damage(root, entries):
    """Do everything at once to the training images; return what each file must be told of."""
    names = list(entries)
    images = root / "mchar_train"
    told = {}

    def blame(number, kind):
        told[names[number]] = kind
        return entries[names[number]], images / names[number]

    _, file = blame(0, "unreadable image: image file is truncated")
    file.write_bytes(file.read_bytes()[:-200])
    _, file = blame(1, "missing image")
    file.unlink()
    blame(2, "label: outside 0 to 9 (10 means 0): 11")[0]["label"][0] = 11
    entry, _ = blame(3, "number of characters: 7; there must be 1 to 6")
    entry.update({key: [5] * 7 for key in entry})
    blame(4, "lists of different lengths: ")[0]["left"].append(3)
    blame(5, "box outside the image: left 500")[0]["left"][0] = 500
    del blame(6, "incomplete entry: it has no list of top")[0]["top"]
    blame(7, "label: outside 0 to 9 (10 means 0): True")[0]["label"][0] = True
    blame(8, "box: with nan for a number of pixels")[0]["width"][0] = float("nan")
    _, file = blame(9, "unreadable image: is a symbolic link; put the file itself there")
    file.unlink()
    file.symlink_to(images / names[10])
    _, file = blame(11, "unreadable image: ")
    file.write_bytes(bomb())
    _, file = blame(12, "unreadable image: pixels of mode I;16; save it with 8 bits a channel")
    Image.fromarray(np.zeros((80, 160), np.uint16)).save(file)
    blame(13, "box: with -4 for a number of pixels")[0]["height"][0] = -4
    entry, _ = blame(14, "number of characters: 0")
    entry.update({key: [] for key in entry})
    _, file = blame(15, "unreadable image: cannot identify image file")
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    _, file = blame(16, "unreadable image: is not a regular file")
    file.unlink()
    file.mkdir()
    entries["../../etc/passwd.png"] = entries[names[17]]
    told["../../etc/passwd.png"] = "file name: leaves its folder"
    entries["notes.txt"] = entries[names[17]]
    told["notes.txt"] = "file name: is no image file"
    shutil.copy(images / names[17], images / "unlisted.png")
    told["unlisted.png"] = "missing entry: the image is there, and no list has it"
    return told


def test_all_faults_are_told_at_once_and_can_be_left_out_by_their_list(mine, tmp_path):
    root, entries = mine
    told = damage(root, entries["train"])
    contest.write(root, "train", entries["train"])
    listed = tmp_path / "faults.csv"
    message = faults_of(root, report=str(listed))
    assert message.startswith(f"{len(told)} of 40 files of '{root}' have faults: ")
    for counted in ("6 x unreadable image", "2 x label", "2 x box,", "1 x missing image"):
        assert counted in message
    rows = [line.split(",", 1) for line in listed.read_text().splitlines()[1:]]
    found = {file.removeprefix("mchar_train/"): rest.strip('"') for file, rest in rows}
    for name, kind in told.items():
        assert found[name].replace(",", ": ", 1).replace('"', "").startswith(kind), name
        assert message.count(name) <= 1
    assert found.keys() == told.keys()
    assert f"exclude: {listed}" in message
    splits = read(root, exclude=str(listed))
    good = [name for name in entries["train"] if name not in told]
    assert list(splits.train.names) == good
    assert splits.train.inputs(np.arange(len(good))).shape == (len(good), 3, *SIZE)


def test_the_error_names_the_first_and_counts_the_rest(mine):
    root, _ = mine
    for file in (root / "mchar_train").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    lines = faults_of(root).splitlines()
    assert lines[0].endswith("24 of 37 files of " + f"'{root}' have faults: 24 x unreadable image")
    assert len(lines) == 23
    assert lines[21] == "and 4 more"
    assert "report: faults.csv" in lines[22]


def test_a_name_that_occurs_twice_is_told(mine):
    root, entries = mine
    first = next(iter(entries["train"]))
    text = (root / "mchar_train.json").read_text()
    again = json.dumps(entries["train"][first])
    (root / "mchar_train.json").write_text(text[:-1] + f', "{first}": {again}}}')
    assert f"mchar_train/{first}: file name: is listed twice" in faults_of(root)


def test_the_digit_10_is_0(mine):
    root, entries = mine
    first = next(iter(entries["train"].values()))
    first["label"][0] = 10
    contest.write(root, "train", entries["train"])
    assert read(root).train.labels[0, 0] == 0


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no entries"),
        ("{}", "has no entries"),
        ('{"a.png": 3}', "a.png: incomplete entry: it has no list of label, left, top"),
        ('{"a.png": {"label": 3}}', "a.png: incomplete entry: it has no list of label, left"),
        ('{"\\ud800.png": {}}', "file name: has characters that cannot be shown"),
        ('{"' + "a" * 300 + '.png": {}}', "file name: is no name of 1 to 255"),
    ],
)
def test_annotations_that_are_none(mine, text, fact):
    (mine[0] / "mchar_train.json").write_text(text)
    assert fact in faults_of(mine[0])


def test_what_is_missing_is_told_at_once(mine):
    root, _ = mine
    shutil.rmtree(root / "mchar_val")
    (root / "mchar_test_a").rename(root / "mchar_test_b")
    message = faults_of(root)
    assert "no folder 'mchar_val' and no 'mchar_val.tar'" in message
    assert "no folder 'mchar_test_a'" in message
    (root / "mchar_val.json").unlink()
    assert "cannot read" in faults_of(root)


@pytest.mark.parametrize(
    ("header", "names", "fact"),
    [
        ("file_name,label", contest.TEST, "begins with 'file_name,label'; its first line must be"),
        ("file_name,file_code,x", contest.TEST, "begins with 'file_name,file_code,x'"),
        ("file_name,file_code", contest.TEST[1:], f"{contest.TEST[0]}: missing entry"),
        ("file_name,file_code", [*contest.TEST, "9.png"], "9.png: missing image"),
        ("file_name,file_code", [*contest.TEST, contest.TEST[0]], "is listed twice"),
        ("file_name,file_code", ["../1.png", *contest.TEST], "file name: leaves its folder"),
        ("file_name,file_code", [*contest.TEST, "a,b"], "has 1 rows without 2 cells"),
    ],
)
def test_a_sample_submission_that_does_not_fit(mine, header, names, fact):
    contest.sample(mine[0], names, header)
    assert fact in faults_of(mine[0])


def test_no_test_image_is_left_out_of_a_submission(mine, tmp_path):
    (tmp_path / "faults.csv").write_text(f"file\nmchar_test_a/{contest.TEST[0]}\n")
    message = faults_of(mine[0], exclude=str(tmp_path / "faults.csv"))
    assert "a submission needs a row for each" in message


def test_a_list_of_files_that_are_not_there(mine, tmp_path):
    (tmp_path / "faults.csv").write_text("file\nmchar_train/gone.png\n")
    message = faults_of(mine[0], exclude=str(tmp_path / "faults.csv"))
    assert "names 1 files that" in message
    assert "'mchar_train/gone.png'; remove them from that list" in message


def test_a_report_replaces_no_other_file(mine):
    root, entries = mine
    next(iter(entries["train"].values()))["label"][0] = 11
    contest.write(root, "train", entries["train"])
    target = root / "mchar_sample_submit_A.csv"
    before = target.read_bytes()
    assert "is there and no list of faults; name a new file" in faults_of(root, report=str(target))
    assert target.read_bytes() == before
    own = root / "faults.csv"
    assert faults_of(root, report=str(own)) == faults_of(root, report=str(own))


def test_options_that_cannot_be_are_told_at_once():
    options = {"size": [0, 32], "crop": "unoin", "margin": -1.0, "workers": 0, "cache": -1}
    with pytest.raises(DataError) as caught:
        mchar(root="nowhere", longest=0, **options)
    lines = str(caught.value).splitlines()
    assert [line.partition("=")[0] for line in lines] == [*options, "longest"]
    assert "did you mean 'union'" in lines[1]

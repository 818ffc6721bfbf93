"""Labelled images: 4,000 real captchas, other alphabets, splits dealt by name, damaged lists."""

import gzip
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from polyfuse.data import DATASETS
from polyfuse.data.base import alphabet_of
from polyfuse.data.image_files import index_tar
from polyfuse.data.labelled_images import labelled_images
from polyfuse.errors import DataError
from polyfuse.sequences import strings

CODES = ["aB3", "Zz", "b", "Ab3z", "33", "zzzz", "BA", "a", "3bZ", "Az"]
ALPHABET = "abzABZ3"
LETTERS = {"alphabet": ALPHABET, "longest": 4, "size": [6, 9], "workers": 1}


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(folder, codes=CODES, header="file_name,file_code", first=0):
    """Write images and their labels into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for i, code in enumerate(codes, first):
        picture(i).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{code}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def read(folder, **options):
    return labelled_images(root=str(folder), **{**LETTERS, **options})


def refused(folder, **options):
    with pytest.raises(DataError) as caught:
        read(folder, **options)
    return str(caught.value)


def contents(split):
    """Return what a split has by name: its string and its pixels."""
    texts = strings(split.labels, blank=split.blank, alphabet=alphabet_of(split))
    images = split.inputs(np.arange(len(split)))
    return {
        name: (text, image.numpy().tobytes())
        for name, text, image in zip(split.names, texts, images, strict=True)
    }


def every(splits):
    return {name: found for split in splits for name, found in contents(split).items()}


@pytest.fixture(scope="module")
def captchas(shared_data):
    return shared_data / "captcha4"


def test_recipes_name_it():
    assert DATASETS["labelled_images"] is labelled_images


def test_real_captchas(captchas):
    options = {"longest": 4, "size": [30, 70], "train": 100, "val": 200, "test": 300}
    splits = labelled_images(root=str(captchas), **options)
    assert [len(split) for split in splits] == [100, 200, 300]
    lines = (captchas / "labels.csv").read_text().splitlines()[1:]
    codes = dict(line.split(",") for line in lines)
    assert len(codes) == 4000
    names = [name for split in splits for name in split.names]
    assert len(set(names)) == 600
    for split in splits:
        read_back = strings(split.labels, blank=10)
        assert read_back == [codes[name] for name in split.names]
        assert any(code.startswith("0") for code in read_back)
    with tarfile.open(captchas / "images.tar") as archive:
        for row in (0, 57):
            raw = archive.extractfile(splits.test.names[row]).read()
            image = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))  # 70 x 30 already
            shown = splits.test.inputs(np.array([row]))[0].permute(1, 2, 0) * 255
            np.testing.assert_array_equal(shown.round().byte().numpy(), image)


def test_letters_of_both_cases_in_strings_of_all_lengths(tmp_path):
    splits = read(write(tmp_path))
    assert [len(split) for split in splits] == [6, 2, 2]
    expected = {f"{i}.png": code for i, code in enumerate(CODES)}
    assert {name: text for name, (text, _) in every(splits).items()} == expected
    for split in splits:
        assert (alphabet_of(split), split.blank, split.labels.shape[1]) == (ALPHABET, 7, 4)
        assert split.labels.max() <= 7


def test_eight_characters_and_chinese_number_plates(tmp_path):
    codes = ["京A12345", "沪B9876Z", "粤AD12345", "京沪"] * 2
    write(tmp_path, codes)
    splits = read(tmp_path, alphabet="京沪粤ABDZ0123456789", longest=8)
    assert sorted(text for text, _ in every(splits).values()) == sorted(codes)


@pytest.mark.parametrize("place", ["images", "images.tar", "images.tar within", "./images.tar"])
def test_images_may_lie_in_a_folder_or_a_tar(tmp_path, place):
    plain = every(read(write(tmp_path / "plain")))
    folder = write(tmp_path / "mine")
    (folder / "images").mkdir()
    for file in folder.glob("*.png"):
        file.rename(folder / "images" / file.name)
    if "tar" in place:
        with tarfile.open(folder / "images.tar", "w") as archive:
            inner = {"images.tar": "", "images.tar within": "images", "./images.tar": "."}[place]
            archive.add(folder / "images", inner or ".", recursive=False)
            for file in (folder / "images").iterdir():
                archive.add(file, f"{inner}/{file.name}" if inner else file.name)
        shutil.rmtree(folder / "images")
    assert every(read(folder)) == plain


def test_a_split_moves_to_another_process_with_its_tar(captchas):
    options = {"longest": 4, "size": [30, 70], "train": 10, "val": 5, "test": 5, "cache": 0}
    train = labelled_images(root=str(captchas), **options).train
    moved = pickle.loads(pickle.dumps(train))
    assert torch.equal(moved.inputs(np.arange(10)), train.inputs(np.arange(10)))
    assert moved.fingerprint() == train.fingerprint()


def test_the_seed_deals_and_nothing_else(tmp_path):
    folder = write(tmp_path)
    one, same, other = (read(folder, seed=seed) for seed in (0, 0, 1))
    assert [s.names for s in one] == [s.names for s in same]
    assert [s.names for s in one] != [s.names for s in other]


def test_an_image_that_joins_moves_no_other_between_the_splits_but_at_the_border(tmp_path):
    before = read(write(tmp_path, CODES * 10), val=20, test=20)
    (tmp_path / "100.png").write_bytes((tmp_path / "0.png").read_bytes())
    with open(tmp_path / "labels.csv", "a") as labels:
        labels.write("100.png,a\n")
    after = read(tmp_path, val=20, test=20)
    for old, new in zip(before, after, strict=True):
        assert len(set(old.names) - set(new.names)) <= 1


def test_splits_that_are_folders_are_taken_as_they_are(tmp_path):
    write(tmp_path / "train", CODES)
    write(tmp_path / "val", CODES[:3], first=20)
    test = write(tmp_path / "test", CODES[:4], first=30)
    (test / "labels.csv").write_text("file_name\n33.png\n30.png\n32.png\n31.png\n")
    splits = read(tmp_path)
    assert [len(split) for split in splits] == [10, 3, 4]
    assert list(splits.test.names) == ["33.png", "30.png", "32.png", "31.png"]
    assert splits.test.labels is None
    assert [len(split) for split in read(tmp_path, train=4)] == [4, 3, 4]
    shutil.rmtree(tmp_path / "val")
    assert [len(split) for split in read(tmp_path)] == [8, 2, 4]
    shutil.rmtree(test)
    assert [len(split) for split in read(tmp_path)] == [6, 2, 2]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"val": 0}, "val=0 images, and there are 10 to take them from; type 1 to 10"),
        ({"test": 11}, "test=11 images, and there are 8"),
        ({"val": 5, "test": 5}, "train=0 images, and there are 0 to take them from; bring more"),
        ({"train": 7}, "train=7 images, and there are 6"),
        ({"alphabet": "aba"}, "alphabet: 'a' is in it twice"),
        ({"alphabet": ""}, "alphabet: give 1 to 10,000"),
        ({"alphabet": "a\n"}, "alphabet: give 1 to 10,000"),
        ({"longest": 65}, "longest=65"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, fact):
    assert fact in refused(write(tmp_path), **options)


def test_faults_of_strings_are_told_at_once(tmp_path):
    write(tmp_path, ["aB3", "toolong", "", "a b", "é", "33", "a", "b"])
    (tmp_path / "5.png").unlink()
    (tmp_path / "6.png").write_bytes(b"GIF89a")
    picture(0).save(tmp_path / "new.png")
    with open(tmp_path / "labels.csv", "a") as labels:
        labels.write("../0.png,a\n0.png,a\n")
    message = refused(tmp_path)
    assert message.startswith(f"9 of 10 files of '{tmp_path}' have faults: ")
    for line in (
        "1.png: number of characters: 7; there must be 1 to 4",
        "2.png: number of characters: 0; there must be 1 to 4",
        "3.png: character: not in the alphabet:  ",
        "4.png: character: not in the alphabet: é",
        "5.png: missing image: it is listed, and there is no such file",
        "6.png: unreadable image: ",
        "new.png: missing entry: the image is there, and no list has it",
        "../0.png: file name: leaves its folder: a name has no slash",
        "0.png: file name: is listed twice",
    ):
        assert f"\n{line}" in message


def test_faults_are_told_before_there_are_too_few_images(tmp_path):
    write(tmp_path)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    assert "10 x missing image" in refused(tmp_path)


def test_what_a_list_leaves_out_moves_nothing_else(tmp_path):
    before = read(write(tmp_path, CODES * 10), val=20, test=20)
    gone = before.train.names[0]
    (tmp_path / gone).write_bytes(b"")
    assert f"{gone}: unreadable image" in refused(tmp_path, report=str(tmp_path / "faults.csv"))
    after = read(tmp_path, val=20, test=20, exclude=str(tmp_path / "faults.csv"))
    assert list(after.train.names) == list(before.train.names[1:])
    assert after.val.names == before.val.names
    assert after.test.names == before.test.names


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (b"", "begins with ''; its first line must be file_name,file_code"),
        (b"name,code\n", "begins with 'name,code'"),
        (b"file_name\n0.png\n", "begins with 'file_name'"),
        (
            b"file_name,file_code\n0.png\n",
            "has 1 rows without 2 cells; the first is row 1: '0.png'",
        ),
        (b'file_name,file_code\n"0.png,a\n', "is no table in UTF-8"),
        (b"file_name,file_code\n0.png,\xff\n", "is no table in UTF-8"),
        (b"file_name,file_code\n", "10 x missing entry"),
    ],
)
def test_labels_that_are_no_table(tmp_path, text, fact):
    write(tmp_path)
    (tmp_path / "labels.csv").write_bytes(text)
    assert fact in refused(tmp_path)


def test_a_table_of_another_system_is_read(tmp_path):
    plain = every(read(write(tmp_path)))
    text = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert every(read(tmp_path)) == plain


def test_hidden_files_and_other_kinds_are_no_images(tmp_path):
    plain = every(read(write(tmp_path)))
    (tmp_path / "._0.png").write_bytes(b"x")
    (tmp_path / "readme.txt").write_bytes(b"x")
    assert every(read(tmp_path)) == plain


def test_neither_labels_nor_folders(tmp_path):
    assert f"there is no '{tmp_path}/labels.csv' and no folder 'train'" in refused(tmp_path)
    (tmp_path / "train").mkdir()
    assert "cannot read" in refused(tmp_path)


def tarred(folder, members):
    """Write labels, and a tar of the images and these members beside it."""
    write(folder)
    with tarfile.open(folder / "images.tar", "w") as archive:
        for file in sorted(folder.glob("*.png")):
            archive.add(file, file.name)
            file.unlink()
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return folder


def member(name, kind=tarfile.REGTYPE, target=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made, b""


@pytest.mark.parametrize(
    ("odd", "fact"),
    [
        (member("../../0.png"), "leaves the tar"),
        (member("/etc/0.png"), "leaves the tar"),
        (member("a\\..\\0.png"), "leaves the tar"),
        (member("x.png", tarfile.SYMTYPE, "/etc/passwd"), "is no regular file in the tar"),
        (member("x.png", tarfile.LNKTYPE, "0.png"), "is no regular file in the tar"),
        (member("x.png", tarfile.CHRTYPE), "is no regular file in the tar"),
        (member("x.png", tarfile.FIFOTYPE), "is no regular file in the tar"),
        (member("other/0.png"), "is twice in the tar"),
        (member("x.png"), "missing entry"),
    ],
)
def test_names_in_a_tar_are_not_trusted(tmp_path, odd, fact):
    message = refused(tarred(tmp_path, [odd]))
    assert message.startswith(f"1 of 11 files of '{tmp_path}' has faults: ")
    assert f"images.tar/{odd[0].name}: " in message
    assert fact in message


def test_a_compressed_tar_is_refused_with_the_command_that_helps(tmp_path):
    file = tarred(tmp_path, []) / "images.tar"
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert "is no tar, a compressed or a damaged one" in refused(tmp_path)
    assert "gunzip" in refused(tmp_path)


def test_a_tar_cut_anywhere_is_told(tmp_path):
    file = tarred(tmp_path, []) / "images.tar"
    raw = file.read_bytes()
    for size in range(0, index_tar(file).spans["9.png"][0] + 1, 700):
        file.write_bytes(raw[:size])
        assert "images.tar" in refused(tmp_path)


@pytest.mark.parametrize("place", [0, 100, 124, 148, 257, 345])
def test_a_damaged_header_is_no_end(tmp_path, place):
    file = tarred(tmp_path, []) / "images.tar"
    raw = bytearray(file.read_bytes())
    start, _ = index_tar(file).spans["5.png"]
    raw[start - 512 + place] ^= 1  # its checksum is wrong then, or is another one
    file.write_bytes(raw)
    message = refused(tmp_path)  # by tarfile, or where that takes it for the end, by us
    assert f"'{file}' is " in message
    assert "damaged" in message


def test_a_tar_that_says_it_holds_terabytes(tmp_path):
    huge = tarfile.TarInfo("x.png")
    huge.size = 1 << 42
    file = tarred(tmp_path, []) / "images.tar"
    raw = file.read_bytes()
    end = index_tar(file).spans["9.png"]
    start = end[0] + -(-end[1] // 512) * 512
    file.write_bytes(raw[:start] + huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "images.tar" in refused(tmp_path)


def test_a_tar_that_changes_is_not_read_on(tmp_path):
    train = read(tarred(tmp_path, []), cache=0).train
    os.utime(tmp_path / "images.tar", ns=(0, 0))
    with pytest.raises(DataError, match=r"images\.tar' was changed; start again"):
        train.inputs(np.array([0]))


def test_images_in_two_places_are_ambiguous(tmp_path):
    tarred(tmp_path, [])
    picture(0).save(tmp_path / "0.png")
    assert "has images beside 'labels.csv', such as '0.png', and 'images.tar'" in refused(tmp_path)
    (tmp_path / "images").mkdir()
    assert "has both 'images' and 'images.tar'; keep one" in refused(tmp_path)

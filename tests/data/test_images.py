"""New images without labels: folders and arrays, in the shape of the run, or a clear refusal."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from polyfuse.data import new_inputs
from polyfuse.data.images import SUFFIXES
from polyfuse.errors import DataError

SHAPE = (3, 4, 6)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
EVERY = np.arange(5)


def save(image, file, mode="RGB"):
    Image.fromarray(np.moveaxis(image, 0, -1)).convert(mode).save(file)
    return file


def saved(tmp_path, array):
    np.save(tmp_path / "new.npy", array)
    return tmp_path / "new.npy"


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for i in (3, 0, 4, 1, 2):
        save(PIXELS[i], tmp_path / f"{i}.png")
    split = new_inputs(tmp_path, SHAPE)
    assert len(split) == 5
    assert split.names == [f"{i}.png" for i in range(5)]
    assert (split.labels, split.groups, split.blank) == (None, None, None)
    read = split.inputs(np.array([4, 1]))
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read.numpy(), PIXELS[[4, 1]] / np.float32(255))


def test_other_files_of_a_folder_are_no_images(tmp_path):
    save(PIXELS[0], tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    assert new_inputs(tmp_path, SHAPE).names == ["a.PNG"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(tmp_path, suffix):
    flat = np.full(SHAPE, 100, np.uint8)  # survives lossy compression
    save(flat, tmp_path / f"a{suffix}")
    read = new_inputs(tmp_path, SHAPE).inputs(np.array([0]))
    assert (read * 255 - 100).abs().max() <= 4


@pytest.mark.parametrize(("mode", "tolerance"), [("L", 0), ("RGBA", 0), ("1", 255), ("CMYK", 3)])
def test_other_modes_become_three_channels(tmp_path, mode, tolerance):
    save(np.full(SHAPE, 100, np.uint8), tmp_path / "a.tif", mode)
    read = new_inputs(tmp_path, SHAPE).inputs(np.array([0]))
    assert read.shape == (1, *SHAPE)
    assert (read * 255 - 100).abs().max() <= tolerance


def test_images_are_resized_to_the_run(tmp_path):
    left_white = np.zeros((3, 8, 12), np.uint8)
    left_white[:, :, :6] = 255
    save(left_white, tmp_path / "a.png")
    read = new_inputs(tmp_path, SHAPE).inputs(np.array([0]))[0]
    assert read.shape == SHAPE
    assert (read[:, :, 0] == 1).all()
    assert (read[:, :, -1] == 0).all()


def test_a_changed_image_changes_the_fingerprint(tmp_path):
    file = save(PIXELS[0], tmp_path / "a.png")
    before = new_inputs(tmp_path, SHAPE).fingerprint()
    assert new_inputs(tmp_path, SHAPE).fingerprint() == before
    assert new_inputs(tmp_path, (3, 5, 6)).fingerprint() != before
    os.utime(file, ns=(0, 0))
    assert new_inputs(tmp_path, SHAPE).fingerprint() != before


@pytest.mark.parametrize(
    "array",
    [
        PIXELS,
        np.moveaxis(PIXELS, 1, -1),
        PIXELS / np.float32(255),
        np.moveaxis(PIXELS, 1, -1) / np.float32(255),
        np.asfortranarray(PIXELS / np.float32(255)),
        (PIXELS / np.float32(255)).astype(">f4"),
    ],
)
def test_arrays_of_either_layout(tmp_path, array):
    split = new_inputs(saved(tmp_path, array), SHAPE)
    np.testing.assert_array_equal(split.inputs(EVERY).numpy(), PIXELS / np.float32(255))
    assert split.names == ["0", "1", "2", "3", "4"]


def test_an_array_that_has_the_shape_is_not_turned(tmp_path):
    cube = np.random.default_rng(0).random((2, 3, 3, 3), np.float32)
    read = new_inputs(saved(tmp_path, cube), (3, 3, 3)).inputs(np.array([0, 1]))
    np.testing.assert_array_equal(read.numpy(), cube)


def test_whole_numbers_that_are_no_images_are_read_as_they_are(tmp_path):
    table = np.arange(12, dtype=np.uint8).reshape(3, 4)
    read = new_inputs(saved(tmp_path, table), (4,)).inputs(np.arange(3))
    np.testing.assert_array_equal(read.numpy(), table)


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (np.zeros((5, 3, 4, 7), "f4"), r"has shape \(5, 3, 4, 7\); the run takes \(n, 3, 4, 6\)"),
        (np.zeros((3, 4, 6), "f4"), r"has shape \(3, 4, 6\); the run takes"),
        (np.zeros((0, 3, 4, 6), "f4"), "have no rows"),
        (np.full((1, 3, 4, 6), np.nan, "f4"), "new.npy': inputs hold NaN"),
        (np.zeros((1, 3, 4, 6), "c8"), "holds complex64, not numbers"),
        (np.array("x"), "not numbers"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, array, fact):
    with pytest.raises(DataError, match=fact) as caught:
        new_inputs(saved(tmp_path, array), SHAPE)
    assert "new.npy" in str(caught.value)


def test_damaged_arrays(tmp_path):
    file = saved(tmp_path, PIXELS)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated or damaged"):
        new_inputs(file, SHAPE)


def test_all_files_that_are_no_images_are_named_before_any_work(tmp_path):
    save(PIXELS[0], tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "bad\x1b[31m.png").write_text("x")
    with pytest.raises(DataError) as caught:
        new_inputs(tmp_path, SHAPE)
    message = str(caught.value)
    assert message.startswith("6 of 7 images cannot be read:\n")
    assert message.endswith("\nremove them or replace them")
    for name in ("text.png", "empty.jpg", "folder.png", "fifo.png", "dangling.png", "bad\\x1b[31m"):
        assert name in message
    assert "good.png" not in message
    assert "\x1b" not in message


def test_a_truncated_image_is_a_clear_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    file = save(noise, tmp_path / "a.jpg")
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"a\.jpg"):  # its header is fine, its pixels are not
        new_inputs(tmp_path, SHAPE).inputs(np.array([0]))


def test_many_bad_files_are_counted(tmp_path):
    for i in range(25):
        (tmp_path / f"{i:02d}.png").touch()
    with pytest.raises(DataError) as caught:
        new_inputs(tmp_path, SHAPE)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[21]) == (23, "and 5 more")


def test_huge_images_are_refused_by_their_header(tmp_path):
    Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="9000 x 8000 pixels is too large"):
        new_inputs(tmp_path, SHAPE)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(DataError, match=r"has no images \(.png, .jpg"):
        new_inputs(tmp_path, SHAPE)


@pytest.mark.parametrize("shape", [(72,), (1, 4, 6), (4, 6, 3)])
def test_a_run_that_takes_no_images_takes_no_folder(tmp_path, shape):
    save(PIXELS[0], tmp_path / "a.png")
    with pytest.raises(DataError, match="not images; give a"):
        new_inputs(tmp_path, shape)


@pytest.mark.parametrize("name", ["nothing", "nothing.npy", "mine.npz", "mine.png"])
def test_neither_a_folder_nor_an_array(tmp_path, name):
    if name.startswith("mine"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=f"there is no folder or .npy file '.*{name}'"):
        new_inputs(tmp_path / name, SHAPE)

"""Street numbers: real digits, never in two splits, and the same images for the same seed."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from polyfuse.classical import bundled_digits
from polyfuse.data import DATASETS
from polyfuse.data.street_numbers import (
    BLANK,
    CONTEST_LENGTHS,
    GROUPS,
    POSITIONS,
    StreetNumbers,
    composed,
    street_digits,
)
from polyfuse.errors import DataError


@pytest.fixture(scope="module")
def splits():
    return street_digits(train=1200, val=300, test=300)


def lengths(labels):
    return (labels != BLANK).sum(1)


def test_recipes_name_it():
    assert DATASETS["street_digits"] is street_digits


def test_splits_have_the_sizes_shapes_and_types_asked_for(splits):
    assert [len(split) for split in splits] == [1200, 300, 300]
    for split in splits:
        n = len(split)
        assert (split.images.shape, split.images.dtype) == ((n, 3, 24, 64), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((n, POSITIONS), np.int64)
        assert (split.groups.shape, split.groups.dtype) == ((n,), np.int64)
        assert split.names[:2] == ["000000.png", "000001.png"]
        assert len(set(split.names)) == n
        assert split.blank == BLANK


def test_labels_are_digits_padded_right(splits):
    for split in splits:
        there = split.labels != BLANK
        assert (np.diff(there.astype(int), axis=1) <= 0).all()
        assert there[:, 0].all()
        assert split.labels.min() == 0
        assert split.labels[there].max() == 9


def test_every_digit_and_group_occurs(splits):
    for split in splits:
        digits = split.labels[split.labels != BLANK]
        assert np.bincount(digits, minlength=10).min() > len(digits) / 20
        assert np.bincount(split.groups, minlength=GROUPS).min() > len(split) / 30


def test_lengths_are_the_contests(splits):
    seen = np.bincount(lengths(splits.train.labels), minlength=7)[1:]
    wanted = 1200 * CONTEST_LENGTHS / CONTEST_LENGTHS.sum()
    together = [[*counts[:3], counts[3:].sum()] for counts in (seen, wanted)]
    assert stats.chisquare(*together).pvalue > 0.01


def test_the_contests_lengths_are_those_of_its_annotations(shared_data):
    entries = json.loads((shared_data / "mchar" / "mchar_train.json").read_text())
    seen = np.bincount([len(entry["label"]) for entry in entries.values()], minlength=7)
    np.testing.assert_array_equal(seen, [0, *CONTEST_LENGTHS])


@pytest.mark.parametrize("seed", [0, 1])
def test_every_digit_is_dealt_to_one_hand_and_classes_evenly(seed):
    _, classes = bundled_digits()
    parts = composed._deal(classes, seed)
    hands = [hand for part in parts for hand in part]
    assert (len(parts), len(hands)) == (5, 5 * GROUPS)
    np.testing.assert_array_equal(np.sort(np.concatenate(hands)), np.arange(1797))
    counts = np.array([np.bincount(classes[hand], minlength=10) for hand in hands])
    assert (counts.max(0) - counts.min(0) <= 1).all()


def test_the_seed_decides_who_is_dealt_what():
    _, classes = bundled_digits()
    one, same, other = (composed._deal(classes, seed)[3][0].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_the_shares_of_the_splits_do_not_meet():
    shares = [part for parts in composed._SHARES.values() for part in parts]
    assert sorted(shares) == [0, 1, 2, 3, 4]


def drawn_pieces(monkeypatch, **sizes):
    """Compose, and return the source digits that each block of each split was drawn of."""
    images, classes = bundled_digits()
    marked = np.broadcast_to(np.arange(1797)[:, None, None], images.shape).copy()
    seen = []
    monkeypatch.setattr(composed, "bundled_digits", lambda: (marked, classes))
    monkeypatch.setattr(
        composed,
        "_render",
        lambda glyphs, at: (
            seen.append(glyphs[:, :, 0, 0]) or np.zeros((len(glyphs), 2, 24, 64), np.float32)
        ),
    )
    return seen, street_digits(**sizes), classes


def test_no_source_digit_is_in_two_splits_or_two_groups(monkeypatch):
    seen, splits, classes = drawn_pieces(monkeypatch, train=256, val=256, test=256)
    homes = {}
    for number, (pieces, split) in enumerate(zip(seen, splits, strict=True)):
        shown = split.labels != BLANK
        np.testing.assert_array_equal(classes[pieces[:, :POSITIONS]][shown], split.labels[shown])
        for image, group in zip(pieces.tolist(), split.groups.tolist(), strict=True):
            for digit in image:  # distractors, too
                assert homes.setdefault(digit, (number, group)) == (number, group)
    assert len(homes) > 1600


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    one, same, other = (street_digits(train=8, val=4, test=4, seed=s) for s in (3, 3, 4))
    assert [s.fingerprint() for s in one] == [s.fingerprint() for s in same]
    assert not {s.fingerprint() for s in one} & {s.fingerprint() for s in other}


@pytest.mark.parametrize("n", [1, 256, 257])
def test_the_first_images_of_more_are_the_same(splits, n):
    fewer = street_digits(train=n, val=1, test=n)
    for few, many in ((fewer.train, splits.train), (fewer.test, splits.test)):
        np.testing.assert_array_equal(few.images, many.images[:n])
        np.testing.assert_array_equal(few.labels, many.labels[:n])
        np.testing.assert_array_equal(few.groups, many.groups[:n])


def test_splits_show_different_images(splits):
    images = [image.tobytes() for split in splits for image in split.images]
    assert len(set(images)) == len(images)


def test_ink_and_ground_differ_by_a_fifth_in_luminance():
    ground, ink = composed._colours(5000, np.random.default_rng(0))
    light, dark = (c[:, :, 0, 0] @ [0.299, 0.587, 0.114] for c in (ground, ink))
    assert np.abs(light - dark).min() > 0.2 - 1e-5
    shown = [c.clip(0, 1)[:, :, 0, 0] @ [0.299, 0.587, 0.114] for c in (ground, ink)]
    assert np.abs(shown[0] - shown[1]).min() > 0.1


def test_a_string_fits_its_image_and_the_distractors_stay_off_it():
    rng = np.random.default_rng(0)
    sizes = np.repeat(np.arange(1, 7), 200)
    at = composed._place(sizes, rng)
    np.testing.assert_array_equal(at.shown[:, :POSITIONS].sum(1), sizes)
    string = at.shown.copy()
    string[:, POSITIONS:] = False
    assert (at.x[string] > 0).all()
    assert (at.x[string] < composed.WIDTH).all()
    assert at.shown[:, POSITIONS:].any(0).all()
    left, first = at.x[:, POSITIONS], at.x[:, 0]
    shown = at.shown[:, POSITIONS]
    assert (first[shown] - left[shown] > at.width[shown, 0] / 2).all()


def test_the_ink_is_where_the_digits_are(monkeypatch):
    digits, _ = bundled_digits()
    at = composed._place(np.array([2, 1]), np.random.default_rng(0))
    masks = composed._render(digits[np.arange(16).reshape(2, 8)], at)
    assert masks.shape == (2, 2, 24, 64)
    assert (masks.min(), masks.max()) == (0, 1)
    for image, shown in enumerate([2, 1]):
        columns = np.flatnonzero(masks[image, 0].any(0))
        assert columns.min() >= at.x[image, 0] - at.width[image, 0]
        assert columns.max() <= at.x[image, shown - 1] + at.width[image, shown - 1]


def test_progress_is_reported_to_the_end():
    seen = []
    street_digits(train=300, val=2, test=2, notify=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 304), (300, 304), (302, 304), (304, 304)]


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("size", [0, -1])
def test_a_split_of_nothing_is_refused(split, size):
    with pytest.raises(DataError, match=f"{split}={size} images.*{split}=1000"):
        street_digits(**{"train": 1, "val": 1, "test": 1, split: size})


def test_inputs_are_floats_from_0_to_1_in_the_order_of_the_rows(splits):
    rows = np.array([7, 0, 7])
    inputs = splits.val.inputs(rows)
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.numpy(), splits.val.images[rows] / 255, atol=1e-7)


def test_the_fingerprint_sees_every_change():
    images, labels = np.zeros((2, 3, 4, 5), np.uint8), np.full((2, 6), BLANK)
    base = {"images": images, "labels": labels, "names": ["a", "b"], "groups": np.array([0, 1])}
    touched = images.copy()
    touched[1, 2, 3, 4] = 1
    changes = [
        {},
        {"images": touched},
        {"images": images.reshape(2, 3, 5, 4)},
        {"labels": labels - 1},
        {"labels": None},
        {"names": ["a", "c"]},
        {"groups": np.array([0, 0])},
        {"groups": None},
    ]
    prints = {StreetNumbers(**{**base, **change}).fingerprint() for change in changes}
    assert len(prints) == len(changes)
    assert StreetNumbers(**base).fingerprint() in prints

"""Tasks: a view is undone in classes, masks, keypoints, boxes and numbers, exactly."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.errors import DataError
from polyfuse.tta import (
    TASKS,
    Add,
    Boxes,
    Classes,
    Crop,
    Flip,
    Identity,
    Keypoints,
    Letterbox,
    Masks,
    Numbers,
    Random,
    Resize,
    Scale,
    Shift,
    Turn,
    dihedral,
    product,
)
from polyfuse.tta.coordinates import mirrored
from polyfuse.tta.tasks import task_of

SIZE = (20, 30)
VIEWS = [
    *product(dihedral(), [Identity(), Shift(3, -2), Scale(1.7), Crop(9, 8, 0.25, 0.8)]),
    Letterbox(64, 64).then(Flip("vertical")),
    Resize(17, 41).then(Turn(3), Shift(1)),
    Add(0.5),
]
ids = [view.name for view in VIEWS]


def there(view, points, size=SIZE):
    """Return points of the image where they are in the view, in fp64, by inverting the matrix."""
    full = np.vstack([view.matrix(size), [0, 0, 1]])
    padded = np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1)
    return (padded @ np.linalg.inv(full).T)[..., :2]


def boxes_there(view, boxes):
    one, other = there(view, boxes[..., :2]), there(view, boxes[..., 2:])
    return np.concatenate([np.minimum(one, other), np.maximum(one, other)], -1)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 20, shape)


def in_units(points, size, units):
    """Return points in pixels as points in these units."""
    if units == "index":
        return points - 0.5
    return points / [size[1], size[0]] if units == "relative" else points


@pytest.mark.parametrize("units", ["pixel", "index", "relative"])
@pytest.mark.parametrize("view", VIEWS, ids=ids)
def test_points_come_back_to_where_they_are(view, units):
    points = drawn(3, 5, 2)
    seen = in_units(there(view, points), view.size(SIZE), units)
    wanted = in_units(points, SIZE, units)
    got = Keypoints(units).undo(torch.from_numpy(seen), view, SIZE)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-9)
    flat = Keypoints(units).undo(torch.from_numpy(seen.reshape(3, 10)), view, SIZE)
    np.testing.assert_allclose(flat.numpy(), wanted.reshape(3, 10), atol=1e-9)


@pytest.mark.parametrize("units", ["pixel", "index", "relative"])
@pytest.mark.parametrize("view", VIEWS, ids=ids)
def test_boxes_come_back_to_where_they_are(view, units):
    low = drawn(3, 4, 2)
    boxes = np.concatenate([low, low + drawn(3, 4, 2, seed=1)], -1)
    seen = boxes_there(view, boxes)
    seen, wanted = (
        np.concatenate([in_units(b[..., :2], s, units), in_units(b[..., 2:], s, units)], -1)
        for b, s in ((seen, view.size(SIZE)), (boxes, SIZE))
    )
    got = Boxes(units=units).undo(torch.from_numpy(seen), view, SIZE)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("view", VIEWS, ids=ids)
def test_boxes_in_every_form_are_the_same_boxes(view):
    low, high = torch.rand(2, 3, 2).double(), torch.rand(2, 3, 2).double() + 1
    score = torch.rand(2, 3, 1).double()
    forms = {
        "xyxy": torch.cat([low, high, score], -1),
        "xywh": torch.cat([low, high - low, score], -1),
        "cxcywh": torch.cat([(low + high) / 2, high - low, score], -1),
    }
    undone = {form: Boxes(form).undo(boxes, view, SIZE) for form, boxes in forms.items()}
    one, other = undone["xyxy"][..., :2], undone["xyxy"][..., 2:4]
    torch.testing.assert_close(undone["xywh"][..., :4], torch.cat([one, other - one], -1))
    torch.testing.assert_close(undone["cxcywh"][..., :2], (one + other) / 2)
    assert all(torch.equal(each[..., 4:], score) for each in undone.values())


@pytest.mark.parametrize("view", VIEWS, ids=ids)
def test_left_and_right_change_places_in_mirror_images_only(view):
    eyes = drawn(2, 3, 2)
    seen = torch.from_numpy(there(view, eyes))
    flipped = mirrored(view.matrix(SIZE))
    assert flipped == ((view.name.count("flip")) % 2 == 1)
    named = seen[:, [1, 0, 2]] if flipped else seen  # what a net says of the mirror image
    got = Keypoints(swap=[(0, 1)]).undo(named, view, SIZE)
    np.testing.assert_allclose(got.numpy(), eyes, atol=1e-9)


def test_a_keypoint_carries_its_confidence_along():
    points = torch.tensor([[[2.0, 3.0, 0.25], [4.0, 5.0, 0.75]]])
    got = Keypoints(swap=[(0, 1)]).undo(points, Flip(), (10, 10))
    assert got.tolist() == [[[6.0, 5.0, 0.75], [8.0, 3.0, 0.25]]]


@settings(max_examples=20)
@given(st.sampled_from(VIEWS[:-1]), st.integers(0, 99))
def test_masks_come_back_in_the_size_of_the_image_with_classes_last(view, seed):
    masks = torch.rand(2, 3, *view.size(SIZE), generator=torch.Generator().manual_seed(seed))
    got = Masks().undo(masks, view, SIZE)
    assert got.shape == (2, *SIZE, 3)
    assert Masks().laid_out(got).shape == (2, 3, *SIZE)
    assert torch.equal(got, view.undo_masks(masks, SIZE).movedim(1, -1))


def test_classes_heatmaps_and_signs_change_in_mirror_images():
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    heads = scores.repeat(2, 4, 1).view(2, 4, 3)
    swap = Classes(swap=[(0, 2)])
    assert swap.undo(scores, Flip("vertical"), SIZE).tolist() == [[3, 2, 1]]
    assert swap.undo(scores, Turn(2), SIZE).tolist() == [[1, 2, 3]]
    assert swap.undo(heads, Flip(), SIZE)[1, 3].tolist() == [3, 2, 1]
    maps = torch.rand(1, 2, *SIZE)
    undone = Masks(swap=[(0, 1)]).undo(maps, Flip(), SIZE)
    assert torch.equal(undone[..., 0], maps[:, 1].flip(-1))
    assert Numbers(negate=[2]).undo(scores, Flip(), SIZE).tolist() == [[1, 2, -3]]
    assert Numbers(negate=[2]).undo(scores, Shift(1), SIZE).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_name(name):
    task = task_of(name)
    assert type(task) is TASKS[name]
    assert task_of(task) is task
    assert task.plain == (task.combiner == "mean_value" or name == "detections")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: task_of("mask"), "did you mean 'masks'"),
        (lambda: Keypoints("pixels"), "did you mean 'pixel'"),
        (lambda: Boxes("xxyy"), "form='xxyy' is not known"),
        (lambda: Masks().undo(torch.zeros(1, 2, 5, 5), Scale(2), (5, 5)), "(n, class, 10, 10)"),
        (lambda: Keypoints().undo(torch.zeros(2, 5), Flip(), SIZE), "keypoints have shape (2, 5)"),
        (lambda: Boxes().undo(torch.zeros(2, 3), Flip(), SIZE), "boxes have shape (2, 3)"),
        (lambda: Classes([(0, 9)]).undo(torch.zeros(2, 3), Flip(), SIZE), "from 0 to 2"),
        (lambda: Classes([(0, 1), (1, 2)]).undo(torch.zeros(2, 3), Flip(), SIZE), "different"),
        (lambda: Numbers([3]).undo(torch.zeros(2, 3), Flip(), SIZE), "from 0 to 2"),
        (lambda: Keypoints().undo(torch.zeros(1, 2), Random(torch.abs), SIZE), "moves=False"),
    ],
)
def test_what_does_not_fit_is_said(make, said):
    with pytest.raises(DataError, match=re.escape(said)):
        make()

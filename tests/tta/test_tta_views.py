"""Views: every way back is exact, and says the same of pixels, points and names."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.errors import DataError
from polyfuse.tta import (
    TASKS,
    VIEWS,
    Add,
    Crop,
    Flip,
    Identity,
    Letterbox,
    Multiply,
    Random,
    Resize,
    Scale,
    Shift,
    Turn,
    as_views,
    dihedral,
    five_crop,
    multi_crop,
    product,
    random_views,
    shifts,
    ten_crop,
)
from polyfuse.tta.base import coverage, in_turn

HIGH, WIDE = 12, 17
small = st.integers(-4, 4)
MOVES = st.one_of(
    st.builds(Flip, st.sampled_from(["horizontal", "vertical"])),
    st.builds(Turn, st.integers(0, 3)),
    st.builds(Shift, small, small, st.sampled_from([None, -1.0])),
    st.builds(Crop, st.integers(6, 10), st.integers(6, 10), st.floats(0, 1), st.floats(0, 1)),
)
SIZES = st.one_of(
    st.builds(Scale, st.floats(0.3, 3)),
    st.builds(Resize, st.integers(1, 40), st.integers(1, 40)),
    st.builds(
        Letterbox,
        st.integers(3, 40),
        st.integers(3, 40),
        st.just(0.0),
        st.sampled_from(["centre", "corner"]),
    ),
)
some = settings(max_examples=30, deadline=None)


def chain(parts):
    """Return the parts as one view, crops that would not fit left out."""
    view, size = Identity(), (HIGH, WIDE)
    for part in parts:
        if isinstance(part, Crop) and (part.height > size[0] or part.width > size[1]):
            continue
        if isinstance(part, Shift) and (abs(part.down) >= size[0] or abs(part.across) >= size[1]):
            continue
        view, size = view.then(part), part.size(size)
    return view


def numbered(height=HIGH, width=WIDE):
    """Return an image whose pixels are numbered from 0."""
    return torch.arange(float(height * width)).view(1, 1, height, width)


def back(view, points, size=(HIGH, WIDE)):
    """Return points of the view where they are in the image."""
    return points @ np.array(view.matrix(size))[:, :2].T + np.array(view.matrix(size))[:, 2]


def middles(size):
    """Return the middles of all pixels, x and y, row by row."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([x.ravel(), y.ravel()], -1)


@some
@given(st.lists(MOVES, max_size=4))
def test_a_pixel_of_a_view_is_the_pixel_where_its_point_is_in_the_image(parts):
    bare = [Shift(p.across, p.down, fill=-1) if isinstance(p, Shift) else p for p in parts]
    view, image = chain(bare), numbered()
    seen = view.apply(image)
    assert tuple(seen.shape[-2:]) == view.size((HIGH, WIDE))
    points, got = back(view, middles(seen.shape[-2:])), seen.numpy().ravel()
    x, y = np.floor(points[got != -1]).astype(int).T
    assert (got[got != -1] == image[0, 0].numpy()[y, x]).all()
    says = coverage(view, (HIGH, WIDE))
    assert (got != -1).sum() == (HIGH * WIDE if says is None else (says > 0).sum())


@some
@given(st.lists(MOVES, max_size=4))
def test_undoing_a_move_gives_back_every_pixel_that_was_seen_and_0_elsewhere(parts):
    view, image = chain(parts), numbered() + 1
    again = view.undo_masks(view.apply(image), (HIGH, WIDE))
    says = coverage(view, (HIGH, WIDE))
    seen = torch.ones(HIGH, WIDE, dtype=torch.bool) if says is None else says > 0
    assert torch.equal(again[0, 0][seen], image[0, 0][seen])
    assert (again[0, 0][~seen] == 0).all()
    if says is not None:
        assert says.shape == (HIGH, WIDE)
        assert says.min() >= 0
        assert says.max() <= 1


@some
@given(st.lists(st.one_of(MOVES, SIZES), max_size=4))
def test_the_way_back_of_a_point_is_the_inverse_of_the_way_there(parts):
    view = chain(parts)
    full = np.vstack([view.matrix((HIGH, WIDE)), [0, 0, 1]])
    points = np.random.default_rng(0).uniform(0, 12, (5, 2))
    there = (np.linalg.inv(full) @ np.c_[points, np.ones(5)].T).T[:, :2]
    np.testing.assert_allclose(back(view, there), points, atol=1e-9)
    corners = back(view, np.array([[0, 0], view.size((HIGH, WIDE))[::-1]]))
    if not any(isinstance(part, Shift | Letterbox | Crop) for part in parts):
        np.testing.assert_allclose(np.sort(corners, 0), [[0, 0], [WIDE, HIGH]], atol=1e-9)


@some
@given(st.lists(st.one_of(MOVES, SIZES), max_size=4))
def test_the_original_size_comes_back_exactly(parts):
    view = chain(parts)
    seen = view.apply(torch.rand(2, 3, HIGH, WIDE))
    assert tuple(seen.shape[-2:]) == view.size((HIGH, WIDE))
    assert view.undo_masks(seen, (HIGH, WIDE)).shape == (2, 3, HIGH, WIDE)


@pytest.mark.parametrize("size", [(7, 5), (24, 64), (31, 33), (100, 99)])
@pytest.mark.parametrize("factor", [0.5, 0.55, 0.75, 1.1, 1.25, 1.3, 2.7])
def test_scaled_masks_have_the_size_of_the_image_to_the_pixel(size, factor):
    """ttach divides by the factor, and misses it by a pixel: 1.3 times 7 is 9, and 9 / 1.3 is 6."""
    view, image = Scale(factor), torch.rand(1, 2, *size)
    assert view.undo_masks(view.apply(image), size).shape == image.shape


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlarging_by_whole_numbers_loses_nothing(factor):
    image = torch.rand(2, 3, 5, 7)
    enlarged = Scale(factor, mode="nearest")
    assert torch.equal(enlarged.undo_masks(enlarged.apply(image), (5, 7)), image)


@pytest.mark.parametrize("view", [Scale(1.5), Resize(40, 50), Letterbox(60, 60), Scale(0.5)])
def test_a_slope_survives_another_size(view):
    slope = torch.arange(24.0).repeat(24, 1)[None, None]
    again = view.undo_masks(view.apply(slope), (24, 24))
    torch.testing.assert_close(again[..., 2:-2], slope[..., 2:-2])


def test_letterbox_padding_is_not_flipped():
    """Flipped after it, padding lies where the net has never seen any (LibreYOLO 43, 601)."""
    frame = Letterbox(8, 8, fill=-1.0, place="corner")
    images = numbered(4, 8) + 1
    plain, flipped = (view.apply(images) for view in product([Identity(), Flip()], frame))
    assert torch.equal(plain == -1, flipped == -1)
    assert torch.equal(flipped[..., :4, :], images.flip(-1))
    tall = numbered(8, 4)
    seen = Flip().then(frame).apply(tall)
    assert (seen[..., 4:] == -1).all()
    assert torch.equal(seen[..., :4], tall.flip(-1))
    box = np.array([[0.0, 0.0], [2.0, 8.0]])  # the left half of what is in the frame
    assert sorted(back(Flip().then(frame), box, (8, 4))[:, 0]) == [2, 4]


def test_crops_lie_where_they_are_said_to():
    image = numbered(9, 9)
    seen = [view.apply(image)[0, 0, 0, 0].item() for view in five_crop(3, 3)]
    assert seen == [0, 6, 54, 60, 30]
    assert [v.apply(image).shape for v in ten_crop(3, 5)] == [(1, 1, 3, 5)] * 10
    grid = multi_crop(4, 5, rows=3, columns=2)
    assert all(says is not None for says in (coverage(view, (9, 9)) for view in grid))
    assert (sum(coverage(view, (9, 9)) for view in grid) > 0).all()
    middle = multi_crop(3, 3, rows=1, columns=1)[0]
    assert torch.equal(middle.apply(image), five_crop(3, 3)[4].apply(image))


def test_a_crop_says_most_in_its_middle():
    says = coverage(Crop(5, 5, 0, 0), (6, 6))
    assert says[2, 2] == says.max() == 1
    assert 0 < says[0, 0] < says[1, 1] < says[2, 2]
    assert says[5, 5] == 0
    assert coverage(Crop(3, 3, 0, 0).then(Resize(6, 6)), (6, 6))[:3, :3].min() > 0


def test_shifts_move_content_and_repeat_edges():
    image = numbered(3, 4)
    right = Shift(across=1).apply(image)
    assert torch.equal(right[..., 1:], image[..., :-1])
    assert torch.equal(right[..., 0], image[..., 0])
    up = Shift(down=-2, fill=-1).apply(image)
    assert torch.equal(up[..., 0, :], image[..., 2, :])
    assert (up[..., 1:, :] == -1).all()
    assert len(shifts(2, 1)) == 9


def test_brightness_is_added_or_multiplied_and_kept_in_limits():
    image = torch.tensor([[[[0.25, 0.75]]]])
    assert Add(0.5).apply(image).flatten().tolist() == [0.75, 1.25]
    assert Multiply(2).apply(image).flatten().tolist() == [0.5, 1.5]
    assert Add(-0.5, low=0, high=1).apply(image).flatten().tolist() == [0, 0.25]


def noisy(images):
    """Draw from the generators of torch, NumPy and Python."""
    return images + torch.rand(images.shape) + np.random.random() + random.random()


def test_a_random_view_is_one_draw_whatever_comes_with_an_image():
    view, images = Random(noisy, seed=3), torch.zeros(5, 1, 2, 2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    seen = view.apply(images)
    assert torch.equal(seen, view.apply(images[2:3]).expand(5, -1, -1, -1))
    assert not torch.equal(seen, Random(noisy, seed=4).apply(images))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[2] == random.getstate()
    assert np.array_equal(states[1], np.random.get_state()[1])


def test_augmentations_are_random_views_by_name():
    views = random_views("shift", 3, seed=5, options={"across": 3})
    assert [view.name for view in views] == [f"shift-across_3-seed={s}" for s in (5, 6, 7)]
    image = numbered()
    assert len({tuple(view.apply(image).flatten().tolist()) for view in views}) > 1
    assert all(torch.equal(view.apply(image), view.apply(image)) for view in views)


def test_a_function_that_draws_once_for_all_gets_the_batch():
    seen = []
    Random(lambda images: seen.append(len(images)) or images, together=True).apply(numbered())
    together = Random(lambda images: images * torch.rand(1), together=True)
    images = numbered().repeat(4, 1, 1, 1)
    assert seen == [1]
    assert torch.equal(together.apply(images)[:1], together.apply(images[:1]))


def test_nobody_knows_the_way_back_of_a_function_that_moves():
    for undo in (lambda v: v.undo_masks(numbered(), (HIGH, WIDE)), lambda v: v.matrix((2, 2))):
        with pytest.raises(DataError, match="moves=False"):
            undo(Random(noisy))
        undo(Random(noisy, moves=False))


def every_view():
    """Return a view of each entry of VIEWS."""
    options = {
        "turn": {"quarters": 1},
        "scale": {"factor": 1.5},
        "add": {"amount": 0.1},
        "multiply": {"factor": 1.25},
        "random": {"function": "shift", "n": 2},
        **{name: {"height": 8, "width": 9} for name in ("resize", "letterbox", "crop")},
        **{name: {"height": 8, "width": 9} for name in ("five_crop", "ten_crop", "multi_crop")},
    }
    return {name: make(**options.get(name, {})) for name, make in VIEWS.items()}


@pytest.mark.parametrize("name", VIEWS)
def test_every_name_of_a_recipe_makes_views(name):
    views = as_views(every_view()[name])
    for view in views:
        seen = view.apply(torch.rand(2, 3, HIGH, WIDE))
        assert tuple(seen.shape) == (2, 3, *view.size((HIGH, WIDE)))


def test_names_are_stable_tell_the_options_and_are_file_names():
    views = [v for made in every_view().values() for v in as_views(made)]
    views += product(dihedral(), shifts(2, 1), [Add(1e-7), Multiply(2.5e20)])
    for view in views:
        assert re.fullmatch(r"[a-z0-9][\w.,=+-]*", view.name, re.ASCII)
        assert len(view.name) <= 120
    assert len({view.name for view in views}) == len(set(views))
    assert Flip().then(Shift(2), Add(0.1)).name == "flip-horizontal+shift-across=2+add-amount=0.1"
    assert Turn(1).name == "turn-quarters=1"
    assert Scale(2).name == Scale(2.0).name
    long = in_turn([Shift(i) for i in range(1, 15)])
    other = in_turn([*(Shift(i) for i in range(1, 14)), Shift(9)])
    assert len(long.name) == 120
    assert long.name != other.name


def test_views_are_values():
    assert Flip().then(Shift(1)) == Flip().then(Shift(1)) != Flip().then(Shift(2))
    assert len({Crop(2, 2), Crop(2, 2), Crop(2, 3)}) == 2
    assert Identity().then(Flip()) == Flip()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Flip("diagonal"), "axis='diagonal' is not known"),
        (lambda: Turn(4), "quarters is 4"),
        (lambda: Scale(0), "factor is 0"),
        (lambda: Scale(1, mode="linear"), "did you mean 'bilinear'"),
        (lambda: Resize(0, 4), "the size is 0 x 4"),
        (lambda: Letterbox(4, 4, place="center"), "did you mean 'centre'"),
        (lambda: Crop(0, 4), "the size of a crop is"),
        (lambda: Crop(2, 2, down=2), "give shares from 0 to 1"),
        (lambda: Crop(20, 2).apply(numbered()), "does not fit into images of 12 x 17"),
        (lambda: Shift(20).apply(numbered()), "leaves nothing of images"),
        (lambda: Add(float("nan")), "amount is nan"),
        (lambda: multi_crop(2, 2, rows=0), "0 rows or columns"),
        (lambda: Random("blur"), "expected a function of images"),
        (lambda: random_views("shifts"), "did you mean 'shift'"),
        (lambda: random_views("shift", 0), "0 random views"),
        (lambda: Random(lambda images: 3).apply(numbered()), "made int of images"),
        (lambda: as_views([]), "got an empty list"),
        (lambda: as_views([Flip(), "turn"]), "got 'turn'"),
        (lambda: as_views([Flip(), [Flip()]]), "named twice: flip-horizontal"),
        (lambda: Flip().then(Shift(1)).apply(torch.zeros(3)), "expected images"),
    ],
)
def test_what_is_wrong_is_said(make, said):
    with pytest.raises(DataError, match=re.escape(said)):
        make()


def test_the_page_names_every_view_and_task():
    page = (Path(__file__).parents[2] / "docs" / "tta.md").read_text(encoding="utf-8")
    for made in (*VIEWS.values(), *TASKS.values()):
        assert re.search(rf"`{made.__name__}\b", page), made

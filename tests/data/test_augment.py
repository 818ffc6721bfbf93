"""Augmentations: one contract for all, and each image shifted by whole pixels only."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from polyfuse.classical import bundled_digits
from polyfuse.data.augment import (
    AUGMENTATIONS,
    colour,
    cut_out,
    noise,
    reading,
    rotate,
    scale,
    shift,
    street_number,
)
from polyfuse.errors import DataError

every = pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(n=20, size=(24, 64), dtype=torch.float32):
    return torch.rand(n, 3, *size, generator=generator(9)).to(dtype)


def shifted(image, x, y):
    """Shift by whole pixels, edges repeated: an independent reference."""
    _, height, width = image.shape
    padded = functional.pad(image[None], (8, 8, 8, 8), mode="replicate")[0]
    return padded[:, 8 + y : 8 + y + height, 8 + x : 8 + x + width]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(24, 64), (8, 8)])
def test_shape_and_precision_are_kept(augmentation, dtype, size):
    images = some_images(3, size, dtype)
    answer = augmentation(images, generator())
    assert answer.shape == images.shape
    assert answer.dtype == images.dtype


@every
def test_the_same_generator_gives_the_same_images(augmentation):
    images = some_images()
    one, same, other = (augmentation(images, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@every
def test_torchs_own_generator_is_left_alone(augmentation):
    torch.manual_seed(3)
    augmentation(some_images(), generator())
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


@every
def test_input_is_not_modified(augmentation):
    images = some_images()
    augmentation(images, generator())
    assert torch.equal(images, some_images())


@every
def test_images_are_changed_differently(augmentation):
    images = some_images(1).expand(50, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in augmentation(images, generator())}) >= 10


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]


@every
def test_an_image_is_never_flipped_or_turned_over(augmentation):
    # Smooth, so that a shift by whole pixels stays alike, and so does a small turn.
    images = functional.interpolate(some_images(40, (4, 9)), size=(24, 64), mode="bilinear")
    for before, after in zip(images, augmentation(images, generator()), strict=True):
        alike = max(
            correlation(shifted(before, x, y), after)
            for x, y in itertools.product(range(-2, 3), range(-1, 2))
        )
        assert alike > 0.8
        assert correlation(before.flip(-1), after) < alike - 0.15
        assert correlation(before.flip(-2), after) < alike - 0.15


@pytest.mark.parametrize(("across", "down"), [(2, 1), (0, 3), (4, 0)])
def test_every_image_is_shifted_by_its_own_whole_number_of_pixels(across, down):
    images, found = some_images(60, (8, 10)), set()
    choices = list(itertools.product(range(-across, across + 1), range(-down, down + 1)))
    moved = shift(images, generator(), across=across, down=down)
    for before, after in zip(images, moved, strict=True):
        fits = [at for at in choices if torch.equal(shifted(before, *at), after)]
        assert len(fits) == 1
        found.add(fits[0])
    assert {x for x, _ in found} == set(range(-across, across + 1))
    assert {y for _, y in found} == set(range(-down, down + 1))


def test_colour_changes_contrast_and_brightness_within_their_bounds():
    images = some_images(200, (8, 10))
    moved = shift(images, generator())
    coloured = street_number(images, generator(), colour=0.2)
    flat, target = moved.flatten(2), coloured.flatten(2)
    contrast = (target.std(2) / flat.std(2)).squeeze()
    brightness = target.mean(2) - contrast * flat.mean(2)
    torch.testing.assert_close(contrast, contrast[:, :1].expand(-1, 3), atol=1e-4, rtol=0)
    assert 0.8 - 1e-4 <= contrast.min() < 0.85
    assert 1.15 < contrast.max() <= 1.2 + 1e-4
    assert brightness.abs().max() <= 0.1 + 1e-4
    assert brightness.min() < -0.08
    assert brightness.max() > 0.08


def maps(augmentation, n=300, size=(24, 64), **options):
    """Return each image's linear map about the centre, `(n, 2, 2)`, and its shift in pixels.

    Images whose two channels are the coordinates themselves say where each pixel came from.
    """
    height, width = size
    grid = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    places = torch.stack([grid[1], grid[0]]).double()
    moved = augmentation(places.expand(n, -1, -1, -1).contiguous(), generator(), **options)
    inner = (slice(None), slice(None), slice(8, -8), slice(16, -16))  # far from repeated edges
    to = places[None][inner].flatten(2)[0]
    known = torch.cat([to, torch.ones(1, to.shape[1], dtype=to.dtype)]).T
    found = torch.linalg.lstsq(known.expand(n, -1, -1), moved[inner].flatten(2).mT).solution
    torch.testing.assert_close(known @ found, moved[inner].flatten(2).mT)  # it is linear
    return found[:, :2].mT, found[:, 2]


def plain(**options):
    """Return options of `reading` that leave colours as they are."""
    return {"contrast": 0, "brightness": 0, "deviation": 0} | options


def test_a_turn_is_a_rotation_about_the_centre_within_its_bound():
    found, centre = maps(rotate, degrees=6.0)
    torch.testing.assert_close(found @ found.mT, torch.eye(2).double().expand(300, 2, 2))
    torch.testing.assert_close(centre, torch.zeros(300, 2).double(), atol=1e-9, rtol=0)
    degrees = torch.rad2deg(torch.atan2(found[:, 0, 1], found[:, 0, 0]))
    assert 5.7 < degrees.max() <= 6
    assert -6 <= degrees.min() < -5.7
    assert abs(degrees.mean()) < 0.6


def test_a_change_of_size_is_about_the_centre_and_within_its_bound():
    found, centre = maps(scale, amount=0.2)
    factor = 1 / found[:, 0, 0]  # larger where a pixel comes from nearer to the centre
    torch.testing.assert_close(found, torch.eye(2).double() / factor[:, None, None])
    torch.testing.assert_close(centre, torch.zeros(300, 2).double(), atol=1e-9, rtol=0)
    assert 0.8 <= factor.min() < 0.82
    assert 1.18 < factor.max() <= 1.2


def test_reading_shifts_turns_and_scales_in_one_step_and_never_flips():
    options = plain(across=3.0, down=1.5, degrees=6.0, amount=0.1)
    found, centre = maps(reading, **options)
    assert bool((torch.linalg.det(found) > 0).all())
    factor = torch.linalg.det(found).sqrt()
    turn = found / factor[:, None, None]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(2).double().expand(300, 2, 2))
    assert turn[:, 0, 0].min() >= math.cos(math.radians(6)) - 1e-9
    assert 1 / 1.1 - 1e-9 <= factor.min() < factor.max() <= 1 / 0.9 + 1e-9
    moved = -torch.linalg.solve(found, centre)  # where the old centre is now
    assert 2.9 < moved[:, 0].abs().max() <= 3
    assert 1.4 < moved[:, 1].abs().max() <= 1.5


def test_reading_by_whole_pixels_is_a_shift():
    images = some_images(1, (8, 10), torch.float64).expand(40, -1, -1, -1)
    moved = reading(images, generator(), **plain(across=1.0, down=0.0, degrees=0, amount=0))
    _, offset = maps(reading, n=40, **plain(across=1.0, down=0.0, degrees=0, amount=0))
    for after, x in zip(moved, offset[:, 0], strict=True):
        right = shifted(images[0], 1, 0) if x > 0 else shifted(images[0], -1, 0)
        wanted = images[0] + abs(x) * (right - images[0])  # between two pixels, linearly
        torch.testing.assert_close(after, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["colour", "noise", "reading"])
def test_colours_stay_from_0_to_1(name):
    options = {"deviation": 0.5} if name == "noise" else {"contrast": 0.9, "brightness": 0.9}
    changed = AUGMENTATIONS[name](some_images(), generator(), **options)
    assert changed.min() == 0
    assert changed.max() == 1


def test_contrast_and_brightness_are_within_their_bounds():
    images = 0.4 + 0.2 * some_images(200, (8, 10), torch.float64)  # nothing is cut off
    changed = colour(images, generator(), contrast=0.3, brightness=0.1)
    contrast = changed.flatten(2).std(2) / images.flatten(2).std(2)
    torch.testing.assert_close(contrast, contrast[:, :1].expand(-1, 3))
    assert 0.7 <= contrast.min() < 0.75
    assert 1.25 < contrast.max() <= 1.3
    mean = images.mean((1, 2, 3))[:, None]
    apart = images.mean((2, 3)) - mean
    brightness = changed.mean((2, 3)) - mean - contrast * apart
    assert 0.09 < brightness.max() <= 0.1
    assert -0.1 <= brightness.min() < -0.09


def test_light_and_dark_are_never_exchanged():
    images = some_images(40)
    changed = colour(images, generator(), contrast=0.99, brightness=0.5)
    for before, after in zip(images, changed, strict=True):
        for one, other in zip(before.flatten(1), after.flatten(1), strict=True):
            sorted_ = other[one.argsort()]
            assert bool((sorted_.diff() >= -1e-6).all())


def test_noise_is_normal_and_as_strong_as_each_image_draws():
    images = torch.full((400, 3, 16, 16), 0.5, dtype=torch.float64)
    added = noise(images, generator(), deviation=0.1) - 0.5
    strength = added.flatten(1).std(1)
    assert strength.max() < 0.105
    assert strength.mean() == pytest.approx(0.05, abs=0.004)  # evenly from 0 to 0.1
    assert added.mean() == pytest.approx(0, abs=1e-3)
    scaled = (added.flatten(1) / strength[:, None]).flatten()
    assert (scaled.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.005)
    channels = added.flatten(2)[strength > 0.05]
    assert torch.corrcoef(channels[0])[0, 1].abs() < 0.3  # of each channel its own


@pytest.mark.parametrize(("holes", "side"), [(1, 0.25), (3, 0.5), (1, 0.0), (0, 0.5)])
def test_holes_are_squares_of_the_mean_colour_within_their_size(holes, side):
    images = some_images(400, (16, 40), torch.float64)
    cut = cut_out(images, generator(), holes=holes, side=side)
    hidden = cut != images
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    means = images.mean((2, 3), keepdim=True).expand_as(images)
    assert torch.equal(cut[hidden], means[hidden])
    most = holes * round(side * 16) ** 2
    sizes = hidden[:, 0].sum((1, 2))
    assert sizes.max() == most or holes == 3
    assert sizes.max() <= most
    if holes == 1 and side:
        rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
        assert torch.equal(rows * columns, sizes)  # one rectangle, cut by the edge at most
        where = hidden[:, 0].double().mean(0)
        assert where.min() > 0  # anywhere in the image


def nearest(images, changed, labels):
    """Return how many changed images have the label of the nearest other image."""
    one, other = (
        each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (images, changed)
    )
    alike = functional.normalize(other) @ functional.normalize(one).T
    alike.fill_diagonal_(-1)
    return (labels[alike.argmax(1)] == labels).double().mean()


def test_digits_read_as_before_and_would_not_if_they_were_flipped():
    digits, labels = (torch.from_numpy(each[:900]).float() for each in bundled_digits())
    images = functional.pad(digits[:, None] / 16, (1, 1, 1, 1))
    images = functional.interpolate(images, size=(24, 24), mode="bilinear")
    changed = reading(images, generator(), across=1.0, holes=1, side=0.2)
    assert nearest(images, changed, labels) > 0.9
    for flipped in (images.flip(-1), images.flip(-2), images.rot90(1, (2, 3))):
        assert nearest(images, flipped, labels) < 0.7


@pytest.mark.parametrize(
    ("augmentation", "options", "fact"),
    [
        (rotate, {"degrees": 60.0}, r"degrees=60\.0; type 0 or more, and at most 45"),
        (rotate, {"degrees": -1.0}, r"degrees=-1\.0"),
        (scale, {"amount": 0.6}, r"amount=0\.6"),
        (colour, {"contrast": 1.0}, r"contrast=1\.0; type 0 or more, and at most 0\.99"),
        (colour, {"brightness": math.nan}, "brightness=nan"),
        (noise, {"deviation": -0.1}, r"deviation=-0\.1"),
        (cut_out, {"side": 0.7}, r"side=0\.7"),
        (cut_out, {"holes": -1}, "holes=-1"),
        (reading, {"degrees": 90.0}, r"degrees=90\.0"),
    ],
)
def test_options_that_no_digit_survives_are_refused(augmentation, options, fact):
    with pytest.raises(DataError, match=fact):
        augmentation(some_images(2), generator(), **options)


def test_nothing_asked_changes_nothing():
    images = some_images()
    nothing = plain(across=0, down=0, degrees=0, amount=0)
    assert torch.equal(reading(images, generator(), **nothing), images)
    assert torch.equal(noise(images, generator(), deviation=0), images)
    assert torch.equal(cut_out(images, generator(), holes=0), images)
    for same in (
        rotate(images, generator(), degrees=0),
        scale(images, generator(), amount=0),
        colour(images, generator(), contrast=0, brightness=0),
    ):
        torch.testing.assert_close(same, images)
    assert torch.equal(shift(images, generator(), across=0, down=0), images)
    assert torch.equal(street_number(images, generator(), across=0, down=0, colour=0), images)

"""Augmentations: one contract for all, and each image shifted by whole pixels only."""

import itertools

import pytest
import torch
from torch.nn import functional

from polyfuse.data.augment import AUGMENTATIONS, shift, street_number

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
def test_an_image_is_never_flipped_or_turned(augmentation):
    # Smooth, so that a shift by whole pixels stays alike.
    images = functional.avg_pool2d(some_images(40), 3, 1, 1)
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


def test_nothing_asked_changes_nothing():
    images = some_images()
    assert torch.equal(shift(images, generator(), across=0, down=0), images)
    assert torch.equal(street_number(images, generator(), across=0, down=0, colour=0), images)

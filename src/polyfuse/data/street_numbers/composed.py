"""Street numbers: images with up to six labels, and a set of them composed of real digits."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from polyfuse.classical import bundled_digits
from polyfuse.data.base import Labels, Rows, Split, Splits
from polyfuse.data.street_numbers.base import BLANK, POSITIONS, StreetNumbers
from polyfuse.errors import DataError

HEIGHT, WIDTH = 24, 64
GROUPS = 10
# Strings of 1 to 6 characters among the 30,000 training images of the Tianchi "mchar" contest.
CONTEST_LENGTHS = np.array([4636, 16262, 7813, 1280, 8, 1])
_SHARES = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
_BLOCK = 256  # images composed at a time; an image depends on its block's seed only
_PIECES = POSITIONS + 2  # characters, and a distractor at either edge


def street_digits(
    *,
    train: int = 4000,
    val: int = 2000,
    test: int = 2000,
    seed: int = 0,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Splits:
    """Compose street numbers of scikit-learn's 1,797 real handwritten digits.

    The digits are divided between the splits first (3 : 1 : 1, every class evenly), and within a
    split into ten groups; a string draws all its digits from one group. So no source digit is in
    two splits, and folds that keep groups whole are as strict as the test split. Lengths follow
    the Tianchi "mchar" contest; colours, gradients, noise, jitter, scale, overlap and distractor
    fragments at the edges are random.

    Args:
        train: images of the training split.
        val: images of the validation split.
        test: images of the test split.
        seed: same seed, same images, for any number of them: the first n of more are the same n.
        notify: called with (images made, images in all).

    Returns:
        Three `StreetNumbers` with images `(n, 3, 24, 64)`.

    Raises:
        DataError: a split of no images.

    Example:
        >>> splits = street_digits(train=4, val=2, test=2)
        >>> splits.train.labels.shape
        (4, 6)
    """
    sizes = {"train": train, "val": val, "test": test}
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"{name}={size} images; every split needs at least 1: {name}=1000")
    digits, classes = bundled_digits()
    cells = _deal(classes, seed)
    made = 0
    splits: list[Split] = []
    for number, (name, size) in enumerate(sizes.items()):
        sources = [
            np.concatenate([cells[part][g] for part in _SHARES[name]]) for g in range(GROUPS)
        ]
        blocks = []
        for block in _compose(digits, classes, sources, size, (seed, number)):
            blocks.append(block)
            made += len(block.labels)
            notify(made, sum(sizes.values()))
        images, labels, groups = (np.concatenate(part) for part in zip(*blocks, strict=True))
        names = [f"{i:06d}.png" for i in range(size)]
        splits.append(StreetNumbers(images, labels, names, groups))
    return Splits(*splits)


class _Block(NamedTuple):
    images: NDArray[np.uint8]
    labels: Labels
    groups: Rows


def _deal(classes: Labels, seed: int) -> list[list[Rows]]:
    """Deal the digits of each class, shuffled, to 5 parts of 10 groups."""
    rng = np.random.default_rng([seed, 0])
    shuffled = np.concatenate([rng.permutation(np.flatnonzero(classes == c)) for c in range(10)])
    order = shuffled[np.argsort(np.arange(len(shuffled)) % (5 * GROUPS), kind="stable")]
    hands = np.array_split(order, np.cumsum(np.bincount(np.arange(len(order)) % (5 * GROUPS)))[:-1])
    return [hands[part * GROUPS : (part + 1) * GROUPS] for part in range(5)]


def _compose(
    digits: NDArray[np.uint8], classes: Labels, sources: list[Rows], size: int, key: tuple[int, int]
) -> Iterator[_Block]:
    """Yield blocks of composed images; the last is cut to size, so sizes never change content."""
    for start in range(0, size, _BLOCK):
        rng = np.random.default_rng([*key, 1 + start // _BLOCK])
        block = _compose_block(digits, classes, sources, rng)
        rest = slice(size - start)
        yield _Block(block.images[rest], block.labels[rest], block.groups[rest])


def _compose_block(
    digits: NDArray[np.uint8], classes: Labels, sources: list[Rows], rng: np.random.Generator
) -> _Block:
    lengths = 1 + rng.choice(POSITIONS, size=_BLOCK, p=CONTEST_LENGTHS / CONTEST_LENGTHS.sum())
    groups = rng.integers(GROUPS, size=_BLOCK)
    counts = np.array([len(s) for s in sources])[groups]
    picks = (rng.random((_BLOCK, _PIECES)) * counts[:, None]).astype(np.int64)
    table = np.full((GROUPS, counts.max()), -1)
    for group, rows in enumerate(sources):
        table[group, : len(rows)] = rows
    pieces = table[groups[:, None], picks]
    labels = classes[pieces[:, :POSITIONS]].astype(np.int64)
    labels[np.arange(POSITIONS) >= lengths[:, None]] = BLANK
    masks = _render(digits[pieces], _place(lengths, rng))
    return _Block(_paint(masks, rng), labels, groups.astype(np.int64))


class _Places(NamedTuple):
    """Where each piece goes: centre, size (pixels), angle (radians), and whether it is shown."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    angle: NDArray[np.float64]
    shown: NDArray[np.bool_]


def _place(lengths: NDArray[np.int64], rng: np.random.Generator) -> _Places:
    """Lay strings out: a common height and pitch a string, jitter a character, edges last."""
    n, piece = len(lengths), np.arange(_PIECES)
    uniform = partial(rng.uniform, size=(n, 1))
    height = uniform(13, 22)
    width = np.minimum(height * uniform(0.55, 0.85), (WIDTH - 4) / lengths[:, None])
    pitch = width * uniform(0.72, 1.0)
    span = pitch * (lengths[:, None] - 1) + width
    left = (WIDTH - span) / 2 + uniform(-1, 1) * np.minimum((WIDTH - span) / 2, 3)
    x = left + width / 2 + piece * pitch
    y = HEIGHT / 2 + uniform(-2, 2) + rng.normal(0, 0.7, (n, _PIECES))
    each = rng.uniform(0.85, 1.12, (n, _PIECES))
    shown = piece < lengths[:, None]
    # A distractor is a neighbour's digit, cut by the edge and clear of the string.
    gap = np.concatenate([left, WIDTH - left - span], axis=1)
    x[:, POSITIONS:] = np.array([0, WIDTH]) + np.array([1, -1]) * rng.uniform(-2.5, 1.0, (n, 2))
    shown[:, POSITIONS:] = (rng.random((n, 2)) < 0.5) & (gap > 0.5 * width + 2)
    angle = uniform(-0.12, 0.12) + rng.normal(0, 0.07, (n, _PIECES))
    return _Places(x, y, width * each, height * each, angle, shown)


def _render(glyphs: NDArray[np.uint8], at: _Places) -> NDArray[np.float32]:
    """Draw the shown glyphs `(n, pieces, 8, 8)` into coverage masks `(n, 2, height, width)`.

    Channel 0 holds the string, channel 1 the distractors. One bilinear sampling draws all pieces.
    """
    image, piece = np.nonzero(at.shown)
    x, y, w, h, angle = (torch.from_numpy(a[image, piece]).float() for a in at[:5])
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Canvas position (-1..1) -> pixels from the glyph's centre -> turned -> glyph position (-1..1).
    dx, dy = WIDTH / 2 - x, HEIGHT / 2 - y
    rows = [
        torch.stack([cos * WIDTH / w, sin * HEIGHT / w, 2 * (cos * dx + sin * dy) / w], 1),
        torch.stack([-sin * WIDTH / h, cos * HEIGHT / h, 2 * (cos * dy - sin * dx) / h], 1),
    ]
    grid = functional.affine_grid(
        torch.stack(rows, 1), [len(image), 1, HEIGHT, WIDTH], align_corners=False
    )
    source = torch.from_numpy(glyphs[image, piece]).float().div_(16).unsqueeze(1)
    drawn = functional.grid_sample(source, grid, align_corners=False)[:, 0]
    # Bilinear edges are soft: steepen them, as a stroke of paint is.
    steep = ((drawn - 0.2) / 0.6).clamp_(0, 1).numpy()
    masks = np.zeros((len(glyphs), 2, HEIGHT, WIDTH), np.float32)
    for number in range(_PIECES):  # an image has a piece once at most, so no index repeats here
        here = piece == number
        at_channel = image[here], int(number >= POSITIONS)
        masks[at_channel] = np.maximum(masks[at_channel], steep[here])
    return masks


def _paint(masks: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colour the masks `(n, 2, height, width)`: contrast, gradient, noise; to RGB uint8."""
    n = len(masks)
    ground, ink = _colours(n, rng)
    other = ink + rng.normal(0, 0.12, (n, 3, 1, 1)).astype(np.float32)
    slope = rng.uniform(-0.22, 0.22, (2, n, 3, 1, 1)).astype(np.float32)
    along, down = np.linspace(-1, 1, WIDTH, dtype=np.float32), np.linspace(-1, 1, HEIGHT)
    canvas = ground + slope[0] * along + slope[1] * down.astype(np.float32)[:, None]
    for mask, colour in ((masks[:, 1:], other), (masks[:, :1], ink)):
        canvas += mask * (colour - canvas)
    strength = rng.uniform(0.02, 0.12, (n, 1, 1, 1)).astype(np.float32)
    canvas += strength * rng.standard_normal(canvas.shape, dtype=np.float32)
    painted: NDArray[np.uint8] = (canvas.clip(0, 1) * 255).round().astype(np.uint8)
    return painted


def _colours(n: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw ground and ink `(n, 3, 1, 1)` whose luminance differs by at least a fifth."""
    luminance = np.array([0.299, 0.587, 0.114])
    ground = rng.uniform(0.1, 0.9, (n, 1)) + rng.uniform(-0.25, 0.25, (n, 3))
    light = ground @ luminance
    contrast = rng.uniform(0.2, 0.6, n)
    goal = np.where(light + contrast > 0.97, light - contrast, light + contrast)
    goal = np.where((rng.random(n) < 0.5) & (light - contrast > 0.03), light - contrast, goal)
    ink = rng.uniform(0.15, 0.85, (n, 3))
    ink += (goal - ink @ luminance)[:, None]
    shape = (n, 3, 1, 1)
    return ground.reshape(shape).astype(np.float32), ink.reshape(shape).astype(np.float32)

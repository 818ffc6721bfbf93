"""A small contest folder: real annotations of the contest, and an image drawn for each."""

import json

import numpy as np
from PIL import Image

COUNTS = {"train": 24, "val": 8}
TEST = ["000004.png", "000001.png", "000003.png", "000000.png", "000002.png"]  # no sorted order


def draw(entry, seed, more=5):
    """Return an image that holds all boxes of an entry: noise, and a plain square a digit."""
    right = max(x + w for x, w in zip(entry["left"], entry["width"], strict=True))
    low = max(y + h for y, h in zip(entry["top"], entry["height"], strict=True))
    shape = int(low) + more, int(right) + more, 3
    pixels = np.random.default_rng(seed).integers(0, 60, shape, dtype=np.uint8)
    for x, y, w, h, digit in zip(
        *(entry[k] for k in ("left", "top", "width", "height", "label")), strict=True
    ):
        box = slice(max(0, int(y)), int(y + h)), slice(max(0, int(x)), int(x + w))
        pixels[box] = 60 + 18 * int(digit)
    return Image.fromarray(pixels)


def small(entries):
    """Return the entries whose images are small, so that tests are quick."""
    return {
        name: entry
        for name, entry in entries.items()
        if max(map(sum, zip(entry["left"], entry["width"], strict=True))) < 120
        and max(map(sum, zip(entry["top"], entry["height"], strict=True))) < 60
    }


def make(shared, root):
    """Write a folder in the contest's layout; return its entries by split."""
    kept = {}
    for split, count in COUNTS.items():
        real = json.loads((shared / "mchar" / f"mchar_{split}.json").read_text())
        kept[split] = dict(list(small(real).items())[:count])
        (root / f"mchar_{split}").mkdir(parents=True)
        write(root, split, kept[split])
        for i, (name, entry) in enumerate(kept[split].items()):
            draw(entry, i).save(root / f"mchar_{split}" / name, compress_level=1)
    (root / "mchar_test_a").mkdir()
    for i, (name, entry) in enumerate(zip(TEST, kept["val"].values(), strict=False)):
        draw(entry, 100 + i).save(root / "mchar_test_a" / name)
    sample(root, TEST)
    return kept


def write(root, split, entries):
    (root / f"mchar_{split}.json").write_text(json.dumps(entries))


def sample(root, names, header="file_name,file_code"):
    lines = [header, *(f"{name},0" for name in names)]
    (root / "mchar_sample_submit_A.csv").write_text("\n".join(lines) + "\n")

"""How fast are image files opened and decoded? Floor: Pillow's own calls, one after another."""

import tempfile
from pathlib import Path

import numpy as np
from measure import in_turn, report
from PIL import Image

from polyfuse import street_digits
from polyfuse.data.labelled_images import labelled_images

IMAGES = 1500
SIZE = (32, 64)
FILE = (192, 96)  # of a file: width, height, as the middle of the contest's images
REPEATS = 5


def write(folder: Path) -> list[Path]:
    """Write street numbers as png files with their labels."""
    made = street_digits(train=IMAGES, val=1, test=1).train
    lines = ["file_name,file_code"]
    for pixels, label, name in zip(made.images, made.labels, made.names, strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).resize(FILE).save(folder / name)
        lines.append(f"{name},{''.join(str(c) for c in label if c < 10)}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return sorted(folder.glob("*.png"))


def plainly(files: list[Path]) -> np.ndarray:
    """Decode files as a script does."""
    images = np.empty((len(files), *SIZE, 3), np.uint8)
    for place, file in enumerate(files):
        with Image.open(file) as image:
            wanted = Image.Resampling.BILINEAR
            images[place] = image.convert("RGB").resize(SIZE[::-1], wanted)
    return images


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as name:
        files = write(Path(name))
        half = {"root": name, "size": SIZE, "train": IMAGES - 2, "val": 1, "test": 1}
        splits = {
            "one thread": labelled_images(**half, workers=1, cache=0).train,
            "two threads": labelled_images(**half, workers=2, cache=0).train,
            "from the cache": labelled_images(**half, workers=2).train,
        }
        rows = np.arange(IMAGES - 2)
        subjects = {
            "Pillow, one after another": lambda: plainly(files),
            "open: check, decode, hash": lambda: labelled_images(**half, workers=2),
            **{f"inputs, {n}": lambda s=s: s.inputs(rows) for n, s in splits.items()},
        }
        seconds = in_turn(subjects, REPEATS)
    rates = {f"images a second, {n}": round(IMAGES / s) for n, s in seconds.items()}
    report("images", seconds, floor="Pillow, one after another", repeats=REPEATS, facts=rates)


if __name__ == "__main__":
    main()

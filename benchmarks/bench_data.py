"""How fast are street numbers composed? Floor: the same bytes written in one NumPy pass."""

import numpy as np
from measure import in_turn, report

from polyfuse import street_digits

IMAGES = 6000
REPEATS = 5


def main() -> None:
    """Measure and report."""
    sizes = {"train": IMAGES // 2, "val": IMAGES // 4, "test": IMAGES // 4}
    images = np.concatenate([split.images for split in street_digits(**sizes)])
    target = np.empty_like(images)
    subjects = {
        "one pass over the bytes": lambda: np.copyto(target, images),
        "street_digits": lambda: street_digits(**sizes),
    }
    seconds = in_turn(subjects, REPEATS)
    rate = {"images a second": round(IMAGES / seconds["street_digits"])}
    report("data", seconds, floor="one pass over the bytes", repeats=REPEATS, facts=rate)


if __name__ == "__main__":
    main()

"""Fuzz both readers for as long as one likes: python tests/checkpoints/fuzz.py --minutes 60"""

import argparse
import time

import fuzz_safetensors
import fuzz_torch

ROUND = 5_000  # files of a kind between two looks at the clock


def main(minutes: float, seed: int) -> int:
    """Fuzz with one seed after the other until the time is up; return how many files were read."""
    begun, files = time.monotonic(), 0
    while time.monotonic() - begun < 60 * minutes:
        fuzz_torch.main(ROUND, seed)
        fuzz_safetensors.main(ROUND, seed)
        seed, files = seed + 1, files + 2 * ROUND
        seconds = time.monotonic() - begun
        print(f"{files:,} files in {seconds:.0f} s, no fault; next seed {seed}", flush=True)
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    main(options.minutes, options.seed)

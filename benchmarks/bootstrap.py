"""What do 1,000 bootstrap replicates of a scoreboard cost? 30 rows over 100,000 samples.

The floor draws the random numbers of as many replicates and does nothing with them. Peers take each
replicate's samples by index, as is usually done; that is timed on fewer replicates and scaled.
"""

import resource
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from measure import in_turn, report

from polyfuse import metrics
from polyfuse.metrics import Terms, replicate_scores

ROWS, SAMPLES, REPLICATES, CLASSES = 30, 100_000, 1000, 10
FEW = 20  # replicates of what is scaled up
REPEATS = 5
FLOOR = "random numbers alone"


def main() -> None:
    """Measure and report."""
    rng = np.random.default_rng(0)
    losses = [Terms(rng.random(SAMPLES), np.ones(SAMPLES)) for _ in range(ROWS)]
    before = peak()
    replicate_scores(losses, replicates=REPLICATES)
    grown = peak() - before
    stack = np.stack([row.numerator for row in losses])
    labels = rng.integers(0, CLASSES, SAMPLES)
    logits = rng.normal(0, 1, (SAMPLES, CLASSES)) + np.eye(CLASSES)[labels]
    prediction = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    seconds = in_turn(
        {
            FLOOR: draws,
            "replicate_scores, 30 rows of terms": partial(
                replicate_scores, losses, replicates=REPLICATES
            ),
        },
        REPEATS,
    )
    few = in_turn(
        {
            "scores re-indexed, row by row": partial(by_index, stack, row_by_row),
            "scores re-indexed, all rows at once": partial(by_index, stack, all_rows),
            "accuracy recomputed from predictions, 1 row": partial(recomputed, prediction, labels),
            **{
                f"{name}, {CLASSES} classes, 1 row": partial(
                    replicate_scores, [metrics.METRICS[name](prediction, labels)], replicates=FEW
                )
                for name in ("f1", "ece", "aurc", "auroc")
            },
        },
        REPEATS,
    )
    seconds |= {name: value * REPLICATES / FEW for name, value in few.items()}
    ours = seconds["replicate_scores, 30 rows of terms"]
    best_peer = min(seconds[name] for name in seconds if "re-indexed" in name)
    facts = {
        "scores re-indexed, to replicate_scores": round(best_peer / ours, 1),
        "peak memory above the scores, MB": round(grown / 1e6, 1),
    }
    report("bootstrap", seconds, floor=FLOOR, repeats=REPEATS, facts=facts)


def draws() -> None:
    """Draw the samples of all replicates."""
    rng = np.random.default_rng(0)
    for _ in range(REPLICATES):
        rng.integers(SAMPLES, size=SAMPLES)


def by_index(stack: np.ndarray, score: Callable[..., object]) -> list[object]:
    """Draw the samples of a few replicates and take their scores by index."""
    rng = np.random.default_rng(0)
    return [score(stack, rng.integers(SAMPLES, size=SAMPLES)) for _ in range(FEW)]


def row_by_row(stack: np.ndarray, drawn: np.ndarray) -> list[float]:
    """Mean of each row's drawn scores."""
    return [row[drawn].mean() for row in stack]


def all_rows(stack: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean of all rows' drawn scores, by one indexing."""
    return stack[:, drawn].mean(1)


def recomputed(prediction: np.ndarray, labels: np.ndarray) -> list[float]:
    """Accuracy of a few replicates from the predictions themselves."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(SAMPLES, size=SAMPLES) for _ in range(FEW))
    return [float((prediction[i].argmax(1) == labels[i]).mean()) for i in drawn]


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()

"""AutoGluon's EnsembleSelection on saved predictions; runs in the peers' environment.

python benchmarks/peer_selection.py PREDICTIONS.npy LABELS.npy METRIC ROUNDS REPEATS
"""

import json
import sys
import time
from statistics import median

import numpy as np


def main(predictions: str, labels: str, metric: str, rounds: str, repeats: str) -> None:
    """Select, and print median seconds, the members in order, and the weights as JSON."""
    from autogluon.core.metrics import accuracy, log_loss
    from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

    members, truth = list(np.load(predictions)), np.load(labels)
    scorer = {"nll": log_loss, "accuracy": accuracy}[metric]
    seconds = []
    for _ in range(int(repeats)):
        peer = EnsembleSelection(int(rounds), problem_type="multiclass", metric=scorer)
        start = time.perf_counter()
        peer.fit(members, truth)
        seconds.append(time.perf_counter() - start)
    order, weights = [int(i) for i in peer.indices_], peer.weights_.tolist()
    print(json.dumps({"seconds": median(seconds), "order": order, "weights": weights}))


if __name__ == "__main__":
    main(*sys.argv[1:])

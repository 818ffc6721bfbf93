"""torchensemble's GradientBoostingClassifier on the same rows; runs in the peers' environment.

python benchmarks/peer_boosting.py MEMBERS EPOCHS BATCH
"""

import json
import logging
import sys
import tempfile
import time

import torch
from peer_voting import MLP
from peers import allow_torchvision
from plain import DECAY, RATE, pixels
from torch.utils.data import DataLoader, TensorDataset


def main(members: int, epochs: int, batch: int) -> None:
    """Boost, and print seconds and test accuracy as JSON."""
    allow_torchvision()
    from torchensemble import GradientBoostingClassifier

    torch.set_num_threads(1)
    torch.manual_seed(0)
    loaders = {
        name: DataLoader(TensorDataset(*part), batch_size=batch, shuffle=name == "learn")
        for name, part in pixels().items()
    }
    logging.disable(logging.INFO)
    model = GradientBoostingClassifier(estimator=MLP, n_estimators=members, cuda=False)
    model.set_optimizer("AdamW", lr=RATE, weight_decay=DECAY)
    model.set_scheduler("CosineAnnealingLR", T_max=epochs)
    # It would stop two rounds after its best one; all of them are timed here.
    always = {"early_stopping_rounds": members + 1}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model.fit(loaders["learn"], epochs, test_loader=loaders["stop"], save_dir=folder, **always)
    seconds = time.perf_counter() - start
    accuracy = float(model.evaluate(loaders["test"])) / 100
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

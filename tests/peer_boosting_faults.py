"""What torchensemble's gradient boosting does to its members; runs in the peers' environment.

    python tests/peer_boosting_faults.py

Prints JSON: gradients that the first member holds, batches that its batch-norm has seen, forward
passes of each member, and what labels with gaps come to.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
EPOCHS, BATCHES, ROUNDS = 2, 5, 3


class Net(nn.Module):
    """A net with batch-norm, that counts its forward passes."""

    def __init__(self, classes=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
        self.passes = 0

    def forward(self, inputs):
        self.passes += 1
        return self.net(inputs)


def boosted(labels, **given):
    """Boost on 40 rows; return the model."""
    from torchensemble import GradientBoostingClassifier

    rows = TensorDataset(torch.randn(len(labels), 4), labels)
    model = GradientBoostingClassifier(
        estimator=Net, n_estimators=ROUNDS, cuda=False, estimator_args=given or None
    )
    model.set_optimizer("SGD", lr=0.01)
    with tempfile.TemporaryDirectory() as folder:
        model.fit(DataLoader(rows, batch_size=8), EPOCHS, save_model=False, save_dir=folder)
    return model


def main():
    from peers import allow_torchvision

    allow_torchvision()
    torch.manual_seed(0)
    logging.disable(logging.INFO)
    first, *_ = members = boosted(torch.arange(40) % 3).estimators_
    try:
        boosted(torch.tensor([0, 2, 5]).repeat(14)[:40], classes=6)
        gaps = "trained"
    except Exception as error:
        gaps = type(error).__name__
    facts = {
        "own": EPOCHS * BATCHES,
        "rounds": ROUNDS,
        "gradients": sum(p.grad is not None for p in first.parameters()),
        "seen": int(first.net[1].num_batches_tracked),
        "passes": [member.passes for member in members],
        "gaps": gaps,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

"""torchensemble's VotingClassifier on the same rows; runs in the peers' environment.

python benchmarks/peer_voting.py mlp|cnn MEMBERS EPOCHS BATCH WORKERS
"""

import json
import logging
import sys
import tempfile
import time

import torch
from peers import allow_torchvision
from plain import DECAY, RATE, Net, digits, mlp, pixels
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class MLP(nn.Module):
    """The MLP, as a class: torchensemble builds its members from one."""

    def __init__(self) -> None:
        """Build it."""
        super().__init__()
        self.net = mlp()

    def forward(self, values: Tensor) -> Tensor:
        """Map rows to logits."""
        return self.net(values)


def main(net: str, members: int, epochs: int, batch: int, workers: int) -> None:
    """Train, and print seconds and test accuracy as JSON."""
    allow_torchvision()
    from torchensemble import VotingClassifier

    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, parts = {"mlp": (MLP, pixels()), "cnn": (Net, digits())}[net]
    loaders = {
        name: DataLoader(TensorDataset(*part), batch_size=batch, shuffle=name == "learn")
        for name, part in parts.items()
    }
    logging.disable(logging.INFO)
    model = VotingClassifier(estimator=make, n_estimators=members, cuda=False, n_jobs=workers)
    model.set_optimizer("AdamW", lr=RATE, weight_decay=DECAY)
    model.set_scheduler("CosineAnnealingLR", T_max=epochs)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model.fit(loaders["learn"], epochs, test_loader=loaders["stop"], save_dir=folder)
    seconds = time.perf_counter() - start
    accuracy = float(model.evaluate(loaders["test"])) / 100
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

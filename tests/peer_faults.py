"""What torchensemble's voting does, in its environment: python peer_faults.py prints JSON.

Most of the validation labels are flipped: training makes them worse, so that the best epoch is not
the last. Told: the accuracy of the best epoch as it is logged, that of the members
that are kept, and the modes in which the members were run by the first validation.
"""

import json
import logging
import re

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LOGGED = re.compile(r"Historical Best: ([\d.]+)")


class Net(nn.Module):
    """Notes the mode of every pass over validation rows: 24 of them, where training has 16."""

    modes: list[bool] = []  # noqa: RUF012  # of all members, which torchensemble makes itself

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 24:
            Net.modes.append(self.training)
        return self.body(x)


class Best(logging.Handler):
    """Keeps the best accuracy that was logged."""

    best = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if found := LOGGED.search(record.getMessage()):
            self.best = float(found[1])


def main() -> None:
    from torchensemble import VotingClassifier

    torch.manual_seed(0)
    x = torch.randn(40, 4)
    y = (x[:, 0] > 0).long()
    y[16:] = torch.where(torch.arange(24) % 8 < 5, 1 - y[16:], y[16:])
    train = DataLoader(TensorDataset(x[:16], y[:16]), batch_size=16)
    held = DataLoader(TensorDataset(x[16:], y[16:]), batch_size=24)
    model = VotingClassifier(estimator=Net, n_estimators=2, cuda=False)
    model.logger, handler = logging.getLogger("voting"), Best()
    model.logger.setLevel(logging.INFO)
    model.logger.addHandler(handler)
    model.set_optimizer("Adam", lr=0.03)
    model.fit(train, epochs=20, test_loader=held, save_model=False)
    first = Net.modes[:2]
    told = {"logged": handler.best, "kept": model.evaluate(held), "first_modes": first}
    print(json.dumps(told))


if __name__ == "__main__":
    main()

"""The data, the net and the loop that a person writes by hand: what polyfuse is compared with."""

import copy
import math
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

RATE, DECAY = 4e-3, 1e-2
Part = tuple[Tensor, Tensor]


FORWARD = (
    (5, "MLP", 32),
    (5, "MLP", 256),
    (20, "MLP", 32),
    (20, "MLP", 256),
    (50, "narrow MLP", 32),
    (5, "CNN", 128),
)


def digits() -> dict[str, Part]:
    """Return inputs and labels of 1,197 rows to learn, 200 to stop on and 400 to test on."""
    images, classes = load_digits(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    inputs = functional.interpolate(small, size=(24, 24), mode="bilinear")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(inputs)))
    parts = order.split([len(inputs) - 600, 200, 400])
    labels = torch.from_numpy(classes)
    return {
        name: (inputs[rows], labels[rows])
        for name, rows in zip(("learn", "stop", "test"), parts, strict=True)
    }


def pixels() -> dict[str, Part]:
    """Return the rows of `digits` as they are: 64 numbers."""
    parts = digits()
    small = {n: functional.interpolate(i, size=(8, 8), mode="area") for n, (i, _) in parts.items()}
    return {name: (small[name].flatten(1), labels) for name, (_, labels) in parts.items()}


def mlp(width: int = 128) -> nn.Module:
    """Return a net for `(n, 64)` rows of ten classes."""
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def to_forward(count: int, kind: str, batch: int) -> tuple[str, list[nn.Module], Tensor]:
    """Return a case of `FORWARD`: its name, members in eval mode, and inputs."""
    torch.manual_seed(0)
    make = {"MLP": mlp, "narrow MLP": partial(mlp, 16), "CNN": Net}[kind]
    shape = (batch, 1, 24, 24) if kind == "CNN" else (batch, 64)
    members = [make().eval() for _ in range(count)]
    return f"{count} {kind}s, batch {batch}", members, torch.randn(shape)


class ByHand(nn.Module):
    """The mean probability of members, as a person writes it."""

    def __init__(self, members: list[nn.Module]) -> None:
        """Keep the members."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean over members."""
        return torch.stack([member(inputs) for member in self.members]).softmax(-1).mean(0)


class Net(nn.Module):
    """A small CNN for `(n, 1, 24, 24)` images of ten classes."""

    def __init__(self, width: int = 16) -> None:
        """Build three blocks and a head."""
        super().__init__()
        parts: list[nn.Module] = []
        for before, after in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            parts += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)]
            parts += [nn.ReLU(), nn.MaxPool2d(2)]
        self.net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * width * 9, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Map images to `(n, 10)` logits."""
        return self.net(images)


def fit(
    model: nn.Module,
    data: Part,
    stopping: Part,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> nn.Module:
    """Train with AdamW on a cosine schedule, keep the epoch with the lowest stopping loss."""
    inputs, labels = data
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    batches = math.ceil(len(inputs) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    lowest, best = math.inf, model.state_dict()
    for epoch in range(epochs):
        model.train()
        order = np.random.default_rng([seed, epoch]).permutation(len(inputs))
        for rows in np.array_split(order, batches):
            loss = functional.cross_entropy(model(inputs[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()
        with torch.no_grad():
            stopping_loss = float(functional.cross_entropy(model(stopping[0]), stopping[1]))
        if stopping_loss < lowest:
            lowest, best = stopping_loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return model

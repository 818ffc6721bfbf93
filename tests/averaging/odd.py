"""A model with every kind of tensor, and a way to move it that draws no gradients."""

import torch
from torch import nn

from polyfuse.averaging import RULES, custom, ema, lawa, swa, tanh_ema

MANY = {
    "ema": ema(0.9),
    "warm": ema(0.9, warmup="power"),
    "swa": swa(),
    "t_adema": tanh_ema(0.9),
    "power": RULES["power_ema"](0.1),
    "half": RULES["half_life"](steps=3),
    "lawa": lawa(3),
    "own": custom(torch.clone, lambda average, current, n: average.maximum(current)),
}


class Odd(nn.Module):
    """Tied, frozen, complex, empty, 0-dim, channels-last, scattered and integer tensors."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, dtype=dtype).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4, dtype=dtype)
        self.twin = nn.Conv2d(3, 4, 2, dtype=dtype)
        self.twin.weight = self.conv.weight
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.none = nn.Parameter(torch.empty(0, 3, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(5, dtype=dtype), requires_grad=False)
        self.scattered = nn.Parameter(torch.ones(6, 4, dtype=dtype)[:, ::2])
        self.turned = nn.Parameter(torch.ones(2, 7, dtype=dtype).t())
        self.wave = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.codes = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("mean", torch.zeros(2, dtype=dtype))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_parameter("nothing", None)

    def forward(self, x):
        return self.norm(self.conv(x) + self.twin(x)) * self.scale


def move(model, draw):
    """Change all tensors as a step of training would."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.add_(torch.randn(tensor.shape, generator=draw).to(tensor))
            else:
                tensor.add_(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(model):
    """Copies of what a model holds, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

"""Small checkpoints to merge: a net with batch-norm, counters and tied weights, in any format."""

import torch
from torch import nn

from polyfuse.weights import save_checkpoint

FORMATS = {"safetensors": "{}.safetensors", "torch": "{}.pt", "hf": "{}", "dcp": "{}"}


class Net(nn.Module):
    """A convolution, batch-norm, an integer buffer, and two tied layers."""

    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.encode = nn.Linear(width, 4, bias=False)
        self.decode = nn.Linear(width, 4, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("ids", torch.arange(width))

    def forward(self, images):
        return self.decode(self.bn(self.conv(images)).mean((2, 3)))


def net(seed, **options):
    """Return a net with weights and statistics of its own."""
    torch.manual_seed(seed)
    made = Net(**options)
    for step in range(seed + 1):
        made(torch.randn(4, 3, 8, 8) + step)
    return made.eval()


def states(count, dtype=torch.float32):
    """Return so many state dicts of one architecture; tied tensors are tied."""
    made = []
    for seed in range(count):
        state = {k: v.detach() for k, v in net(seed).to(dtype).state_dict(keep_vars=True).items()}
        state["decode.weight"] = state["encode.weight"]
        made.append(state)
    return made


def files(folder, form, count=3, dtype=torch.float32, **options):
    """Write so many checkpoints; return their paths."""
    return [
        save_checkpoint(state, folder / FORMATS[form].format(f"in{i}"), form=form, **options)
        for i, state in enumerate(states(count, dtype))
    ]

"""A multilayer perceptron over flattened inputs."""

from itertools import pairwise

from torch import nn

from polyfuse.models.base import check_sizes


def mlp(
    *, inputs: int, classes: int, hidden: int = 64, layers: int = 2, dropout: float = 0.0
) -> nn.Module:
    """Build a multilayer perceptron over flattened inputs.

    Args:
        inputs: features of a sample.
        classes: outputs.
        hidden: units of a hidden layer.
        layers: hidden layers, 1 or more.
        dropout: share of hidden units dropped.

    Raises:
        PolyfuseError: a size below 1.

    Example:
        >>> import torch
        >>> mlp(inputs=4, classes=3)(torch.zeros(2, 2, 2)).shape
        torch.Size([2, 3])
    """
    check_sizes(inputs=inputs, classes=classes, hidden=hidden, layers=layers)
    sizes = [inputs] + [hidden] * layers
    parts: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(hidden, classes))

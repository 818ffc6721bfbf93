"""The small nets that recipes name: a multi-head character CNN and an MLP."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from polyfuse.errors import PolyfuseError


class CharacterCNN(nn.Module):
    """A convolutional trunk with one classifier a character position (Goodfellow et al. 2013).

    Each image is normalised by its own mean and deviation a channel. Three blocks (convolution,
    batch-norm, ReLU, pooling) are followed by dropout, a hidden layer (batch-norm too: it halves
    the epochs that positions take to come apart) and a linear head a position.

    Args:
        width: channels of the first block; the next have twice and four times as many.
        hidden: units of the hidden layer.
        dropout: share of features dropped before and after the hidden layer.
        positions: heads.
        classes: classes of a head; the last one means "no character".

    Raises:
        PolyfuseError: a size below 1.

    Example:
        >>> CharacterCNN(width=4)(torch.zeros(2, 3, 24, 64)).shape
        torch.Size([2, 6, 11])
    """

    def __init__(
        self,
        *,
        width: int = 16,
        hidden: int = 128,
        dropout: float = 0.2,
        positions: int = 6,
        classes: int = 11,
    ) -> None:
        """Build the trunk and the heads."""
        super().__init__()
        _check_sizes(width=width, hidden=hidden, positions=positions, classes=classes)
        channels = [3, width, 2 * width, 4 * width]
        blocks = (_block(i, o) for i, o in pairwise(channels))
        self.trunk = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d((3, 8)))
        self.hidden = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels[-1] * 24, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.heads = nn.ModuleList(nn.Linear(hidden, classes) for _ in range(positions))
        # Channels last is twice as fast for small convolutions on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, 3, height, width)` float images to `(n, positions, classes)` logits."""
        centred = images - images.mean((2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((2, 3), keepdim=True).sqrt() + 1e-3)
        features = self.trunk(scaled.contiguous(memory_format=torch.channels_last))
        hidden = self.hidden(features.flatten(1))
        return torch.stack([head(hidden) for head in self.heads], 1)


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
        >>> mlp(inputs=4, classes=3)(torch.zeros(2, 2, 2)).shape
        torch.Size([2, 3])
    """
    _check_sizes(inputs=inputs, classes=classes, hidden=hidden, layers=layers)
    sizes = [inputs] + [hidden] * layers
    parts: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(hidden, classes))


MODELS: dict[str, Callable[..., nn.Module]] = {"character_cnn": CharacterCNN, "mlp": mlp}


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise PolyfuseError(f"{name}={size}; it must be 1 or more")


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )

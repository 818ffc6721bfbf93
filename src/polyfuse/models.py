"""The small nets that recipes name: a multi-head character CNN, a small ResNet-18 and an MLP."""

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


class ResNet18Small(nn.Module):
    """ResNet-18 for small images (He et al. 2016): a 3x3 stem of stride 1, and no max-pooling.

    Four stages of two basic blocks; the last three halve the image and double the channels. Images
    of 8x8 pixels and more are fine: the last stage sees an eighth of each side.

    Args:
        classes: outputs.
        width: channels of the first stage; 64 is the ResNet-18 of 11 million parameters, and 16
            has a sixteenth of them.
        channels: of an image.

    Raises:
        PolyfuseError: a size below 1.

    Example:
        >>> ResNet18Small(classes=10, width=4, channels=1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, classes: int, width: int = 64, channels: int = 3) -> None:
        """Build stem, stages and head."""
        super().__init__()
        _check_sizes(classes=classes, width=width, channels=channels)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Sequential(_convolution(channels, width), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(*(_stage(before, after) for before, after in pairwise(sizes)))
        self.head = nn.Linear(sizes[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, channels, height, width)` float images to `(n, classes)` logits."""
        features = self.stages(self.stem(images.contiguous(memory_format=torch.channels_last)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


MODELS: dict[str, Callable[..., nn.Module]] = {
    "character_cnn": CharacterCNN,
    "mlp": mlp,
    "resnet18_small": ResNet18Small,
}


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


def _convolution(before: int, after: int, *, size: int = 3, stride: int = 1) -> nn.Module:
    return nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)


def _stage(before: int, after: int) -> nn.Module:
    """Return two blocks; the first one halves the image where it widens the channels."""
    first = _BasicBlock(before, after, stride=1 if before == after else 2)
    return nn.Sequential(first, _BasicBlock(after, after, stride=1))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the shortcut is a 1x1 one where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(before, after, stride=stride),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            _convolution(after, after),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = _convolution(before, after, size=1)
            self.shortcut = nn.Sequential(_Subsample(stride), projection, nn.BatchNorm2d(after))

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor = self.residual(features) + self.shortcut(features)
        return total.relu()


class _Subsample(nn.Module):
    """Take every n-th pixel of either side, with which a strided 1x1 convolution begins.

    It is a step of its own because oneDNN's strided 1x1 convolution, where channels are last and
    fewer than 8 or 16, writes past its memory in the backward pass (oneDNN issue 6035).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        return features[..., :: self.stride, :: self.stride]

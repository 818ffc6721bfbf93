"""ResNet-18 for small images."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from polyfuse.models.base import (
    BasicBlock,
    channels_last,
    check_sizes,
    convolution,
    start_convolutions,
)


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
        check_sizes(classes=classes, width=width, channels=channels)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Sequential(convolution(channels, width), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(*(_stage(before, after) for before, after in pairwise(sizes)))
        self.head = nn.Linear(sizes[-1], classes)
        start_convolutions(self)
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, channels, height, width)` float images to `(n, classes)` logits."""
        features = self.stages(self.stem(images.contiguous(memory_format=torch.channels_last)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def _stage(before: int, after: int) -> nn.Module:
    """Return two blocks; the first one halves the image where it widens the channels."""
    first = BasicBlock(before, after, stride=1 if before == after else 2)
    return nn.Sequential(first, BasicBlock(after, after, stride=1))

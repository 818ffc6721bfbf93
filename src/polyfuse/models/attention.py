"""A small ResNet that reads characters, each by its own attention over the image."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from polyfuse.models.base import (
    BasicBlock,
    ReadingHeads,
    centred,
    channels_last,
    check_sizes,
    convolution,
    start_convolutions,
)


class AttentionResNet(nn.Module):
    """A small ResNet (He et al. 2016) whose heads look each at their own place of the image.

    Each image is normalised by its own mean and deviation a channel. A 3x3 stem of stride 1 and
    max-pooling are followed by three stages of basic blocks, the last two of half the size and
    twice the channels; then `ReadingHeads`.

    Args:
        width: channels of the first stage; the next have twice and four times as many.
        blocks: of each stage, one or more.
        hidden: units of the hidden layer.
        dropout: share of features dropped before and after the hidden layer.
        positions: heads.
        classes: classes of a head; the last one means "no character".
        length_head: one head more, of the length: `(n, positions + 1, classes)` logits, the last
            head's for lengths 0 to `positions`; train it by `character_cross_entropy`.

    Raises:
        PolyfuseError: a size below 1, or fewer classes than a length head has lengths.

    Example:
        >>> AttentionResNet(width=4, length_head=True)(torch.zeros(2, 3, 24, 64)).shape
        torch.Size([2, 7, 11])
    """

    def __init__(
        self,
        *,
        width: int = 12,
        blocks: int = 1,
        hidden: int = 128,
        dropout: float = 0.2,
        positions: int = 6,
        classes: int = 11,
        length_head: bool = False,
    ) -> None:
        """Build stem, stages and heads."""
        super().__init__()
        check_sizes(width=width, blocks=blocks)
        self.length_head = length_head
        sizes = [width, width, 2 * width, 4 * width]
        stem = convolution(3, width)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
        self.stages = nn.Sequential(*(_stage(i, o, blocks) for i, o in pairwise(sizes)))
        self.heads = ReadingHeads(
            sizes[-1],
            places=True,
            positions=positions,
            classes=classes,
            length_head=length_head,
            hidden=hidden,
            dropout=dropout,
        )
        start_convolutions(self.stages)
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, 3, height, width)` float images to `(n, positions, classes)` logits."""
        scaled = centred(images).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.heads(self.stages(self.stem(scaled)))
        return logits


def _stage(before: int, after: int, blocks: int) -> nn.Module:
    """Return basic blocks; the first one halves the image where it widens the channels."""
    first = BasicBlock(before, after, stride=1 if before == after else 2)
    return nn.Sequential(first, *(BasicBlock(after, after, stride=1) for _ in range(blocks - 1)))

"""Plain convolutional nets that read characters, or count them."""

from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from polyfuse.models.base import (
    GRID,
    as_imagenet,
    centred,
    channels_last,
    check_dropout,
    check_length_head,
    check_sizes,
    hidden_layer,
    length_logits,
)


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
        length_head: one head more, of the length: `(n, positions + 1, classes)` logits, the last
            head's for lengths 0 to `positions`; train it by `character_cross_entropy`.

    Raises:
        PolyfuseError: a size below 1, or fewer classes than a length head has lengths.

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
        length_head: bool = False,
    ) -> None:
        """Build the trunk and the heads."""
        super().__init__()
        check_sizes(width=width, hidden=hidden, positions=positions, classes=classes)
        check_length_head(length_head, positions, classes)
        self.length_head, self.classes = length_head, classes
        self.trunk = _trunk(width)
        self.hidden = nn.Sequential(*hidden_layer(4 * width * prod(GRID), hidden, dropout))
        self.heads = nn.ModuleList(nn.Linear(hidden, classes) for _ in range(positions))
        self.lengths = nn.Linear(hidden, positions + 1) if length_head else None
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, 3, height, width)` float images to `(n, positions, classes)` logits."""
        hidden = self.hidden(_features(self.trunk, images))
        logits = [head(hidden) for head in self.heads]
        if self.lengths is not None:
            logits.append(length_logits(self.lengths(hidden), self.classes))
        return torch.stack(logits, 1)


class LengthCNN(nn.Module):
    """The trunk of `CharacterCNN` with one classifier: how many characters there are.

    It learns from data whose labels are lengths: `target: length`.

    Args:
        width: channels of the first block; the next have twice and four times as many.
        hidden: units of the hidden layer.
        dropout: share of features dropped before and after the hidden layer.
        positions: the longest string; there are `positions + 1` lengths, 0 included.

    Raises:
        PolyfuseError: a size below 1, or a dropout that is no share.

    Example:
        >>> LengthCNN(width=4)(torch.zeros(2, 3, 24, 64)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self, *, width: int = 12, hidden: int = 64, dropout: float = 0.2, positions: int = 6
    ) -> None:
        """Build the trunk and the head."""
        super().__init__()
        check_sizes(width=width, hidden=hidden, positions=positions)
        check_dropout(dropout)
        self.trunk = _trunk(width)
        self.hidden = nn.Sequential(*hidden_layer(4 * width * prod(GRID), hidden, dropout))
        self.head = nn.Linear(hidden, positions + 1)
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, 3, height, width)` float images to `(n, positions + 1)` logits."""
        logits: Tensor = self.head(self.hidden(_features(self.trunk, images)))
        return logits


class CourseCNN(nn.Module):
    """The first net of the street-character course (Datawhale, Tianchi contest 531795).

    Two blocks of a 3x3 convolution of stride 2, ReLU and pooling, 3 to 16 to 32 channels; their
    features, flattened, go to a linear head a position. The course reads 60x120 pixels, whose
    features are 32 x 3 x 7; those of another size are averaged, or repeated, to that. Images are
    normalised by ImageNet's mean and deviation, as there.

    Args:
        dropout: share of features dropped before the heads.
        positions: heads.
        classes: classes of a head; the last one means "no character".

    Raises:
        PolyfuseError: a size below 1, or a dropout that is no share.

    Example:
        >>> CourseCNN()(torch.zeros(2, 3, 60, 120)).shape
        torch.Size([2, 6, 11])
    """

    def __init__(self, *, dropout: float = 0.25, positions: int = 6, classes: int = 11) -> None:
        """Build blocks and heads."""
        super().__init__()
        check_sizes(positions=positions, classes=classes)
        check_dropout(dropout)
        parts: list[nn.Module] = []
        for before, after in pairwise((3, 16, 32)):
            parts += [nn.Conv2d(before, after, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)]
        self.trunk = nn.Sequential(*parts, nn.AdaptiveAvgPool2d((3, 7)))
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Linear(32 * 3 * 7, classes) for _ in range(positions))

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, 3, height, width)` images from 0 to 1 to `(n, positions, classes)` logits."""
        features = self.dropout(self.trunk(as_imagenet(images)).flatten(1))
        return torch.stack([head(features) for head in self.heads], 1)


def _trunk(width: int) -> nn.Sequential:
    channels = [3, width, 2 * width, 4 * width]
    blocks = (_block(before, after) for before, after in pairwise(channels))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(GRID))


def _features(trunk: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = trunk(centred(images).contiguous(memory_format=torch.channels_last))
    return features.flatten(1)


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )

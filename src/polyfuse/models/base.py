"""What several nets are built of: sizes checked, images normalised, blocks, and readers' heads."""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyfuse.errors import PolyfuseError

NEVER = -1e4  # a logit of what cannot be; finite in 16 bits, too
GRID = (3, 8)  # of places, down and along, by which a hidden layer sees where something is
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, deviation: red, green, blue


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1.

    Raises:
        PolyfuseError: the first one.

    Example:
        >>> check_sizes(width=0)
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: width=0; it must be 1 or more
    """
    for name, size in sizes.items():
        if size < 1:
            raise PolyfuseError(f"{name}={size}; it must be 1 or more")


def check_dropout(dropout: float) -> None:
    """Refuse a share that is none.

    Raises:
        PolyfuseError: it is below 0, or 1 and more.

    Example:
        >>> check_dropout(1.5)
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: dropout=1.5; it must be 0 or more and below 1
    """
    if not 0 <= dropout < 1:
        raise PolyfuseError(f"dropout={dropout}; it must be 0 or more and below 1")


def check_length_head(length_head: bool, positions: int, classes: int) -> None:
    """Refuse a length head that has more lengths than a head has classes.

    Raises:
        PolyfuseError: there are fewer classes than lengths.

    Example:
        >>> check_length_head(True, 6, 11)
    """
    if length_head and classes < positions + 1:
        raise PolyfuseError(
            f"length_head: {positions} positions have {positions + 1} lengths, 0 included, and "
            f"a head has {classes} classes; give {positions + 1} classes or more, or leave the "
            "length to a model of its own: length_cnn"
        )


def length_logits(lengths: Tensor, classes: int) -> Tensor:
    """Return `(n, lengths)` logits as one head more: what is no length is -10,000.

    Example:
        >>> length_logits(torch.zeros(1, 2), 3).tolist()
        [[0.0, 0.0, -10000.0]]
    """
    return functional.pad(lengths, (0, classes - lengths.shape[1]), value=NEVER)


def centred(images: Tensor) -> Tensor:
    """Normalise each channel of each image by its own mean and deviation.

    So a net sees neither brightness nor contrast of an image; one of a single colour becomes 0.

    Args:
        images: `(n, channels, height, width)` floating.

    Example:
        >>> centred(torch.tensor([[[[1.0, 3.0]]]])).round(decimals=2).tolist()
        [[[[-1.0, 1.0]]]]
    """
    apart = images - images.mean((2, 3), keepdim=True)
    return apart / (apart.square().mean((2, 3), keepdim=True).sqrt() + 1e-3)


def as_imagenet(images: Tensor) -> Tensor:
    """Normalise images by ImageNet's mean and deviation, as most pretrained nets saw theirs.

    Args:
        images: `(n, 3, height, width)` from 0 to 1.

    Example:
        >>> as_imagenet(torch.full((1, 3, 1, 1), 0.485))[0, 0].abs().item()
        0.0
    """
    mean, deviation = (torch.tensor(each).to(images)[:, None, None] for each in _IMAGENET)
    return (images - mean) / deviation


def channels_last(net: nn.Module) -> None:
    """Lay a net's convolutions out by pixels: twice as fast for small ones on a CPU.

    Example:
        >>> channels_last(nn.Conv2d(2, 2, 3))
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it


def convolution(before: int, after: int, *, size: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution without bias, for batch-norm to follow, that pads to the same size.

    Example:
        >>> convolution(3, 4)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """
    return nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016); 1x1 where the shape changes.

    Args:
        before: channels that come in.
        after: channels that go out.
        stride: by which the sides shrink.

    Example:
        >>> BasicBlock(4, 8, stride=2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Build residual and shortcut."""
        super().__init__()
        self.residual = nn.Sequential(
            convolution(before, after, stride=stride),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            convolution(after, after),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = convolution(before, after, size=1)
            self.shortcut = nn.Sequential(_Subsample(stride), projection, nn.BatchNorm2d(after))

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to the shortcut."""
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


def hidden_layer(features: int, hidden: int, dropout: float) -> list[nn.Module]:
    """Return a hidden layer between two dropouts, with batch-norm.

    Batch-norm halves the epochs that the heads of several positions take to come apart.

    Example:
        >>> nn.Sequential(*hidden_layer(4, 3, dropout=0.5))(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """
    linear = nn.Linear(features, hidden, bias=False)
    first, last = nn.Dropout(dropout), nn.Dropout(dropout)
    return [first, linear, nn.BatchNorm1d(hidden), nn.ReLU(), last]


def start_convolutions(net: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. (2015) do, for ReLU to follow.

    Example:
        >>> start_convolutions(nn.Conv2d(2, 2, 3))
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ReadingHeads(nn.Module):
    """Features to the logits of each position's character, and of the length where asked for.

    All features go through a hidden layer. Features that still have a place, `(n, channels,
    height, width)`, are pooled by attention besides: each position has its own weights over the
    places, a softmax of what the hidden layer says about a grid of 3x8 (where the characters of
    this image lie) and of what a convolution sees at the place. A position's head reads what its
    attention found, and the hidden layer.

    Attention from local features alone takes many epochs to come apart, since which character
    is the second depends on the whole image.

    Args:
        features: their number, or channels.
        places: they have height and width.
        positions: heads.
        classes: of a head.
        length_head: one head more: of the length, 0 to `positions`, in its first classes; the rest
            of it is -10,000.
        hidden: units of the hidden layer.
        dropout: share of features dropped before and after the hidden layer.

    Raises:
        PolyfuseError: a size below 1, or fewer classes than a length head has lengths.

    Example:
        >>> heads = ReadingHeads(8, places=True, positions=6, classes=11, length_head=True)
        >>> heads(torch.zeros(2, 8, 3, 8)).shape
        torch.Size([2, 7, 11])
    """

    def __init__(
        self,
        features: int,
        *,
        places: bool,
        positions: int,
        classes: int,
        length_head: bool = False,
        hidden: int = 128,
        dropout: float = 0.2,
    ) -> None:
        """Build hidden layer, attention and heads."""
        super().__init__()
        check_sizes(features=features, positions=positions, classes=classes, hidden=hidden)
        check_dropout(dropout)
        check_length_head(length_head, positions, classes)
        self.classes = classes
        self.hidden = nn.Sequential(
            nn.AdaptiveAvgPool2d(GRID) if places else nn.Identity(),
            nn.Flatten(),
            *hidden_layer(features * (prod(GRID) if places else 1), hidden, dropout),
        )
        self.attention = PositionAttention(features, hidden, positions) if places else None
        wide = hidden + (features if places else 0)
        self.heads = nn.ModuleList(nn.Linear(wide, classes) for _ in range(positions))
        self.lengths = nn.Linear(hidden, positions + 1) if length_head else None

    def forward(self, features: Tensor) -> Tensor:
        """Map features to `(n, positions, classes)`, or `(n, positions + 1, classes)`, logits."""
        hidden = self.hidden(features)
        seen = [hidden] * len(self.heads)
        if self.attention is not None:
            found = self.attention(features, hidden).unbind(1)
            seen = [torch.cat([each, hidden], 1) for each in found]
        logits = [head(each) for head, each in zip(self.heads, seen, strict=True)]
        if self.lengths is not None:
            logits.append(length_logits(self.lengths(hidden), self.classes))
        return torch.stack(logits, 1)


class PositionAttention(nn.Module):
    """Pool feature maps to features a position, each by its own weights over the places.

    Args:
        channels: of the maps.
        hidden: units that say where characters lie.
        positions: of characters.

    Example:
        >>> pool = PositionAttention(8, 16, positions=6)
        >>> pool(torch.zeros(2, 8, 3, 8), torch.zeros(2, 16)).shape
        torch.Size([2, 6, 8])
    """

    def __init__(self, channels: int, hidden: int, positions: int) -> None:
        """Build what scores places, from the whole image and from each place."""
        super().__init__()
        self.layout = nn.Linear(hidden, positions * prod(GRID))
        self.content = nn.Sequential(
            convolution(channels, 16), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, positions, 1)
        )
        self.norm = nn.BatchNorm1d(channels)

    def weights(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Return `(n, positions, height, width)` weights, of a sum of 1 over the places."""
        scores = self.content(features)
        layout = self.layout(hidden).unflatten(1, (scores.shape[1], *GRID))
        if layout.shape != scores.shape:
            layout = functional.interpolate(layout, scores.shape[2:], mode="bilinear")
        weights: Tensor = (scores + layout).flatten(2).softmax(-1).view_as(scores)
        return weights

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Map `(n, channels, height, width)` and `(n, hidden)` to `(n, positions, channels)`."""
        weights = self.weights(features, hidden).flatten(2)
        found = weights @ features.flatten(2).transpose(1, 2)
        normed: Tensor = self.norm(found.flatten(0, 1)).view_as(found)
        return normed

"""Parameter shapes of four well-known models, written down so that nobody has to install them."""

from collections.abc import Iterator
from math import prod

import torch
from torch import nn

Shapes = Iterator[tuple[int, ...]]


def resnet(repeats: tuple[int, ...], *, bottleneck: bool) -> Shapes:
    """Yield the shapes of a ResNet for 1,000 classes (He et al. 2016)."""
    yield from normed(64, 3, 7, 7)
    wide = 64
    for stage, repeat in enumerate(repeats):
        width = 64 << stage
        out = 4 * width if bottleneck else width
        for block in range(repeat):
            if bottleneck:
                yield from normed(width, wide, 1, 1)
                yield from normed(width, width, 3, 3)
                yield from normed(out, width, 1, 1)
            else:
                yield from normed(width, wide, 3, 3)
                yield from normed(width, width, 3, 3)
            if not block and wide != out:
                yield from normed(out, wide, 1, 1)
            wide = out
    yield from ((1000, wide), (1000,))


def vit(width: int = 768, depth: int = 12, patches: int = 197) -> Shapes:
    """Yield the shapes of ViT-B/16 (Dosovitskiy et al. 2021)."""
    yield from ((1, 1, width), (1, patches, width), (width, 3, 16, 16), (width,))
    for _ in range(depth):
        yield from ((width,), (width,), (3 * width, width), (3 * width,))
        yield from ((width, width), (width,), (width,), (width,))
        yield from ((4 * width, width), (4 * width,), (width, 4 * width), (width,))
    yield from ((width,), (width,), (1000, width), (1000,))


def efficientnet() -> Shapes:
    """Yield the shapes of EfficientNet-B0 (Tan and Le 2019)."""
    stages = ((1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3))
    stages += ((6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1))
    yield from normed(32, 3, 3, 3)
    wide = 32
    for expand, kernel, out, repeat in stages:
        for _ in range(repeat):
            middle, squeezed = wide * expand, max(1, wide // 4)
            if expand > 1:
                yield from normed(middle, wide, 1, 1)
            yield from normed(middle, 1, kernel, kernel)
            yield from ((squeezed, middle, 1, 1), (squeezed,), (middle, squeezed, 1, 1), (middle,))
            yield from normed(out, middle, 1, 1)
            wide = out
    yield from normed(1280, wide, 1, 1)
    yield from ((1000, 1280), (1000,))


def normed(*shape: int) -> Shapes:
    """Yield the shapes of a convolution without bias and its batch-norm."""
    yield from (shape, shape[:1], shape[:1])


MODELS = {
    "resnet18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "vit_b16": vit,
    "efficientnet_b0": efficientnet,
}


class Net(nn.Module):
    """A module a tensor, as models have about one for each or two."""

    def __init__(self, name: str) -> None:
        """Draw the parameters."""
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList()
        for shape in MODELS[name]():
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.randn(shape))
            self.layers.append(layer)


def elements(name: str) -> int:
    """Return the number of parameters of a model."""
    return sum(map(prod, MODELS[name]()))

"""Any image backbone as a reader of characters: torchvision's, timm's, or one of your own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyfuse.errors import PolyfuseError, printable
from polyfuse.models.base import ReadingHeads, as_imagenet, centred, check_sizes


class Reader(nn.Module):
    """Turn a backbone into a multi-head reader, with a length head where asked for.

    The backbone is built and tried once, on one image of zeros. Of what it returns

    - `(n, channels, height, width)` feature maps are pooled by an attention a position,
    - `(n, features)` go to a hidden layer and a linear head a position,
    - a classifier's logits are left out: where the output is that of a linear layer, this last
      layer is replaced by nothing, and what went into it are the features.

    Args:
        backbone: makes it; in a recipe `package.module:factory`, as `torchvision.models:resnet18`
            or `timm:create_model`.
        options: what the factory is called with, by name.
        shape: of one image, channels first, to try the backbone on.
        normalise: "image": each channel of an image by its own mean and deviation; "imagenet":
            by ImageNet's, for weights that were trained so; "none": images as they are.
        keep_last: keep a last linear layer: it is no classifier's.
        hidden: units of the hidden layer before the heads.
        dropout: share of features dropped before and after the hidden layer.
        positions: heads.
        classes: classes of a head; the last one means "no character".
        length_head: one head more, of the length: see `ReadingHeads`.

    Raises:
        PolyfuseError: a factory that makes no module, a backbone that does not take the images or
            gives no features.

    Example:
        >>> def backbone(width):
        ...     return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> reader = Reader(backbone=backbone, options={"width": 8}, shape=[3, 24, 64])
        >>> reader(torch.zeros(2, 3, 24, 64)).shape
        torch.Size([2, 6, 11])
    """

    def __init__(
        self,
        *,
        backbone: Callable[..., nn.Module],
        options: Mapping[str, Any] | None = None,
        shape: Sequence[int] = (3, 64, 128),
        normalise: Literal["image", "imagenet", "none"] = "image",
        keep_last: bool = False,
        hidden: int = 128,
        dropout: float = 0.2,
        positions: int = 6,
        classes: int = 11,
        length_head: bool = False,
    ) -> None:
        """Build the backbone, find out what it returns, and build the heads."""
        super().__init__()
        shape = _checked(shape, normalise)
        made = backbone(**(options or {}))
        if not isinstance(made, nn.Module):
            raise PolyfuseError(
                f"the backbone's factory returned a {printable(type(made).__name__)}; name a "
                "function that returns a torch module"
            )
        self.normalise, self.length_head = normalise, length_head
        self.backbone, features = _without_classifier(made, shape, keep_last=keep_last)
        self.heads = ReadingHeads(
            features[0],
            places=len(features) == 3,
            positions=positions,
            classes=classes,
            length_head=length_head,
            hidden=hidden,
            dropout=dropout,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map `(n, channels, height, width)` images to `(n, positions, classes)` logits."""
        logits: Tensor = self.heads(_features(self.backbone, self._normalised(images)))
        return logits

    def _normalised(self, images: Tensor) -> Tensor:
        if self.normalise == "none":
            return images
        return centred(images) if self.normalise == "image" else as_imagenet(images)


def _checked(shape: Sequence[int], normalise: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise PolyfuseError(f"shape={list(shape)}; give channels, height and width: [3, 64, 128]")
    channels, height, width = shape
    check_sizes(channels=channels, height=height, width=width)
    if normalise not in ("image", "imagenet", "none"):
        raise PolyfuseError(
            f"normalise={printable(repr(normalise))}; it is one of image, imagenet, none"
        )
    if normalise == "imagenet" and channels != 3:
        raise PolyfuseError(
            f"normalise: imagenet is for red, green and blue, and shape={list(shape)} has "
            f"{channels} channels; type normalise: image"
        )
    return channels, height, width


def _without_classifier(
    backbone: nn.Module, shape: tuple[int, int, int], *, keep_last: bool
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the backbone, its classifier taken off, and the shape of an image's features."""
    features, last = _tried(backbone, shape)
    if last and not keep_last:
        backbone = _replaced(backbone, last)
        features, _ = _tried(backbone, shape)
    return backbone, tuple(features.shape[1:])


def _tried(backbone: nn.Module, shape: tuple[int, int, int]) -> tuple[Tensor, str | None]:
    """Run the backbone on zeros; return what comes out, and of which linear layer, if of one."""
    said: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: said.update({name: out}))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
    ]
    modes = {module: module.training for module in backbone.modules()}
    try:
        with torch.no_grad():
            features = _features(backbone.eval(), torch.zeros(1, *shape))
    except PolyfuseError:
        raise
    except Exception as error:  # somebody else's module may raise anything
        raise PolyfuseError(
            f"the backbone does not take an image of shape {shape}: {printable(error)} "
            f"({type(error).__name__}); give the shape of your images, channels first: "
            "shape: [3, 64, 128]"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return features, next((name for name, out in said.items() if out is features), None)


def _replaced(backbone: nn.Module, name: str) -> nn.Module:
    """Return the backbone with nothing in the place of a layer."""
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, nn.Identity())
    return backbone


def _features(backbone: nn.Module, images: Tensor) -> Tensor:
    features: Any = backbone(images)
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    if not isinstance(features, Tensor) or len(shape) not in (2, 4) or shape[0] != len(images):
        what = f"a tensor of shape {shape}" if shape else f"a {type(features).__name__}"
        raise PolyfuseError(
            f"the backbone returned {printable(what)} of {len(images)} images; a reader takes "
            "features (n, features), or (n, channels, height, width): name a factory of your own "
            "that returns those"
        )
    return features

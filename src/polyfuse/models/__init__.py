"""The small nets that recipes name: readers of characters and their length, a ResNet, an MLP."""

from collections.abc import Callable

from torch import nn

from polyfuse.models.attention import AttentionResNet
from polyfuse.models.characters import CharacterCNN, CourseCNN, LengthCNN
from polyfuse.models.perceptron import mlp
from polyfuse.models.reader import Reader
from polyfuse.models.residual import ResNet18Small

__all__ = [
    "MODELS",
    "AttentionResNet",
    "CharacterCNN",
    "CourseCNN",
    "LengthCNN",
    "Reader",
    "ResNet18Small",
    "mlp",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "character_cnn": CharacterCNN,
    "course_cnn": CourseCNN,
    "attention_resnet": AttentionResNet,
    "length_cnn": LengthCNN,
    "reader": Reader,
    "mlp": mlp,
    "resnet18_small": ResNet18Small,
}

"""What does test-time augmentation by eight views cost, beside ttach?

Four nets on one thread, without gradients, images one at a time and 64 at a time; processor time,
so that other processes matter less. Floor: the model alone on all views, one batch a view, nothing
augmented or merged. The model alone on all views at once tells what one forward can gain at all.
The goals are 1.8 times as fast as ttach at batch 1, never slower at batch 64, and the same numbers.
The peer needs `make peers`; it is pure Python, and runs in this process, on this torch.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from measure import in_turn, report
from peers import site_packages
from plain import Net
from torch import Tensor, nn
from torch.nn import functional

from polyfuse.tta import (
    TTA,
    Add,
    Identity,
    Masks,
    Multiply,
    Numbers,
    Task,
    View,
    dihedral,
    product,
)

REPEATS = 100
OURS, HAND, PEER = "TTA", "a loop by hand", "ttach"
FLOOR, AT_ONCE = "the model alone", "the model alone, all views at once"


class Case(NamedTuple):
    """A net, its images, the task, and the views in both packages."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    task: Task
    views: list[View]
    theirs: Callable[[Any], Any]


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    ttach = peer()
    seconds: dict[str, float] = {}
    facts: dict[str, Any] = {}
    with torch.no_grad():
        for case in cases():
            for batch in (1, 64):
                measured(case, batch, ttach, seconds, facts)
    report("tta", seconds, floor=next(iter(seconds)), repeats=REPEATS, facts=facts)


def measured(
    case: Case, batch: int, ttach: Any, seconds: dict[str, float], facts: dict[str, Any]
) -> None:
    """Measure one net at one batch size; add what was found."""
    torch.manual_seed(0)
    model, images = case.make().eval(), torch.rand(batch, *case.shape)
    name = f"{case.name}, batch {batch}"
    subjects = subjects_of(case, model, images, ttach)
    found = in_turn(subjects, repeats(subjects[HAND]), time.process_time)
    seconds |= {f"{name}: {subject}": value for subject, value in found.items()}
    other = PEER if PEER in found else HAND
    facts[f"{name}: {other}, to TTA"] = round(found[other] / found[OURS], 2)
    apart = (subjects[other]() - subjects[OURS]()).abs().max()
    facts[f"{name}: the model alone, to all views at once"] = round(
        found[FLOOR] / found[AT_ONCE], 2
    )
    facts[f"{name}: largest difference"] = float(f"{apart:.1e}")


def subjects_of(
    case: Case, model: nn.Module, images: Tensor, ttach: Any
) -> dict[str, Callable[[], Tensor]]:
    """Return what is measured, each on the same net and images."""
    ours = TTA(model, case.views, task=case.task)  # the mean of logits, as ttach has it
    together = images.repeat(len(case.views), 1, 1, 1)
    made: dict[str, Callable[[], Tensor]] = {
        FLOOR: lambda: torch.stack([model(images) for _ in case.views]),
        AT_ONCE: partial(model, together),
        HAND: partial(by_hand, model, images, case),
        OURS: partial(ours, images),
    }
    if ttach:
        wrapper = getattr(
            ttach, f"{'Segmentation' if is_masks(case) else 'Classification'}TTAWrapper"
        )
        made[PEER] = partial(wrapper(model, case.theirs(ttach)), images)
    return made


def by_hand(model: nn.Module, images: Tensor, case: Case) -> Tensor:
    """Return the mean over views, as a person writes it."""
    outputs = [model(view.apply(images)) for view in case.views]
    if is_masks(case):
        size = images.shape[-2:]
        outputs = [v.undo_masks(o, size) for v, o in zip(case.views, outputs, strict=True)]
    return torch.stack(outputs).mean(0)


def is_masks(case: Case) -> bool:
    """Tell whether the net answers for every pixel."""
    return isinstance(case.task, Masks)


def repeats(subject: Callable[[], object]) -> int:
    """Return how often to measure: about a second a subject, five times at least."""
    once = in_turn({"": subject}, 1, time.process_time)[""]
    return int(min(REPEATS, max(5, 1 / once)))


def cases() -> list[Case]:
    """Return the nets with their views."""
    brighter = product(
        [Add(0.1), Identity()], [Multiply(f) for f in (0.8, 0.9, 1.1)] + [Identity()]
    )

    def bright(ttach: Any) -> Any:
        return ttach.Compose([ttach.Add([0, 0.1]), ttach.Multiply([1, 0.8, 0.9, 1.1])])

    def square(ttach: Any) -> Any:
        return ttach.aliases.d4_transform()

    return [
        Case("digits CNN 24x24", Net, (1, 24, 24), Numbers(), dihedral(), square),
        Case("street numbers CNN 24x64", characters, (3, 24, 64), Numbers(), brighter, bright),
        Case("ResNet-18 64x64", ResNet, (3, 64, 64), Numbers(), dihedral(), square),
        Case("segmentation 64x64", Segmenter, (3, 64, 64), Masks(numbers=True), dihedral(), square),
    ]


def characters() -> nn.Module:
    """Return the net of the recipe for street numbers."""
    from polyfuse import CharacterCNN

    return CharacterCNN(positions=6, classes=11)


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Build them."""
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.short: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            short = nn.Conv2d(before, after, 1, stride, bias=False)
            self.short = nn.Sequential(short, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        inside = self.norms[1](self.two(functional.relu(self.norms[0](self.one(x)))))
        return functional.relu(inside + self.short(x))


class ResNet(nn.Module):
    """ResNet-18 for 1,000 classes."""

    def __init__(self) -> None:
        """Build stem, four stages and head."""
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        stages = [nn.Sequential(Block(b, a, s), Block(a, a, 1)) for b, a, s in widths]
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(512, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to `(n, 1000)` logits."""
        return self.head(self.stages(self.stem(images)).mean((-1, -2)))


class Segmenter(nn.Module):
    """Three convolutions at half the size and back, for three classes a pixel."""

    def __init__(self, width: int = 16) -> None:
        """Build them."""
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        parts += [nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*parts, nn.ConvTranspose2d(width, 3, 2, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Map images to `(n, 3, height, width)` logits."""
        return self.body(images)


def peer() -> Any:
    """Return ttach out of the peers' environment, or None."""
    folder = site_packages()
    if folder is None:
        print("ttach is left out; `make peers` makes its environment")
        return None
    sys.path.append(str(folder))  # last: torch is the one of this environment
    return import_module("ttach")


if __name__ == "__main__":
    main()

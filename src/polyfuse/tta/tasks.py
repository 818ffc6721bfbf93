"""What models answer, and how a view is undone in it: classes, masks, keypoints, boxes, numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.parameters import one_of
from polyfuse.tta.base import Size, View
from polyfuse.tta.coordinates import (
    FORMS,
    UNITS,
    Pairs,
    check_places,
    corners_of,
    formed,
    mirrored,
    moved_boxes,
    moved_points,
    order,
)


class Task:
    """What a model answers: how a view is undone in it, and how it is merged.

    Attributes:
        combiner: that merges these by default.
        plain: these are numbers, not scores of classes.
        spatial: a view of part of the image answers for that part only.
    """

    combiner: str = "mean_probability"
    plain: bool = False
    spatial: bool = False

    def undo(self, outputs: Any, view: View, size: Size) -> Any:
        """Return outputs as of the image itself, as the combiner wants them: classes last.

        Args:
            outputs: `(n, ...)` of a view of images.
            view: which.
            size: height and width of the images.
        """
        return outputs

    def laid_out(self, merged: Any) -> Any:
        """Return merged outputs in the model's own layout."""
        return merged


@dataclass(frozen=True)
class Classes(Task):
    """Scores of classes `(n, ..., class)`: of the image, or of each of several heads.

    Attributes:
        swap: pairs of classes that a mirror image exchanges, as "left" and "right".

    Example:
        >>> from polyfuse.tta.moves import Flip
        >>> Classes(swap=[(0, 1)]).undo(torch.tensor([[1.0, 2.0, 3.0]]), Flip(), (8, 8)).tolist()
        [[2.0, 1.0, 3.0]]
    """

    swap: Pairs = ()

    def undo(self, outputs: Tensor, view: View, size: Size) -> Tensor:
        """Swap the classes that a mirror image exchanges."""
        if self.swap and mirrored(view.matrix(size)):
            return outputs[..., order(self.swap, outputs.shape[-1], outputs.device)]
        return outputs


@dataclass(frozen=True)
class Masks(Task):
    """Scores of classes a pixel, `(n, class, height, width)`: segmentation, or heatmaps.

    They come back in the images' size. A view of a part answers for the pixels it saw, and crops
    have less say at their edges.

    Attributes:
        swap: pairs of classes, or of heatmaps, that a mirror image exchanges.
        numbers: these are no classes, but numbers a pixel, such as depth: their mean is taken.

    Example:
        >>> from polyfuse.tta.moves import Flip
        >>> Masks().undo(torch.arange(2.0).view(1, 1, 1, 2), Flip(), (1, 2)).flatten().tolist()
        [1.0, 0.0]
    """

    swap: Pairs = ()
    numbers: bool = False
    spatial = True

    @property
    def combiner(self) -> str:  # type: ignore[override]
        """Return the mean of what these are."""
        return "mean_value" if self.numbers else "mean_probability"

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Tell whether these are numbers."""
        return self.numbers

    def undo(self, outputs: Tensor, view: View, size: Size) -> Tensor:
        """Return `(n, height, width, class)` of the image; 0 where the view has no say.

        Raises:
            DataError: no masks in the size of the view.
        """
        if outputs.ndim != 4 or outputs.shape[-2:] != view.size(size):
            raise DataError(
                f"masks of the view {view.name} have shape {tuple(outputs.shape)}; expected "
                f"(n, class, {', '.join(map(str, view.size(size)))}), the size of what the model "
                "was given: let the model resize them"
            )
        if self.swap and mirrored(view.matrix(size)):
            outputs = outputs[:, order(self.swap, outputs.shape[1], outputs.device)]
        return view.undo_masks(outputs, size).movedim(1, -1)

    def laid_out(self, merged: Tensor) -> Tensor:
        """Return `(n, class, height, width)`; decided classes have no class axis."""
        return merged.movedim(-1, 1) if merged.ndim == 4 else merged


@dataclass(frozen=True)
class Keypoints(Task):
    """Points `(n, point, 2)`, or flat `(n, 2 * point)`: x and y in turn.

    Numbers after x and y, `(n, point, 3 or more)`, such as a point's confidence, are merged as they
    are.

    Attributes:
        units: of x and y: "pixel" from the upper left corner of the image, "index" from the middle
            of its first pixel, "relative" to width and height, 0 to 1.
        swap: pairs of points that a mirror image exchanges, such as the left and right eye.

    Example:
        >>> from polyfuse.tta.moves import Flip
        >>> eyes = torch.tensor([[[2.0, 5.0], [6.0, 5.0]]])
        >>> Keypoints(swap=[(0, 1)]).undo(eyes, Flip(), (10, 10)).tolist()
        [[[4.0, 5.0], [8.0, 5.0]]]
    """

    units: str = "pixel"
    swap: Pairs = ()
    combiner = "mean_value"
    plain = True

    def __post_init__(self) -> None:
        """Check the units."""
        one_of("units", self.units, UNITS)

    def undo(self, outputs: Tensor, view: View, size: Size) -> Tensor:
        """Return the points where they are in the image.

        Raises:
            DataError: an odd number of numbers, or none.
        """
        flat = outputs.ndim == 2
        if outputs.ndim < 2 or (outputs.shape[-1] % 2 if flat else outputs.shape[-1] < 2):
            raise DataError(
                f"keypoints have shape {tuple(outputs.shape)}; expected (n, point, 2 or more), or "
                "(n, 2 * point)"
            )
        points = outputs.reshape(len(outputs), outputs.shape[-1] // 2, 2) if flat else outputs
        moved = moved_points(points, view, size, self.units)
        if self.swap and mirrored(view.matrix(size)):
            moved = moved[:, order(self.swap, moved.shape[1], moved.device)]
        return moved.flatten(1) if flat else moved


@dataclass(frozen=True)
class Boxes(Task):
    """A fixed number of boxes `(n, ..., 4 or more)`, the same object in each place.

    Attributes:
        form: "xyxy" (two corners), "xywh" (upper left corner and size) or "cxcywh" (middle and
            size).
        units: as of keypoints.

    Example:
        >>> from polyfuse.tta.moves import Flip
        >>> Boxes().undo(torch.tensor([[1.0, 2.0, 4.0, 6.0]]), Flip(), (8, 8)).tolist()
        [[4.0, 2.0, 7.0, 6.0]]
    """

    form: str = "xyxy"
    units: str = "pixel"
    combiner = "mean_value"
    plain = True

    def __post_init__(self) -> None:
        """Check form and units."""
        one_of("form", self.form, FORMS)
        one_of("units", self.units, UNITS)

    def undo(self, outputs: Tensor, view: View, size: Size) -> Tensor:
        """Return the boxes where they are in the image.

        Raises:
            DataError: no four numbers.
        """
        if outputs.ndim < 2 or outputs.shape[-1] < 4:
            raise DataError(
                f"boxes have shape {tuple(outputs.shape)}; expected (n, ..., 4 or more)"
            )
        return moved_boxes(outputs, view, size, form=self.form, units=self.units)


@dataclass(frozen=True)
class Numbers(Task):
    """Numbers `(n, ...)` of a regression.

    Attributes:
        negate: places along the last axis whose sign a mirror image changes, as of a steering
            angle.

    Example:
        >>> from polyfuse.tta.moves import Flip
        >>> Numbers(negate=[0]).undo(torch.tensor([[1.0, 2.0]]), Flip(), (8, 8)).tolist()
        [[-1.0, 2.0]]
    """

    negate: Sequence[int] = ()
    combiner = "mean_value"
    plain = True

    def undo(self, outputs: Tensor, view: View, size: Size) -> Tensor:
        """Change the signs that a mirror image changes."""
        if not self.negate or not mirrored(view.matrix(size)):
            return outputs
        signs = torch.ones(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
        check_places(self.negate, len(signs))
        signs[list(self.negate)] = -1
        return outputs * signs


@dataclass(frozen=True)
class Detections(Task):
    """Any number of boxes an image: a list of `{"boxes", "scores", "labels"}`, one an image.

    What the views have found is fused, see `polyfuse.tta.box_fusion.fuse_boxes`.

    Attributes:
        form: of boxes, as of `Boxes`.
        units: as of keypoints.
        overlap: boxes of one label that overlap by more are one object.
        least: boxes of lower scores are left out.

    Example:
        >>> from polyfuse.tta.moves import Flip
        >>> one = {"boxes": torch.tensor([[1.0, 2.0, 4.0, 6.0]]), "scores": torch.ones(1)}
        >>> one["labels"] = torch.tensor([3])
        >>> Detections().undo([one], Flip(), (8, 8))[0]["boxes"].tolist()
        [[4.0, 2.0, 7.0, 6.0]]
    """

    form: str = "xyxy"
    units: str = "pixel"
    overlap: float = 0.55
    least: float = 0.0
    plain = True

    def __post_init__(self) -> None:
        """Check form and units."""
        one_of("form", self.form, FORMS)
        one_of("units", self.units, UNITS)

    def undo(self, outputs: Any, view: View, size: Size) -> Any:
        """Return the boxes where they are in the image, as two corners.

        Raises:
            DataError: these are no detections.
        """
        return [self._undone(one, view, size) for one in outputs]

    def _undone(self, one: Any, view: View, size: Size) -> dict[str, Tensor]:
        known = ["boxes", "scores", "labels"]
        if not isinstance(one, Mapping) or sorted(one) != sorted(known):
            got = ", ".join(map(str, one)) if isinstance(one, Mapping) else type(one).__name__
            raise DataError(
                f"detections of an image are {printable(got)}; expected a dict of boxes, scores "
                "and labels: nothing else can be fused, so wrap the model in what leaves it out"
            )
        boxes = moved_boxes(one["boxes"], view, size, form=self.form, units=self.units)
        return {**one, "boxes": corners_of(boxes, self.form)}

    def laid_out(self, merged: Any) -> Any:
        """Return the boxes in their own form again."""
        low_high = [(one["boxes"][..., :2], one["boxes"][..., 2:]) for one in merged]
        return [
            {**one, "boxes": formed(low, high, self.form)}
            for one, (low, high) in zip(merged, low_high, strict=True)
        ]


TASKS: dict[str, Callable[..., Task]] = {
    "classes": Classes,
    "masks": Masks,
    "keypoints": Keypoints,
    "boxes": Boxes,
    "numbers": Numbers,
    "detections": Detections,
}


def task_of(task: Any) -> Task:
    """Return a task by its name, or as it is.

    Raises:
        DataError: there is none of this name.

    Example:
        >>> task_of("masks")
        Masks(swap=(), numbers=False)
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str) or task not in TASKS:
        raise DataError(
            f"unknown task {printable(repr(task), 80)}{did_you_mean(str(task), TASKS)}; use one of "
            f"{', '.join(TASKS)}, or polyfuse.tta.Keypoints(...) and the like"
        )
    return TASKS[task]()

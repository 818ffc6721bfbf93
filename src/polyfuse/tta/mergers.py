"""What collects the views' outputs: large means are added up as they come, the rest is kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from polyfuse.combine import mean_value
from polyfuse.ensemble.base import tracing
from polyfuse.errors import DataError
from polyfuse.tta.box_fusion import Detected, fuse_boxes
from polyfuse.tta.merging import merge_views, says_of
from polyfuse.tta.places import filled
from polyfuse.tta.running import MEANS, Running
from polyfuse.tta.tasks import Detections

_LARGE = 1 << 16  # numbers of a view's output


class Merger(Protocol):
    """Takes each view's output, in any order, and gives one answer."""

    def add(self, number: int, output: Any) -> None:
        """Take what a view says, undone."""

    def answer(self) -> Any:
        """Return what all of them say."""


class Kept:
    """Outputs that are kept until all are there, for any combiner.

    Args:
        names: of the views.
        weights: `(view,)`, `(view, class)`, or None.
        options: of `merge_views`.
    """

    def __init__(self, names: Sequence[str], weights: Any, options: Mapping[str, Any]) -> None:
        """Keep nothing yet."""
        self.names, self.weights, self.options = names, weights, options
        self.outputs: dict[int, Tensor] = {}

    def add(self, number: int, output: Tensor) -> None:
        """Keep what a view says."""
        self.outputs[number] = output

    def answer(self) -> Tensor:
        """Merge the views in their order."""
        each = [self.outputs[number] for number in range(len(self.names))]
        quick = self.options["combiner"] is mean_value and self.weights is None
        if quick and each[0].is_floating_point() and not tracing():
            wide = torch.promote_types(each[0].dtype, torch.float32)
            mean = torch.stack(each).mean(0, dtype=wide)
            if bool(mean.isfinite().all()):
                return mean.to(each[0].dtype)
        merged: Tensor = merge_views(each, self.weights, **self.options)
        return merged


class Added:
    """A mean that is added up as the outputs come."""

    def __init__(
        self, running: Running, names: Sequence[str], says: Sequence[Any], seen: Tensor | None
    ) -> None:
        """Have heard no view yet."""
        self.running, self.names, self.says, self.seen = running, names, says, seen

    def add(self, number: int, output: Tensor) -> None:
        """Add what a view says; what is wrong with it names the view."""
        say, seen = self.says[number], None if self.seen is None else self.seen[number]
        say = say.to(output.device) if isinstance(say, Tensor) else say
        if seen is not None and self.running.space in ("prob", "log_prob"):
            output = filled(output[None], seen[None], self.running.space)[0]
        try:
            self.running.add(output, say, seen)
        except Exception as error:
            error.add_note(f"raised by the view {self.names[number]}")
            raise

    def answer(self) -> Tensor:
        """Return the mean."""
        return self.running.answer()


class Fused:
    """Detections that are kept until all are there, and fused image by image."""

    def __init__(self, task: Detections, count: int, weights: Tensor | None) -> None:
        """Keep nothing yet.

        Raises:
            DataError: weights a view and class.
        """
        if weights is not None and weights.ndim != 1:
            raise DataError("boxes are fused by one weight a view; weights a class have no sense")
        self.task, self.count = task, count
        self.weights = None if weights is None else weights.tolist()
        self.outputs: dict[int, Any] = {}

    def add(self, number: int, output: Any) -> None:
        """Keep what a view has found."""
        self.outputs[number] = output

    def answer(self) -> Any:
        """Fuse the boxes of each image."""
        views = [self.outputs[number] for number in range(self.count)]
        return [self._fused(images) for images in zip(*views, strict=True)]

    def _fused(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        each = [Detected(one["boxes"], one["scores"], one["labels"]) for one in images]
        options = {"overlap": self.task.overlap, "least": self.task.least}
        return fuse_boxes(each, self.weights, **options)._asdict()


def merger_of(
    first: Tensor,
    names: Sequence[str],
    weights: Any,
    *,
    combiner: Callable[..., Any],
    coverage: Tensor | None,
    space: str,
    returns: str,
    options: Mapping[str, Any],
) -> Merger:
    """Return what merges outputs like this one.

    Args:
        first: the output of one view, undone.
        names: of the views.
        weights: `(view,)`, `(view, class)`, or None.
        combiner: a function.
        coverage: `(view, 1, ...)`, or None.
        space: what the numbers are.
        returns: "prob" or "log_prob".
        options: of the combiner.

    Example:
        >>> import torch
        >>> from polyfuse.combine import mean_value
        >>> plain = {"coverage": None, "space": "logit", "returns": "prob", "options": {}}
        >>> merger = merger_of(torch.ones(1), ["a", "b"], [1, 3], combiner=mean_value, **plain)
        >>> merger.add(0, torch.tensor([1.0]))
        >>> merger.add(1, torch.tensor([5.0]))
        >>> merger.answer()
        tensor([4.])
    """
    # To stack what lies crosswise, as masks with classes last do, costs more than to add it up.
    kept = first.numel() < _LARGE and coverage is None and first.is_contiguous()
    if kept or combiner not in MEANS:
        given = {"combiner": combiner, "space": space, "returns": returns, "coverage": coverage}
        return Kept(names, weights, {**given, **options})
    says = says_of(weights, len(names), first.shape[-1], combiner)
    running = Running(combiner, space=space, returns=returns, **options)
    return Added(running, names, says, coverage)

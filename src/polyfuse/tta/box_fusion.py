"""Weighted boxes fusion: one box of those that views, or members, drew around the same object."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyfuse.errors import DataError


class Detected(NamedTuple):
    """Boxes of one image.

    Attributes:
        boxes: `(box, 4)`, two corners each: x, y, x, y.
        scores: `(box,)`, 0 to 1.
        labels: `(box,)` whole numbers.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def fuse_boxes(
    views: Sequence[Detected],
    weights: Sequence[float] | None = None,
    *,
    overlap: float = 0.55,
    least: float = 0.0,
) -> Detected:
    """Fuse the boxes that several views have found in one image (Solovyev et al. 2021).

    By falling score, each box joins the fused box of its label that it overlaps most, if by more
    than `overlap`, else it begins a new one. A fused box lies at the mean of its boxes, weighted by
    score. Its score is the mean over all views of their best box in it, 0 where a view has none: so
    it is never above 1, and what only one view saw is doubted.

    Args:
        views: what each has found.
        weights: `(view,)`, 0 or more; equal where None.
        overlap: area of the intersection over that of the union, 0 to 1.
        least: boxes of lower scores are left out.

    Returns:
        The fused boxes, by falling score.

    Raises:
        DataError: no views; shapes, scores or weights that do not fit.

    Example:
        >>> box, label = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([1])
        >>> one = Detected(box, torch.tensor([0.9]), label)
        >>> other = Detected(box + 1, torch.tensor([0.3]), label)
        >>> fused = fuse_boxes([one, other], overlap=0.3)
        >>> fused.boxes.round(decimals=4).tolist(), round(fused.scores.item(), 4)
        ([[0.25, 0.25, 4.25, 4.25]], 0.6)
    """
    said = _checked(views, weights)
    total = sum(said)
    wide = torch.promote_types(views[0].boxes.dtype, torch.float32)
    boxes = torch.cat([view.boxes for view in views]).to(wide)
    scores = torch.cat([view.scores for view in views]).to(wide)
    labels = torch.cat([view.labels for view in views])
    of = torch.cat([torch.full((len(v.scores),), i) for i, v in enumerate(views)])
    weight = torch.tensor(said, dtype=wide)[of].to(scores.device)
    order = (scores * weight).argsort(descending=True, stable=True)
    order = order[((scores >= least) & (weight > 0))[order]]
    found: list[_Fused] = []
    for label in torch.unique(labels[order]).tolist():
        same = [int(row) for row in order if labels[row] == label]
        groups = _grouped(boxes, scores * weight, same, overlap)
        found += [_fused(group, boxes, scores, of, said, total, label) for group in groups]
    found.sort(key=lambda one: -one.score)
    like = views[0]
    return Detected(
        torch.stack([one.box for one in found]).to(like.boxes) if found else like.boxes[:0],
        torch.tensor([one.score for one in found], dtype=like.scores.dtype).to(like.scores.device),
        torch.tensor([one.label for one in found], dtype=labels.dtype, device=labels.device),
    )


class _Fused(NamedTuple):
    box: Tensor
    score: float
    label: int


def _grouped(boxes: Tensor, weight: Tensor, rows: list[int], overlap: float) -> list[list[int]]:
    """Return the rows of boxes that belong together, by falling weight."""
    groups: list[list[int]] = []
    middles: list[Tensor] = []
    for row in rows:
        over = _overlaps(boxes[row], torch.stack(middles)) if middles else boxes.new_zeros(1)
        best = int(over.argmax())
        if float(over[best]) <= overlap:
            groups.append([row])
            middles.append(boxes[row])
        else:
            groups[best].append(row)
            middles[best] = _middle(boxes, weight, groups[best])
    return groups


def _fused(
    group: list[int],
    boxes: Tensor,
    scores: Tensor,
    of: Tensor,
    said: list[float],
    total: float,
    label: int,
) -> _Fused:
    best: dict[int, float] = {}
    for row in group:
        view = int(of[row])
        best[view] = max(best.get(view, 0.0), float(scores[row]))
    weight = scores * torch.tensor(said, dtype=scores.dtype)[of].to(scores.device)
    score = sum(said[view] * score for view, score in best.items()) / total
    return _Fused(_middle(boxes, weight, group), score, label)


def _middle(boxes: Tensor, weight: Tensor, rows: list[int]) -> Tensor:
    share = weight[rows, None]
    return (boxes[rows] * share).sum(0) / share.sum().clamp(min=1e-12)


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of a box `(4,)` with others `(n, 4)`."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - inside
    return inside / area.clamp(min=1e-12)


def _checked(views: Sequence[Detected], weights: Any) -> list[float]:
    """Return one weight a view.

    Raises:
        DataError: see `fuse_boxes`.
    """
    if not views:
        raise DataError("there are no views whose boxes could be fused")
    for number, view in enumerate(views):
        count = len(view.scores)
        shapes = tuple(view.boxes.shape), tuple(view.scores.shape), tuple(view.labels.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise DataError(
                f"view {number} has boxes {shapes[0]}, scores {shapes[1]}, labels {shapes[2]}; "
                "expected (box, 4), (box,), (box,)"
            )
        if count and not bool(((view.scores >= 0) & (view.scores <= 1)).all()):
            raise DataError(f"view {number} has scores outside 0 to 1, or NaN; give probabilities")
    said = [1.0] * len(views) if weights is None else [float(weight) for weight in weights]
    if len(said) != len(views) or min(said) < 0 or not 0 < sum(said) < float("inf"):
        raise DataError(f"weights {said} do not fit {len(views)} views: 0 or more, and not all 0")
    return said

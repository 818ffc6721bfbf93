"""Merging by place: which views see it, for combiners that know no weight a place."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.combine.base import Array, Pieces, as_tensor
from polyfuse.errors import DataError
from polyfuse.tta.running import BARE


def by_place(combiner: Callable[..., Any], outputs: Any, coverage: Any, options: Any) -> Any:
    """Combine the places that the same views see, set by set.

    Args:
        combiner: any function of `(view, place, class)`.
        outputs: `(view, n, ..., class)`, or a tensor a view.
        coverage: `(view, n or 1, ...)`.
        options: of the combiner; its weights are those of the views that see a place.

    Raises:
        DataError: a place in no view.

    Example:
        >>> from polyfuse.combine import maximum
        >>> says = torch.tensor([[[0.0, 0.0]], [[9.0, 0.0]]])
        >>> by_place(maximum, says, torch.tensor([[1.0], [0.0]]), {}).tolist()
        [[0.5, 0.5]]
    """
    tensor, weights = as_tensor(stacked(outputs)), options.get("weights")
    seen = places_of(coverage, len(tensor), tensor[0]) > 0
    kinds, sets = _patterns(seen.reshape(len(seen), -1))
    kinds = kinds.view(seen.shape[1:]).expand(tensor.shape[1:-1]).flatten()
    flat = tensor.reshape(len(tensor), -1, tensor.shape[-1])
    answer: Any = None
    for kind, views in enumerate(sets):
        here = (kinds == kind).nonzero()[:, 0]
        if not len(views):
            raise DataError(BARE.format(len(here)))
        if weights is not None:
            options = {**options, "weights": plain(weights)[views.cpu().numpy()]}
        part = combiner(flat[views][:, here], **options)
        if answer is None:
            answer = part.new_empty((flat.shape[1], *part.shape[1:]))
        answer[here] = part
    shaped = answer.reshape(*tensor.shape[1:-1], *answer.shape[1:])
    return shaped.numpy() if isinstance(outputs, np.ndarray) else shaped


def filled(outputs: Array, coverage: Any, space: str) -> Array:
    """Return outputs that say nothing of what their view does not see: all classes alike.

    Example:
        >>> filled(torch.zeros(1, 1, 2), torch.zeros(1, 1), "prob").tolist()
        [[[0.5, 0.5]]]
    """
    alike = 1 / outputs[0].shape[-1]
    alike = math.log(alike) if space == "log_prob" else alike
    seen = places_of(coverage, len(outputs), outputs[0]) > 0
    each: Any = [
        torch.where(place[..., None], as_tensor(output), alike)
        for place, output in zip(seen, outputs, strict=True)
    ]
    if isinstance(outputs, Pieces):
        return Pieces(each)
    return torch.stack(each).numpy() if isinstance(outputs, np.ndarray) else torch.stack(each)


def places_of(coverage: Any, count: int, like: Any) -> Tensor:
    """Return the coverage `(view, n or 1, ...)` as a tensor beside the outputs.

    Raises:
        DataError: it is not of this many views, or not of these places.

    Example:
        >>> places_of([[1.0], [0.5]], 2, torch.zeros(1, 3)).shape
        torch.Size([2, 1])
    """
    like = as_tensor(like)
    places = torch.as_tensor(as_tensor(coverage) if hasattr(coverage, "dtype") else coverage)
    wide = torch.promote_types(like.dtype, torch.float32)
    places = places.to(like.device, wide)
    if places.ndim != like.ndim or len(places) != count or not bool((places >= 0).all()):
        raise DataError(
            f"coverage {tuple(places.shape)} does not fit {count} outputs of shape "
            f"{tuple(like.shape)}: give (view, n or 1, ...), without the class axis, 0 or more"
        )
    return places


def stacked(outputs: Any) -> Any:
    """Return a tensor a view as one tensor.

    Example:
        >>> stacked(Pieces([torch.zeros(2), torch.zeros(2)])).shape
        torch.Size([2, 2])
    """
    return torch.stack(list(outputs)) if isinstance(outputs, Pieces) else outputs


def plain(weights: Any) -> Any:
    """Return weights as a float64 array.

    Example:
        >>> plain(torch.ones(2))
        array([1., 1.])
    """
    return np.asarray(
        weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights, np.float64
    )


def _patterns(seen: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return which set of views sees each place `(place,)`, and these sets."""
    kinds = torch.zeros(seen.shape[1], dtype=torch.int64, device=seen.device)
    for view in seen:  # at most twice as many kinds as before, numbered anew
        kinds = torch.unique(2 * kinds + view, return_inverse=True)[1]
    count = int(kinds.max()) + 1
    first = torch.stack([(kinds == kind).nonzero()[0, 0] for kind in range(count)])
    return kinds, [seen[:, place].nonzero()[:, 0] for place in first]

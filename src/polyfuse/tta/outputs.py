"""What models return for several views at once: taken apart, put together, its tensors by key."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from polyfuse.errors import DataError, printable

Key = str | int | None  # of a part of an output; None of an output that is a tensor itself


def taken_apart(outputs: Any, counts: Sequence[int]) -> list[Any]:
    """Return an output for many images as one for each of these counts of images.

    Raises:
        DataError: there is something in it that is not one row an image.

    Example:
        >>> [tuple(part["a"].shape) for part in taken_apart({"a": torch.zeros(5, 2)}, [2, 3])]
        [(2, 2), (3, 2)]
    """
    if isinstance(outputs, Tensor):
        if not outputs.ndim or len(outputs) != sum(counts):
            raise DataError(
                f"the model returned a tensor of shape {tuple(outputs.shape)} for {sum(counts)} "
                "images; it must have one row an image"
            )
        return list(torch.split_with_sizes(outputs, list(counts)))
    if is_detections(outputs):
        ends = [0, *accumulate(counts)]
        return [outputs[start:end] for start, end in pairwise(ends)]
    keyed = [(key, taken_apart(part, counts)) for key, part in parts_of(outputs)]
    return [rebuilt(outputs, {k: each[i] for k, each in keyed}) for i in range(len(counts))]


def put_together(outputs: Sequence[Any]) -> Any:
    """Return outputs for some images after another as one for all of them.

    Example:
        >>> put_together([(torch.zeros(2, 3),), (torch.ones(1, 3),)])[0].shape
        torch.Size([3, 3])
    """
    if len(outputs) == 1:
        return outputs[0]
    if isinstance(outputs[0], Tensor):
        return torch.cat(list(outputs))
    if is_detections(outputs[0]):
        return [image for piece in outputs for image in piece]
    each = [dict(parts_of(one)) for one in outputs]
    return rebuilt(outputs[0], {key: put_together([one[key] for one in each]) for key in each[0]})


def is_detections(outputs: Any) -> bool:
    """Tell whether an output is a list of dicts, one an image, as detectors have it.

    Example:
        >>> is_detections([{"boxes": torch.zeros(0, 4)}]), is_detections([torch.zeros(1)])
        (True, False)
    """
    return isinstance(outputs, list) and bool(outputs) and isinstance(outputs[0], Mapping)


def parts_of(outputs: Any) -> list[tuple[Key, Any]]:
    """Return the parts of an output with their keys; what is None is left out.

    Raises:
        DataError: neither a tensor nor a dict, tuple or list of them.

    Example:
        >>> parts_of({"mask": torch.zeros(1), "loss": None})
        [('mask', tensor([0.]))]
    """
    if isinstance(outputs, Tensor) or is_detections(outputs):
        return [(None, outputs)]
    if isinstance(outputs, Mapping):
        return [(key, part) for key, part in outputs.items() if part is not None]
    if isinstance(outputs, tuple | list):
        return [(key, part) for key, part in enumerate(outputs) if part is not None]
    raise DataError(
        f"the model returned {printable(type(outputs).__name__)}; expected a tensor, or a dict, "
        "tuple or list of tensors: wrap the model in a function that returns one"
    )


def rebuilt(outputs: Any, parts: Mapping[Any, Any]) -> Any:
    """Return parts in the form of an output: a tensor, a dict or a tuple.

    Example:
        >>> rebuilt({"a": torch.zeros(1)}, {"a": 1})
        {'a': 1}
    """
    if isinstance(outputs, Tensor) or is_detections(outputs):
        return parts[None]
    return dict(parts) if isinstance(outputs, Mapping) else tuple(parts.values())

"""All views in as few forwards as there is memory for: the same numbers as one view at a time."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from polyfuse.ensemble.base import tracing
from polyfuse.tta.base import View
from polyfuse.tta.outputs import put_together, taken_apart

ELSEWHERE = 2 << 30  # bytes of activations at once, on an accelerator
# On a CPU more images at once are faster up to about 4 MB an activation, which caches hold, and
# from 16 MB on far slower: the system then clears every page of each anew. benchmarks/tta.py.
NEAR, FAR, FEW = 12 << 20, 48 << 20, 8
_LIVE = 3  # largest activations that are alive at once: what goes in, what comes out, a shortcut


class Limits(NamedTuple):
    """How many images run at once.

    Attributes:
        join: views are put together up to so many.
        split: a view's images are taken apart from so many on.
    """

    join: int
    split: int


class Batches:
    """Run a model on views of images, several views a forward.

    Args:
        model: maps images, and perhaps more, to outputs with one row an image.
        rows: at most so many images a forward; by default as many as the memory is for.
        memory: bytes of activations that are alive at once. By default 2 GB on an accelerator; on a
            CPU as few as stay near its caches, where more at once is slower.
    """

    def __init__(self, model: Callable[..., Any], rows: int | None, memory: int | None) -> None:
        """Have measured no kind of images yet."""
        self.model, self.rows, self.memory = model, rows, memory
        self._bytes: dict[Hashable, int] = {}
        modules = model.modules() if isinstance(model, nn.Module) else ()
        self._norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._NormBase)]

    def outputs(
        self, views: Sequence[View], images: Tensor, more: Any = (), keywords: Any = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield the number of each view and the model's outputs for it, as they come."""
        keywords = keywords or {}
        if self.mixes_rows():
            for number, view in enumerate(views):
                yield number, self.model(view.apply(images), *more, **keywords)
            return
        limits = self.limits(images, more, keywords)
        waiting: dict[torch.Size, dict[int, Tensor]] = {}
        for number, view in enumerate(views):
            augmented = view.apply(images)
            group = waiting.setdefault(augmented.shape[1:], {})
            group[number] = augmented
            if (len(group) + 1) * len(images) > limits.join:
                group = waiting.pop(augmented.shape[1:])
                yield from self._run(group, limits.split, more, keywords)
        for group in waiting.values():
            yield from self._run(group, limits.split, more, keywords)

    def limits(self, images: Tensor, more: Any = (), keywords: Any = None) -> Limits:
        """Return how many images a forward takes: as asked for, or as many as fit the memory.

        The first time for a kind of image, the model runs on one image, and the bytes of what it
        computes are counted.
        """
        if self.rows is not None:
            return Limits(self.rows, self.rows)
        if tracing() or not len(images):
            return Limits(1 << 62, 1 << 62)
        kind = images.shape[1:], images.dtype, images.device.type, torch.is_grad_enabled()
        if kind not in self._bytes:
            self._bytes[kind] = self._counted(images, more, keywords or {})
        each = self._bytes[kind]
        if self.memory or images.device.type != "cpu":
            most = max(1, (self.memory or ELSEWHERE) // each)
            return Limits(most, most)
        split = max(1, FAR // each)
        return Limits(max(NEAR // each, min(FEW, split)), split)

    def mixes_rows(self) -> bool:
        """Tell whether images of one forward depend on each other: by statistics of the batch."""
        return any(norm.training or norm.running_mean is None for norm in self._norms)

    def _run(
        self, group: dict[int, Tensor], limit: int, more: Any, keywords: Any
    ) -> Iterator[tuple[int, Any]]:
        """Run views of one shape together, in pieces of at most so many images."""
        tensors = list(group.values())
        count, total = len(tensors[0]), len(tensors[0]) * len(tensors)
        limit = math.ceil(total / max(1, math.ceil(total / limit)))  # pieces of one size
        together = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        pieces = []
        for start in range(0, max(1, total), max(1, limit)):
            rest = [_rows(one, count, start, limit, total) for one in more]
            named = {k: _rows(one, count, start, limit, total) for k, one in keywords.items()}
            part = together if limit >= total else together[start : start + limit]
            pieces.append(self.model(part, *rest, **named))
        outputs = put_together(pieces)
        return zip(group, taken_apart(outputs, [count] * len(tensors)), strict=True)

    def _counted(self, images: Tensor, more: Any, keywords: Any) -> int:
        """Return the bytes of activations of one image, at least those of the image."""
        count, watch = len(images), _Watch()
        least = images[:1].nbytes
        one = [_rows(each, count, 0, 1, count) for each in more]
        named = {key: _rows(each, count, 0, 1, count) for key, each in keywords.items()}
        try:
            with watch:
                self.model(images[:1], *one, **named)
        except Exception:  # a compiled model may not be watched; what is wrong shows when it runs
            return 64 * least
        live = watch.total if torch.is_grad_enabled() else _LIVE * watch.largest
        return max(1, least, live)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of what operators return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for one in result if isinstance(result, tuple | list) else [result]:
            # A view of what is there already, such as a transposed weight, takes no memory.
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, one.nbytes)
                self.total += one.nbytes
        return result


def _rows(value: Any, count: int, start: int, limit: int, total: int) -> Any:
    """Return these rows of a tensor with one row an image, repeated for each view."""
    if not isinstance(value, Tensor) or not value.ndim or len(value) != count:
        return value
    index = torch.arange(start, min(start + limit, total), device=value.device) % max(1, count)
    return value if len(index) == count and start == 0 else value[index]

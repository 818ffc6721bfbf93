"""TTA: a model and views of its inputs as one `nn.Module`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyfuse.ensemble.base import follow
from polyfuse.errors import DataError, printable
from polyfuse.tta.base import Size, View, as_views, coverage, sized
from polyfuse.tta.batching import Batches
from polyfuse.tta.mergers import Fused, Merger, merger_of
from polyfuse.tta.merging import check_options, combiner_of
from polyfuse.tta.outputs import Key, parts_of, rebuilt
from polyfuse.tta.tasks import Detections, Task, task_of

_SIZES = 8  # of images whose coverage is kept


class TTA(nn.Module):
    """A model that looks at several views of its input, and answers once.

    Each view is undone in what the model says before the views are merged. All views of a batch
    run in one forward while there is memory for it; the numbers are those of a loop. The model runs
    in eval mode, and gets its own back.

    Args:
        model: a module, or function, that maps images `(n, channels, height, width)` to a tensor
            with one row an image, or to a dict, tuple or list of such.
        views: what it is to see; the image itself is `Identity()`.
        task: what the outputs are: a name in `TASKS`, or a task with options, such as
            `Keypoints(swap=...)`. Of a dict or tuple, one task for all parts, or one a part by its
            key; None leaves a part out.
        merge: a combiner, or its name in `COMBINERS`; by default the task's: mean probability of
            scores, mean of numbers. Or one a part by its key.
        weights: `(view,)`, 0 or more, or `(view, class)`; equal where None. A view without a
            weight is not run.
        space: what scores are: "logit", "prob" or "log_prob".
        returns: "prob", or "log_prob", which is as good as logits to whatever takes those.
        rows: at most so many images a forward; by default as many as the memory is for.
        memory: bytes of activations of a forward; 2 GB by default. On a CPU by default as few as
            stay near its caches.
        **options: of the combiner, as `exclusive=False` for labels that do not exclude each other.

    Raises:
        DataError: no views, an unknown task or combiner, weights that do not fit.

    Example:
        >>> from polyfuse.tta import Flip, Identity
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> TTA(net, [Identity(), Flip()])(torch.zeros(5, 3, 4, 4)).shape
        torch.Size([5, 10])
    """

    weights: Tensor | None

    def __init__(
        self,
        model: Callable[..., Any],
        views: Any,
        *,
        task: Any = "classes",
        merge: Any = None,
        weights: Any = None,
        space: str = "logit",
        returns: str = "prob",
        rows: int | None = None,
        memory: int | None = None,
        **options: Any,
    ) -> None:
        """Check what can be told without running the model."""
        super().__init__()
        if not callable(model):
            raise DataError(f"expected a model, got {printable(repr(model), 80)}")
        self.model, self.views = model, as_views(views)
        self.names = [view.name for view in self.views]
        self.task = {k: _task(t) for k, t in _keyed(task).items()}
        self.merge = {k: None if m is None else combiner_of(m) for k, m in _keyed(merge).items()}
        self.space, self.returns, self.options = space, returns, options
        for key, one in self.task.items():
            if one is not None and not one.plain:
                check_options(
                    self._of(self.merge, key, "merge") or combiner_of(one.combiner), options
                )
        self.register_buffer("weights", _weights(weights, len(self.views)))
        self.batches = Batches(model, _positive("rows", rows), _positive("memory", memory))
        self._coverage: dict[Size, Tensor | None] = {}

    def forward(self, images: Tensor, *more: Any, **keywords: Any) -> Any:
        """Return one answer for all views, in the form of the model's own outputs.

        Args:
            images: `(n, channels, height, width)`.
            *more: of the model; a tensor with one row an image goes with its image.
            **keywords: of the model, likewise.

        Raises:
            DataError: outputs that do not fit the task, a view that cannot be undone.
        """
        numbers, weights = self._heard()
        mergers: dict[Key, Merger] = {}
        outputs = None
        for number, outputs in self._outputs(numbers, images, more, keywords):
            for key, task, part in self._parts(outputs):
                undone = self._undone(task, part, self.views[numbers[number]], sized(images))
                if key not in mergers:
                    mergers[key] = self._merger(key, undone, numbers, weights, sized(images))
                mergers[key].add(number, undone)
        tasks = {key: task for key, task, _ in self._parts(outputs)}
        answers = {key: tasks[key].laid_out(merger.answer()) for key, merger in mergers.items()}
        return rebuilt(outputs, answers)

    def outputs(self, images: Tensor, *more: Any, **keywords: Any) -> Any:
        """Return what the model says of every view, undone but not merged.

        Returns:
            `(view, n, ..., class)`, in a dict or tuple where the model returns one. Masks are
            `(view, n, height, width, class)`, 0 where a view has no say.
        """
        found: dict[Key, dict[int, Any]] = {}
        outputs: Any = None
        for number, outputs in self._outputs(range(len(self.views)), images, more, keywords):
            for key, task, part in self._parts(outputs):
                undone = self._undone(task, part, self.views[number], sized(images))
                found.setdefault(key, {})[number] = undone
        each = {key: _stacked([of[n] for n in sorted(of)]) for key, of in found.items()}
        return rebuilt(outputs, each)

    def extra_repr(self) -> str:
        """Return the views with their weights."""
        if self.weights is None or self.weights.ndim > 1:
            return f"views={self.names}"
        return f"views={dict(zip(self.names, self.weights.tolist(), strict=True))}"

    def _outputs(
        self, numbers: Sequence[int], images: Tensor, more: Any, keywords: Any
    ) -> Iterator[tuple[int, Any]]:
        """Yield each view's place among these, and the model's outputs for it."""
        sized(images)
        with _as_in_test(self.model):
            views = [self.views[number] for number in numbers]
            yield from self.batches.outputs(views, images, more, keywords)

    def _undone(self, task: Task, part: Tensor, view: View, size: Size) -> Any:
        """Return part of an output as of the image itself."""
        undone = task.undo(part, view, size)
        if task.spatial and self.space == "log_prob" and not task.plain:
            return undone.log_softmax(-1)  # after a resize they do not sum to 1
        return undone

    def _parts(self, outputs: Any) -> list[tuple[Key, Task, Tensor]]:
        """Return the parts of an output that have a task."""
        each = [(key, self._of(self.task, key, "task"), part) for key, part in parts_of(outputs)]
        return [one for one in each if one[1] is not None]

    def _merger(
        self, key: Key, first: Tensor, numbers: Sequence[int], weights: Any, size: Size
    ) -> Merger:
        """Return what merges one part of the outputs."""
        task: Task = self._of(self.task, key, "task")
        if isinstance(task, Detections):
            return Fused(task, len(numbers), weights)
        seen = self._seen(size, first) if task.spatial else None
        return merger_of(
            first,
            [self.names[number] for number in numbers],
            weights,
            combiner=self._of(self.merge, key, "merge") or combiner_of(task.combiner),
            coverage=None if seen is None else seen[list(numbers)],
            space=self.space,
            returns="prob" if task.plain else self.returns,
            options={} if task.plain else self.options,
        )

    def _of(self, keyed: Mapping[Any, Any], key: Key, what: str) -> Any:
        """Return what is meant for a part of the outputs.

        Raises:
            DataError: nothing is.
        """
        if None in keyed:
            return keyed[None]
        if key not in keyed:
            raise DataError(
                f"the model returns {printable(repr(key))}, and {what} names "
                f"{', '.join(map(repr, keyed))}; name it, with None to leave it out"
            )
        return keyed[key]

    def _seen(self, size: Size, like: Tensor) -> Tensor | None:
        """Return the say of each view in each pixel, `(view, 1, height, width)`."""
        if size not in self._coverage:
            if len(self._coverage) >= _SIZES:
                self._coverage.clear()
            each = [coverage(view, size) for view in self.views]
            whole = all(one is None for one in each)
            says = [torch.ones(size) if one is None else one for one in each]
            self._coverage[size] = None if whole else torch.stack(says)[:, None]
        seen = self._coverage[size]
        return None if seen is None else seen.to(like.device)

    def _heard(self) -> tuple[Any, Tensor | None]:
        """Return the numbers of the views that have a weight, and their weights."""
        if self.weights is None:
            return range(len(self.views)), None
        numbers = self.weights.reshape(len(self.views), -1).any(1).nonzero()[:, 0].tolist()
        return numbers, self.weights[numbers]

    def _apply(self, fn: Any, recurse: bool = True) -> "TTA":
        """Move, and keep the weights as precise as they are."""
        kept = self.weights
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weights = follow(kept, fn)
        return self


def _stacked(views: list[Any]) -> Any:
    """Return the outputs of all views as one tensor; detections as a list of lists."""
    return torch.stack(views) if isinstance(views[0], Tensor) else views


@contextmanager
def _as_in_test(model: Any) -> Iterator[None]:
    """Eval mode while the model runs; every module gets its own mode back."""
    if not getattr(model, "training", False):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _keyed(given: Any) -> dict[Any, Any]:
    """Return what is given for each part of the outputs, by key; under None what is for all."""
    if isinstance(given, Mapping):
        return dict(given)
    return dict(enumerate(given)) if isinstance(given, list | tuple) else {None: given}


def _task(task: Any) -> Task | None:
    return None if task is None else task_of(task)


def _positive(name: str, number: int | None) -> int | None:
    if number is not None and number < 1:
        raise DataError(f"{name} is {number}; it must be 1 or more")
    return number


def _weights(weights: Any, count: int) -> Tensor | None:
    """Return weights as a float64 tensor.

    Raises:
        DataError: of another number, negative, not finite, or none above 0.
    """
    if weights is None:
        return None
    plain = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights
    numbers = np.asarray(plain, np.float64)
    fits = numbers.ndim in (1, 2) and len(numbers) == count and np.isfinite(numbers).all()
    if not fits or numbers.min() < 0 or not numbers.sum(0).all():
        raise DataError(
            f"weights of shape {numbers.shape} do not fit {count} views: give (view,) or (view, "
            "class), finite, 0 or more, and not all 0"
        )
    return torch.from_numpy(numbers.copy())

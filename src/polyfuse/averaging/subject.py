"""The model that is averaged: its tensors, where their averages lie, and how values are read."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polyfuse.averaging.finite import Lookout
from polyfuse.averaging.offload import Mirror
from polyfuse.averaging.shadows import Feed, lay_out, local
from polyfuse.averaging.structure import Watch, differences, reshard, shapes_of, tensors_of
from polyfuse.errors import CheckpointError


class Subject:
    """A model and all that reads it; made anew when the model's tensors are no longer the same.

    Args:
        model: unwrapped.
        use_buffers: average the floating buffers, too.
        device: of the averages; by default each is where its tensor is.
        dtype: of the averages; by default that of the tensor, but fp32 at least.
        looks: in which all weights are looked at for NaN.
        known: shapes that its tensors must have, where averages of them exist already.

    Raises:
        CheckpointError: tensors of other names or shapes, or without values.

    Attributes:
        tensors: the model's, by name.
        shapes: of those that are averaged, as they were at first.
        slots: where their averages lie.
        sources: the values to average, by name: the model's, or their copies on the CPU.
        feed: reads the sources.
        own: reads, and in a swap writes, the model's.
        mirror: of a model that is averaged on another device.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        use_buffers: bool,
        device: torch.device | None,
        dtype: torch.dtype | None,
        looks: int,
        known: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Look where everything is."""
        reshard(model)
        self.model = model
        self.tensors = tensors_of(model, use_buffers=use_buffers)
        self.shapes = shapes_of(self.tensors.averaged)
        _check_same(known, self.shapes)
        own = self.locals()
        self.mirror = Mirror(own) if is_far(own, device) else None
        self.sources = self.mirror.tensors if self.mirror else own
        self.slots = lay_out(self.sources, device, dtype)
        self.own = Feed(own, self.slots)
        self.feed = Feed(self.sources, self.slots) if self.mirror else self.own
        self.lookout = Lookout(self.sources, looks)
        self._watch = Watch(model, self.tensors.averaged.values(), buffers=use_buffers)

    def is_same(self) -> bool:
        """Tell whether the model still consists of the very same tensors."""
        return self._watch.unchanged()

    def locals(self) -> dict[str, Tensor]:
        """Return the values that are averaged, where the model has them."""
        return {name: local(tensor) for name, tensor in self.tensors.averaged.items()}

    def buffers(self) -> dict[str, Tensor]:
        """Return the model's buffers as they are now, averaged or not."""
        found = tensors_of(self.model, use_buffers=True)
        both = {**found.averaged, **found.followed}
        return {k: t.detach() for k, t in both.items() if not isinstance(t, nn.Parameter)}


def is_far(tensors: Mapping[str, Tensor], device: torch.device | None) -> bool:
    """Tell whether tensors are to be averaged on the CPU and are elsewhere.

    Example:
        >>> is_far({"w": torch.ones(1)}, torch.device("cpu"))
        False
    """
    on_cpu = device is not None and device.type == "cpu"
    return on_cpu and any(tensor.device.type != "cpu" for tensor in tensors.values())


def _check_same(
    known: Mapping[str, Sequence[int]] | None, found: Mapping[str, Sequence[int]]
) -> None:
    faults = differences(known, found, ("the averages", "the model")) if known else []
    if faults:
        raise CheckpointError(
            f"the model is not the one that is averaged: {'; '.join(faults)}; "
            "make new Averages of it"
        )

"""Puts an average into its model and takes it out again, in place."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.averaging.structure import reshard
from polyfuse.averaging.subject import Subject
from polyfuse.averaging.tracks import Track
from polyfuse.errors import PolyfuseError


@torch.no_grad()
def put_in(track: Track, subject: Subject) -> contextlib.ExitStack:
    """Put an average into the model; return what gives the model its own weights back.

    Weights and average trade places; where they cannot, the model's weights are copied.
    """
    undo = contextlib.ExitStack()
    undo.callback(reshard, subject.model)
    if not track.updates:  # it is the model as it is
        return undo
    own = subject.locals()
    if track.is_plain and subject.own.same_dtype():
        undo.callback(subject.own.swap, track.shadow, back=True)
        subject.own.swap(track.shadow)
    else:
        undo.callback(put, copies(own), own)
        put({name: track.value(name) for name in own}, own)
    if track.statistics:
        buffers = subject.buffers()
        norms = {name: buffers[name] for name in track.statistics}
        undo.callback(put, copies(norms), norms)
        put(track.statistics, norms)
    reshard(subject.model)
    return undo


@contextlib.contextmanager
def unsaved(model: nn.Module) -> Iterator[None]:
    """Let a model refuse to give its state dict, inside the block."""
    hook = model.register_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hook.remove()


def _refuse(model: nn.Module, *_: Any) -> None:
    raise PolyfuseError(
        "the model holds an average just now, and would save it as its own weights; save after the "
        "`with` block, averages.average(...) for the average, or say applied(..., saving=True)"
    )


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors.

    Example:
        >>> copies({"a": torch.ones(1)})
        {'a': tensor([1.])}
    """
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Write values into tensors of the same names.

    Example:
        >>> target = {"a": torch.zeros(1)}
        >>> put({"a": torch.ones(1)}, target)
        >>> target
        {'a': tensor([1.])}
    """
    for name, tensor in tensors.items():
        tensor.copy_(values[name])

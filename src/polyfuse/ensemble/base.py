"""What the parts of an ensemble share: a call, how members are named, whether a graph is traced."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """The arguments that every member gets."""

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]

    def of(self, function: Any) -> Any:
        """Return what a member, or any function, answers."""
        return function(*self.inputs, **self.keywords)


def name_of(number: int, member: nn.Module) -> str:
    """Return how messages call a member: by its number and its class.

    Example:
        >>> name_of(2, nn.Linear(1, 1))
        'member 2 (Linear)'
    """
    return f"member {number} ({type(member).__name__})"


def tracing() -> bool:
    """Tell whether torch is recording a graph: nothing may depend on the numbers then."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def follow(tensor: Tensor | None, fn: Any) -> Tensor | None:
    """Return a tensor on the device that `fn` of `nn.Module._apply` moves to, in its own dtype."""
    if tensor is None:
        return None
    device = fn(tensor.float()).device
    return tensor.to(device, torch.float32 if device.type == "mps" else tensor.dtype)

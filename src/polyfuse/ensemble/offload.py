"""Members that rest on one device and come to another one at a time, for as long as they work."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def visiting(member: nn.Module, device: torch.device, home: torch.device) -> Iterator[None]:
    """Bring a member to a device, and put the very tensors back that it came from.

    Parameters are not copied back: nothing trains here. Buffers are, as a module may change them.

    Example:
        >>> net, cpu = nn.Linear(2, 1), torch.device("cpu")
        >>> with visiting(net, cpu, cpu):
        ...     net(torch.zeros(1, 2)).shape
        torch.Size([1, 1])
    """
    if same_place(device, home):
        yield
        return
    resting = {id(p): p.data for p in member.parameters()}
    member.to(device)
    try:
        yield
    finally:

        def back(tensor: Tensor) -> Tensor:
            return resting[id(tensor)] if id(tensor) in resting else tensor.to(home)

        member._apply(back)  # type: ignore[no-untyped-call]


def same_place(one: torch.device, other: torch.device) -> bool:
    """Tell whether two devices are one; `cuda` is any of them.

    Example:
        >>> same_place(torch.device("cuda"), torch.device("cuda:0"))
        True
    """
    anywhere = one.index is None or other.index is None
    return one.type == other.type and (anywhere or one.index == other.index)


def device_in(value: Any) -> torch.device | None:
    """Return the device of the first tensor in a batch.

    Example:
        >>> device_in({"ids": [torch.zeros(1)]})
        device(type='cpu')
    """
    if isinstance(value, Tensor):
        return value.device
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list | tuple):
        return None
    return next((found for item in items if (found := device_in(item)) is not None), None)


def moved(value: Any, device: torch.device | None) -> Any:
    """Return a batch with every tensor in it on this device.

    Example:
        >>> moved((torch.zeros(1), "text"), torch.device("meta"))
        (tensor(..., device='meta', size=(1,)), 'text')
    """
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value

"""A copy of a model's tensors on the CPU, brought up to date without waiting for the GPU."""

from collections.abc import Mapping

import torch
from torch import Tensor

from polyfuse.averaging.shadows import is_dense


class Mirror:
    """Tensors of an accelerator in pinned memory.

    The copies run on a stream of their own. Work that is queued later on the accelerator, the next
    optimiser step above all, waits for them there; the host does not.

    Args:
        tensors: local ones, by name.

    Example:
        >>> mirror = Mirror({"w": torch.ones(2)})
        >>> mirror.start()
        >>> mirror.wait()
        >>> mirror.tensors["w"]
        tensor([1., 1.])
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate; nothing is copied yet."""
        self._originals = dict(tensors)
        self.tensors = {name: _like(tensor) for name, tensor in tensors.items()}
        devices = {t.device for t in tensors.values() if t.is_cuda}
        self._streams = {d: torch.cuda.Stream(d) for d in devices}  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Queue the copies."""
        for device, stream in self._streams.items():
            stream.wait_stream(torch.cuda.current_stream(device))
        for name, tensor in self._originals.items():
            with torch.cuda.stream(self._streams.get(tensor.device)):
                self.tensors[name].copy_(tensor, non_blocking=True)
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)

    def wait(self) -> None:
        """Return when the copies are there."""
        for stream in self._streams.values():
            stream.synchronize()


def _like(tensor: Tensor) -> Tensor:
    kept = torch.preserve_format if is_dense(tensor) else torch.contiguous_format
    pinned = tensor.is_cuda
    return torch.empty_like(tensor, device="cpu", memory_format=kept, pin_memory=pinned)

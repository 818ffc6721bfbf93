"""Looks for NaN and infinity in a model's weights, a part of them at each update.

To look at all weights takes a third to a half of the time that averaging them takes. So each look
is at the next part of them; after so many looks every weight was seen. A loss that became NaN
spreads over all weights in one step, and is found at the first look.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from polyfuse.averaging.shadows import FAR_CHUNK, is_dense, wide

# Elements of a look, at most: small, so that looks are of one size.
PIECE = 1 << 17
# And at least: to look at less is hardly faster.
LEAST = 1 << 15


class Lookout:
    """Looks at tensors, a part at a time, and at all of them as long as something was found.

    Args:
        tensors: local ones, by name.
        looks: after which all of them were seen, at the latest.

    Example:
        >>> lookout = Lookout({"a": torch.zeros(LEAST), "b": torch.tensor([torch.nan])}, looks=2)
        >>> [lookout.all_well() for _ in range(3)]
        [True, False, False]
    """

    def __init__(self, tensors: Mapping[str, Tensor], looks: int) -> None:
        """Cut the tensors into so many parts, of one size as far as they allow."""
        self._tensors = tensors
        self._parts: list[list[Tensor]] = [[]]
        self._next = 0
        self._alarmed = False
        self._pending: list[_Look] = []
        total = sum(tensor.numel() for tensor in tensors.values())
        size = max(total / looks, LEAST)
        seen = 0
        for piece in pieces(tensors.values()):
            if seen >= size * len(self._parts):
                self._parts.append([])
            self._parts[-1].append(piece)
            seen += piece.numel()

    def all_well(self) -> bool:
        """Look once more; tell whether no look so far has found anything.

        On a GPU a look ends later: what it finds is told at one of the next.
        """
        if self._alarmed:
            self._alarmed = bool(self.found())
            return not self._alarmed
        self._pending.append(_Look(self._parts[self._next]))
        self._next = (self._next + 1) % len(self._parts)
        while self._pending and self._pending[0].is_done():
            if not self._pending.pop(0).is_finite():
                self._alarmed = bool(self.found())  # a sum may overflow without it
        return not self._alarmed

    def found(self) -> list[str]:
        """Return the names of the tensors that hold NaN or infinity."""
        return not_finite(self._tensors)


class _Look:
    """A look at tensors, whose result may be on its way from a GPU."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if not tensors or not tensors[0].is_cuda:
            self._finite: Tensor | bool = sums_are_finite(tensors)
            return
        finite = torch.stack([_wide(t).sum().to(tensors[0].device) for t in tensors])
        self._finite = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._finite.copy_(finite.isfinite().all(), non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(tensors[0].device))

    def is_done(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def is_finite(self) -> bool:
        return bool(self._finite)


def pieces(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """Yield tensors, large ones cut, so that no look at one needs much memory.

    Example:
        >>> [piece.numel() for piece in pieces([torch.zeros(3), torch.zeros(PIECE + 1)])]
        [3, 131072, 1]
    """
    for tensor in tensors:
        if is_dense(tensor) and tensor.numel():
            size = PIECE if tensor.device.type == "cpu" else FAR_CHUNK
            yield from torch.split(tensor.as_strided((tensor.numel(),), (1,)), size)
        elif tensor.numel():
            yield tensor


def sums_are_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether the sum of each tensor is finite.

    It is not where a value is not; it may also not be where values are huge.

    Example:
        >>> sums_are_finite([torch.ones(2), torch.tensor([torch.inf])])
        False
    """
    return all(math.isfinite(_wide(tensor).sum()) for tensor in tensors)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity.

    Example:
        >>> not_finite({"a": torch.ones(2), "b": torch.tensor([torch.inf])})
        ['b']
    """
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    cut = list(pieces([tensor]))
    return sums_are_finite(cut) or all(bool(_wide(piece).isfinite().all()) for piece in cut)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide(tensor.dtype))

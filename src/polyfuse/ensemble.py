"""Ensemble: members and a combiner as one `nn.Module`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.combine import mean_probability
from polyfuse.errors import PolyfuseError


class Ensemble(nn.Module):
    """Several members that answer as one.

    Args:
        members: modules that map the same inputs to logits `(n, ..., classes)`; they may differ.
        combiner: maps `(member, n, ..., classes)` logits to the answer; see `COMBINERS`.

    Raises:
        PolyfuseError: no members.

    Example:
        >>> two = Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)])
        >>> two(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, members: Iterable[nn.Module], combiner: Callable[..., Any] = mean_probability
    ) -> None:
        """Keep the members as submodules, so that `.to()` and `.eval()` reach them."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.combiner = combiner
        if not self.members:
            raise PolyfuseError("an ensemble needs at least one member; got none")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the combined answer for these inputs."""
        combined: Tensor = self.combiner(self.logits(inputs))
        return combined

    def logits(self, inputs: Tensor) -> Tensor:
        """Return every member's logits, `(member, n, ..., classes)`."""
        return torch.stack([member(inputs) for member in self.members])

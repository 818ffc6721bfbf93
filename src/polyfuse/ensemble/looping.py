"""The loop over members: one after the other, and whose fault it is when one fails."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyfuse.ensemble.base import Call, name_of
from polyfuse.ensemble.members import check_places
from polyfuse.ensemble.offload import device_in, visiting
from polyfuse.ensemble.outputs import Select, selected
from polyfuse.errors import DataError


@dataclass(slots=True)
class Loop:
    """Members that are run when they are iterated over.

    Attributes:
        members: all of the ensemble.
        select: of their outputs.
        numbers: of the members that are run.
        call: what they get.
        offload: where they rest between turns; None where they stay.
    """

    members: Sequence[nn.Module]
    select: Sequence[Select]
    numbers: Sequence[int]
    call: Call
    offload: torch.device | None = None

    def __iter__(self) -> Iterator[Tensor | str]:
        """Yield each member's logits, or what is wrong with its output.

        Raises:
            DataError: a member failed, and they are of several dtypes or devices; gradients are
                asked of members that rest elsewhere.
        """
        if self.offload is not None:
            yield from self._visits(self.offload)
            return
        inputs, keywords = self.call
        number = -1
        try:
            for number in self.numbers:
                output = self.members[number](*inputs, **keywords)
                select = self.select[number]
                plain = select is None and type(output) is Tensor
                yield output if plain else selected(output, select)
        except Exception as error:
            self.explain(number, error)
            raise

    def traced(self) -> list[Tensor | str]:
        """Return the logits as a graph records them."""
        return [selected(self.call.of(self.members[n]), self.select[n]) for n in self.numbers]

    def one(self, number: int) -> Tensor | str:
        """Return one member's logits, wherever it is."""
        try:
            return selected(self.call.of(self.members[number]), self.select[number])
        except Exception as error:
            self.explain(number, error)
            raise

    def _visits(self, home: torch.device) -> Iterator[Tensor | str]:
        if torch.is_grad_enabled():
            raise DataError(
                "an ensemble with offload= only predicts: call it under torch.no_grad(), or call "
                "predict(batches)"
            )
        device = device_in(self.call) or home
        for number in self.numbers:
            with visiting(self.members[number], device, home):
                yield self.one(number)

    def explain(self, number: int, error: Exception) -> None:
        """Note on an error which member raised it.

        Raises:
            DataError: members are of several dtypes or devices.
        """
        check_places(self.members)
        error.add_note(f"raised by {name_of(number, self.members[number])} of an ensemble")

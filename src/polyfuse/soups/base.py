"""A pot: checkpoints of one architecture, added up one at a time in double precision.

Memory is the running sum and one model, whatever the number of checkpoints. The sum of all members
but the last is kept, so trying one more member costs one pass over one checkpoint; and it is added
up in the order given, so the same members in the same order give the same bits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from polyfuse.checkpoints import open_checkpoint
from polyfuse.checkpoints.base import Checkpoint
from polyfuse.dtypes import DType
from polyfuse.errors import CheckpointError, printable
from polyfuse.selection import Members
from polyfuse.statedict import match_names, role
from polyfuse.weights import in_memory

Source = str | Path | Mapping[str, Tensor]
Weights = Sequence[float] | Mapping[str, Sequence[float]]  # one a member; or so for each layer


class Pot:
    """Checkpoints that can be mixed into one model.

    Args:
        sources: files, folders or state dicts.
        factory: makes the model; its device is where it will be.

    Raises:
        CheckpointError: a checkpoint that does not fit the model, or integer buffers that differ;
            all are named.

    Example:
        >>> halves = [{"weight": torch.tensor([[value]])} for value in (1.0, 3.0)]
        >>> pot = Pot(halves, lambda: nn.Linear(1, 1, bias=False))
        >>> pot.pour((0, 1)).weight.item()
        2.0
    """

    def __init__(self, sources: Sequence[Source], factory: Callable[[], nn.Module]) -> None:
        """Open every checkpoint once and compare it with the model."""
        if not sources:
            raise CheckpointError("no checkpoints; name at least one")
        self.sources = tuple(sources)
        self.model = factory().eval()
        self.targets: dict[str, Tensor] = self.model.state_dict()
        self.columns: list[Mapping[str, tuple[str, ...]]] = []
        self.norms: dict[int, float] = {}  # squared, of the parameters
        self._integers: dict[str, list[Tensor]] = {}
        self._held: Members = ()
        self._sums: dict[str, Tensor] = {}
        self._check()

    def pour(self, members: Members, weights: Weights | None = None) -> nn.Module:
        """Give the model the mean of members' weights, rounded once; return it in eval mode.

        Running variances become those of the mixture, the variance between the members' means
        included; counters the largest one.

        Args:
            members: indices of the sources.
            weights: one a member, or by the name of a layer; they sum to 1. Equal ones by default.

        Raises:
            CheckpointError: the mean holds NaN or infinity.
        """
        with torch.no_grad():
            if weights is None:
                self._mix_equally(members)
            else:
                self._mix(members, weights)
            for name, values in self._integers.items():
                counts = torch.stack([values[m] for m in members])
                self.targets[name].copy_(counts.amax(0))
        return self.model.eval()

    def mean_cosine(self) -> float:
        """Return the mean cosine between the parameters of every two sources, by their norms.

        Near 1 for fine-tuned copies of one model, near 0 for independent runs.
        """
        everyone = tuple(range(len(self.sources)))
        if len(everyone) == 1:
            return 1.0
        self._hold(everyone)
        together = sum(self._squares(name, total) for name, total in self._sums.items())
        apart = sum(self.norms[i] for i in everyone)
        whole = sum(self.norms[i] ** 0.5 for i in everyone) ** 2
        return (together - apart) / (whole - apart) if whole > apart else 1.0

    def layers(self) -> list[str]:
        """Return the names of the layers that have floating tensors, each one once."""
        return list(dict.fromkeys(layer_of(name) for name in self.floating()))

    def floating(self) -> Iterator[str]:
        """Yield the names of what is averaged: parameters and floating buffers."""
        return (name for name in self.targets if name not in self._integers)

    def wide(
        self, checkpoint: Checkpoint, column: Mapping[str, tuple[str, ...]], name: str
    ) -> Tensor:
        """Return what a checkpoint adds to the sum of a tensor, in double precision.

        That is the tensor, and for a running variance the second moment.
        """
        target = self.targets[name]
        kind = torch.complex128 if target.is_complex() else torch.float64
        value = checkpoint.read(column[name][-1]).to(kind).view(target.shape)
        if role(name, self.targets) == "running_var":
            value += self.wide(checkpoint, column, _mean_of(name)).square()
        return value

    def finish(self, mean: Callable[[str], Tensor]) -> None:
        """Set the model's floating tensors from the means of what `wide` returned."""
        for name in self.floating():
            value = mean(name)
            if role(name, self.targets) == "running_var":
                value = value - mean(_mean_of(name)).square()
            if not torch.isfinite(value).all():
                raise CheckpointError(
                    f"'{printable(name)}' holds NaN or infinity in one of the checkpoints; "
                    "find it with polyfuse inspect, and leave that checkpoint out"
                )
            self.targets[name].copy_(value)

    def open(self, number: int) -> Checkpoint:
        """Open a source."""
        return opened(self.sources[number])

    def _mix_equally(self, members: Members) -> None:
        self._hold(members[:-1])
        column, count = self.columns[members[-1]], len(members)
        with self.open(members[-1]) as last:
            self.finish(
                lambda name: (self._sums.get(name, 0) + self.wide(last, column, name)) / count
            )

    def _mix(self, members: Members, weights: Weights) -> None:
        totals: dict[str, Tensor] = {}
        for place, member in enumerate(members):
            with self.open(member) as checkpoint:
                for name in self.floating():
                    share = _shares(weights, layer_of(name))[place]
                    term = self.wide(checkpoint, self.columns[member], name) * share
                    totals[name] = totals[name] + term if name in totals else term
        self.finish(totals.__getitem__)

    def _hold(self, members: Members) -> None:
        """Bring the running sum to these members, in this order."""
        if self._held != members[: len(self._held)]:
            self._held, self._sums = (), {}
        for member in members[len(self._held) :]:
            self.norms[member] = 0.0
            with self.open(member) as checkpoint:
                for name in self.floating():
                    term = self.wide(checkpoint, self.columns[member], name)
                    self.norms[member] += self._squares(name, term)
                    self._sums[name] = self._sums[name].add_(term) if name in self._sums else term
            self._held = (*self._held, member)

    def _squares(self, name: str, value: Tensor) -> float:
        """Return the sum of squares of a parameter; statistics of batch-norm are none."""
        is_parameter = role(name, self.targets) == "parameter"
        return float(value.abs().square().sum()) if is_parameter else 0.0

    def _check(self) -> None:
        faults = []
        fixed: dict[str, Tensor] = {}
        for number in range(len(self.sources)):
            with self.open(number) as checkpoint:
                shown = printable(checkpoint.path)
                match = match_names([self.targets, checkpoint.names()], ["the model", shown])
                self.columns.append(match.columns)
                found = [*match.faults, *self._misshapen(checkpoint, match.columns)]
                found = found or self._take_integers(checkpoint, match.columns, fixed)
                faults += found
        if faults:
            raise CheckpointError(
                "the checkpoints do not fit the model, or each other; name checkpoints of the "
                "model that the factory makes:\n" + "\n".join(faults)
            )

    def _misshapen(
        self, checkpoint: Checkpoint, column: Mapping[str, tuple[str, ...]]
    ) -> Iterator[str]:
        for name, theirs in column.items():
            info, target = checkpoint.info(theirs[-1]), self.targets[name]
            floats = _is_floating(info.dtype), _is_floating(target.dtype)
            if info.shape != tuple(target.shape) or floats[0] != floats[1]:
                yield (
                    f"'{printable(checkpoint.path)}' has '{printable(name)}' as {info.dtype} of "
                    f"{info.shape}; the model has {target.dtype} of {tuple(target.shape)}"
                )

    def _take_integers(
        self,
        checkpoint: Checkpoint,
        column: Mapping[str, tuple[str, ...]],
        fixed: dict[str, Tensor],
    ) -> list[str]:
        """Keep the integer buffers; return a fault for each that should be equal and is not."""
        faults = []
        for name, target in self.targets.items():
            if _is_floating(target.dtype):
                continue
            value = checkpoint.read(column[name][-1]).view(target.shape)
            first = fixed.setdefault(name, value)
            self._integers.setdefault(name, []).append(value)
            if role(name, self.targets) != "counter" and not torch.equal(value, first):
                faults.append(
                    f"'{printable(checkpoint.path)}' has other values in '{printable(name)}', a "
                    f"buffer of {target.dtype}, which has no mean: make it equal in all of them"
                )
        return faults


def opened(source: Source) -> Checkpoint:
    """Return a source as a checkpoint.

    Raises:
        CheckpointError: it cannot be read.

    Example:
        >>> list(opened({"w": torch.ones(2)}).names())
        ['w']
    """
    if not isinstance(source, Mapping):
        return open_checkpoint(source)
    return in_memory(source, "state dict")


def layer_of(name: str) -> str:
    """Return the name of the layer that a tensor belongs to.

    Example:
        >>> layer_of("trunk.0.weight"), layer_of("scale")
        ('trunk.0', '')
    """
    return name.rpartition(".")[0]


def _shares(weights: Weights, layer: str) -> Sequence[float]:
    return weights[layer] if isinstance(weights, Mapping) else weights


def _mean_of(name: str) -> str:
    return name.removesuffix("running_var") + "running_mean"


def _is_floating(dtype: DType | torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex

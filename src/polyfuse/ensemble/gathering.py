"""Members' outputs on their way to one answer: kept while small, else only their running sum."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from polyfuse.combine.base import Members, Pieces, places
from polyfuse.ensemble.base import tracing
from polyfuse.ensemble.means import wide
from polyfuse.ensemble.outputs import Kind, check_same
from polyfuse.ensemble.rules import Rule
from polyfuse.errors import DataError

AT_ONCE = 1 << 18  # numbers of all members together, up to which one stack is faster


class Heard(NamedTuple):
    """The members whose outputs count.

    Attributes:
        numbers: of these members.
        names: what messages call them.
        weights: of them; None for equal ones.
        shares: the weights as numbers.
        version: of the weights that this was read from.
    """

    numbers: tuple[int, ...]
    names: list[str]
    weights: Tensor | None = None
    shares: Sequence[Any] | None = None
    version: tuple[int, int] | None = None


class Gathered:
    """Outputs of members, taken one by one.

    Args:
        rule: what is made of them.
        combiner: the rule's.
        heard: the members that answer.
        calibrators: of these members, or of their mean.
        running: never keep outputs where the rule is a mean.
    """

    def __init__(
        self,
        rule: Rule,
        combiner: Any,
        heard: Heard,
        calibrators: Sequence[nn.Module] = (),
        *,
        running: bool = False,
    ) -> None:
        """Begin with nothing."""
        self.rule, self.combiner, self.heard = rule, combiner, heard
        self.calibrators, self.running = calibrators, running
        self.outputs: list[Tensor | str] = []
        self.kinds: list[Kind | str] = []
        self.total: Tensor | None = None

    def taking(self, outputs: Iterable[Tensor | str]) -> Self:
        """Take all outputs as they come: large ones of a mean are added up, not kept."""
        each = iter(outputs)
        first = next(each)
        if self.rule.mean is None or not (self.running or self._is_large(first)):
            self.outputs = [first, *each]
            return self
        self.add(first)
        for output in each:
            self.add(output)
        return self

    def add(self, output: Tensor | str) -> None:
        """Take the next output, or what is wrong with it; `answer` tells of what does not fit."""
        if self.rule.mean is None:
            self.outputs.append(output)
            return
        number = len(self.kinds)
        self.kinds.append(output if isinstance(output, str) else Kind.of(output))
        if isinstance(output, str) or self.kinds[-1] != self.kinds[0]:
            return
        if self.total is None:
            check_output(output, self.rule)
            wide = self._wide(output.dtype)
            self.total = torch.zeros(output.shape, dtype=wide, device=output.device)
        part, weights, shares = self._part(output, number), self.heard.weights, self.heard.shares
        if weights is None or shares is None:
            self.total.add_(part)
        elif weights.ndim == 1:
            self.total.add_(part, alpha=shares[number])
        else:
            self.total.add_(part * weights[number].to(part))

    @property
    def plain(self) -> bool:
        """Tell whether this is a mean of small outputs and nothing more."""
        return self.rule.quick and self.heard.weights is None and self.total is None

    def answer(self) -> Tensor:
        """Return the combined answer in the outputs' precision.

        Raises:
            DataError: outputs that differ, that the combiner does not take, or a wrong answer.
        """
        if self.total is not None:
            check_same(self.kinds, self.heard.names)
            total = self.total
            if self.heard.weights is None:
                total = total / len(self.heard.numbers)
            return self._finished(total, self.kinds[0].dtype)  # type: ignore[union-attr]
        if self.rule.mean is None:
            return self._combined()
        if self.plain and not tracing():
            return plain_mean(self.outputs, self.rule, self.heard.names)
        stacked = stack(self.outputs, self.heard.names)
        if not tracing():
            check_output(self.outputs[0], self.rule)  # type: ignore[arg-type]
        return self._finished(self._mean(stacked), stacked.dtype)

    def _is_large(self, output: Tensor | str) -> bool:
        numbers = 0 if isinstance(output, str) or tracing() else output.numel()
        return numbers * len(self.heard.numbers) > AT_ONCE

    def _mean(self, outputs: Tensor) -> Tensor:
        """Return the weighted mean of all members at once."""
        if self.rule.per_member:
            parts = torch.stack([self._part(z, n) for n, z in enumerate(outputs.unbind(0))])
        else:
            parts = self._part(outputs, 0)
        if self.heard.weights is None:
            return parts.mean(0)
        weights = self.heard.weights.to(parts)
        ones = [1] * (parts.ndim - weights.ndim)
        return (parts * weights.reshape(len(weights), *ones, *weights.shape[1:])).sum(0)

    def _part(self, output: Tensor, number: int) -> Tensor:
        """Return what a member gives to the sum."""
        assert self.rule.mean is not None
        wide = self._wide(output.dtype)
        part = self.rule.mean.inner(output if output.dtype is wide else output.to(wide))
        return self.calibrators[number](part) if self.rule.per_member else part

    def _finished(self, total: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is made of the mean."""
        assert self.rule.mean is not None
        if self.heard.weights is not None and self.heard.weights.ndim == 2:
            total = total / total.sum(-1, keepdim=True)
        answer = self.rule.mean.outer(total)
        if self.calibrators and not self.rule.per_member:
            answer = self.calibrators[0](answer)
        return answer if answer.dtype is dtype else answer.to(dtype)

    def _wide(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if self.calibrators else wide(dtype)

    def _combined(self) -> Tensor:
        """Return what the combiner makes of all outputs.

        Raises:
            DataError: it returns something else than an answer a sample.
        """
        rule, options = self.rule, dict(self.rule.options)
        if self.heard.weights is not None:
            options["weights"] = self.heard.shares if tracing() else self.heard.weights
        if rule.ours:
            check_same(_kinds(self.outputs), self.heard.names)
            given = torch.stack(self.outputs) if tracing() else Pieces(self.outputs)  # type: ignore[arg-type]
            answer: Tensor = self.combiner(given, **options)
            return answer
        stacked = stack(self.outputs, self.heard.names)
        found = self.combiner(stacked, **options)
        if not tracing():
            _check_answer(found, stacked, rule.name)
        return found  # type: ignore[no-any-return]


def plain_mean(outputs: Sequence[Any], rule: Rule, names: Sequence[str]) -> Tensor:
    """Return what `Gathered` does of small outputs with equal weights, by the shortest way.

    Raises:
        DataError: outputs that differ, or that the combiner does not take.
    """
    stacked = stack(outputs, names)
    check_output(outputs[0], rule)
    assert rule.mean is not None
    dtype = stacked.dtype
    if dtype is torch.float32 or dtype is torch.float64:
        return rule.mean.outer(rule.mean.inner(stacked).mean(0))
    return rule.mean.outer(rule.mean.inner(stacked.float()).mean(0)).to(dtype)


def stack(outputs: Sequence[Tensor | str], names: Sequence[str]) -> Tensor:
    """Return outputs along a new first axis.

    Raises:
        DataError: they are no tensors, or differ; with all members' names.
    """
    tensors: Any = outputs
    try:
        stacked = torch.stack(tensors)
    except (RuntimeError, TypeError):
        check_same(_kinds(outputs), names)
        raise
    dtype = stacked.dtype
    for output in tensors:  # of several dtypes torch makes one
        if output.dtype is not dtype:
            check_same(_kinds(outputs), names)
    return stacked


def _kinds(outputs: Iterable[Tensor | str]) -> list[Kind | str]:
    return [output if isinstance(output, str) else Kind.of(output) for output in outputs]


def _check_answer(answer: Any, stacked: Tensor, name: str) -> None:
    """Refuse what is no answer a sample.

    Raises:
        DataError: with the shapes.
    """
    shape = tuple(answer.shape) if isinstance(answer, Tensor) else None
    samples, given = tuple(stacked.shape[1:2]), tuple(stacked.shape)
    if shape is None or shape[:1] != samples or shape == given:
        got = type(answer).__name__ if shape is None else f"shape {shape}"
        raise DataError(
            f"combiner {name} made {got} of outputs {given}; it has to return a tensor with one "
            f"answer a sample, ({samples[0] if samples else 'n'}, ...), without the member axis"
        )


def check_numbers(answer: Tensor, outputs: Any, names: Sequence[str]) -> None:
    """Refuse an answer that holds NaN.

    Args:
        answer: of the ensemble.
        outputs: of the members, anew.
        names: of these members.

    Raises:
        DataError: which members, and in which rows.
    """
    if not bool(answer.isnan().any()):
        return
    faults = []
    for name, output in zip(names, outputs, strict=True):
        odd = output.isnan() | (output == torch.inf)
        rows = odd.reshape(len(odd), -1).any(1).nonzero()[:, 0].tolist()
        if rows:
            faults.append(f"{name} has NaN or infinity in {places(rows)}")
    said = "; ".join(faults) or "the members are finite, yet their combination holds NaN"
    raise DataError(f"{said}; leave out those members, or repair the inputs they choke on")


def check_output(output: Tensor, rule: Rule) -> None:
    """Refuse what the combiner would refuse.

    Raises:
        DataError: integers, too few axes, or a single class.
    """
    shape = output.shape
    fits = len(shape) > 1 and shape[-1] > 1 if rule.least_axes == 2 else len(shape) > 0
    if fits and output.is_floating_point() and 0 not in shape:
        return
    values = rule.name == "mean_value"
    only: Any = Pieces((output,))
    Members(
        only,
        space="value" if values else "logit",
        spaces=("value",) if values else ("logit",),
        exclusive=bool(rule.options.get("exclusive", True)),
    )

"""Members' outputs on their way to one answer: kept while small, else only their running sum."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.combine.base import Members, Pieces, places
from polyfuse.ensemble.base import tracing
from polyfuse.ensemble.means import wide
from polyfuse.ensemble.outputs import Kind, check_same
from polyfuse.ensemble.rules import Rule
from polyfuse.errors import DataError

AT_ONCE = 1 << 18  # numbers of all members together, up to which one stack is faster


class Gathered:
    """Outputs of members, added one by one.

    Args:
        rule: what is made of them.
        combiner: the rule's.
        names: of the members that will answer.
        weights: of these members; None for equal ones.
        shares: the same as numbers.
        calibrators: of these members, or of their mean.
        running: never keep outputs where the rule is a mean.
    """

    def __init__(
        self,
        rule: Rule,
        combiner: Any,
        names: Sequence[str],
        *,
        weights: Tensor | None,
        shares: Sequence[Any] | None,
        calibrators: Sequence[nn.Module],
        running: bool = False,
    ) -> None:
        """Begin with nothing."""
        self.rule, self.combiner, self.names = rule, combiner, names
        self.weights, self.shares = weights, shares
        self.calibrators, self.running = calibrators, running
        self.outputs: list[Tensor | str] = []
        self.kinds: list[Kind | str] = []
        self.total: Tensor | None = None

    def add(self, output: Tensor | str) -> None:
        """Take the next member's output, or what is wrong with it."""
        if self.rule.mean is None or tracing() or isinstance(output, str):
            self.outputs.append(output)
        elif self.total is not None or self.running or self._is_large(output):
            self._add_up(output)
        else:
            self.outputs.append(output)

    def answer(self) -> Tensor:
        """Return the combined answer in the outputs' precision.

        Raises:
            DataError: outputs that differ, that the combiner does not take, or a wrong answer.
        """
        kinds = self.kinds + [o if isinstance(o, str) else Kind.of(o) for o in self.outputs]
        check_same(kinds, self.names)
        kind = kinds[0]
        assert isinstance(kind, Kind)
        if self.total is not None:
            return self._finished(self.total, kind.dtype)
        outputs = [output for output in self.outputs if isinstance(output, Tensor)]
        if self.rule.mean is None:
            return self._combined(outputs)
        if not tracing():
            _check_output(outputs[0], self.rule)
        return self._finished(self._mean(outputs), kind.dtype)

    def _is_large(self, output: Tensor) -> bool:
        return not self.outputs and output.numel() * len(self.names) > AT_ONCE

    def _add_up(self, output: Tensor) -> None:
        """Add a member to the sum; one that does not fit is told of by `answer`."""
        number = len(self.kinds)
        self.kinds.append(Kind.of(output))
        if self.kinds[-1] != self.kinds[0]:
            return
        if self.total is None:
            _check_output(output, self.rule)
            self.total = torch.zeros(
                output.shape, dtype=self._wide(output.dtype), device=output.device
            )
        part = self._part(output, number)
        if self.weights is None or self.shares is None:
            self.total.add_(part)
        elif self.weights.ndim == 1:
            self.total.add_(part, alpha=self.shares[number])
        else:
            self.total.add_(part * self.weights[number].to(part))

    def _mean(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum of all members at once."""
        if self.rule.per_member:
            parts = torch.stack([self._part(z, number) for number, z in enumerate(outputs)])
        else:
            parts = self._part(torch.stack(list(outputs)), 0)
        if self.weights is None:
            return parts.sum(0)
        weights = self.weights.to(parts)
        ones = [1] * (parts.ndim - 1 - (weights.ndim - 1))
        return (parts * weights.reshape(len(weights), *ones, *weights.shape[1:])).sum(0)

    def _part(self, output: Tensor, number: int) -> Tensor:
        """Return what a member gives to the sum."""
        assert self.rule.mean is not None
        part = self.rule.mean.inner(output.to(self._wide(output.dtype)))
        return self.calibrators[number](part) if self.rule.per_member else part

    def _finished(self, total: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is made of the sum."""
        assert self.rule.mean is not None
        if self.weights is None:
            total = total / len(self.names)
        elif self.weights.ndim == 2:
            total = total / total.sum(-1, keepdim=True)
        answer = self.rule.mean.outer(total)
        if self.calibrators and not self.rule.per_member:
            answer = self.calibrators[0](answer)
        return answer.to(dtype)

    def _wide(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if self.calibrators else wide(dtype)

    def _combined(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return what the combiner makes of all outputs.

        Raises:
            DataError: it returns something else than an answer a sample.
        """
        rule, options = self.rule, dict(self.rule.options)
        if self.weights is not None:
            options["weights"] = self.shares if tracing() else self.weights
        given = Pieces(outputs) if rule.ours and not tracing() else torch.stack(list(outputs))
        answer: Any = self.combiner(given, **options)
        if rule.ours:
            return answer  # type: ignore[no-any-return]
        samples, stacked = outputs[0].shape[:1], (len(outputs), *outputs[0].shape)
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else None
        if shape is None or shape[:1] != samples or shape == stacked:
            got = type(answer).__name__ if shape is None else f"shape {shape}"
            raise DataError(
                f"combiner {rule.name} made {got} of outputs {stacked}; it has to return a tensor "
                f"with one answer a sample, {(*samples, '...')}, without the member axis"
            )
        return answer  # type: ignore[no-any-return]


def check_numbers(answer: Tensor, outputs: Any, names: Sequence[str]) -> None:
    """Refuse an answer that holds NaN.

    Args:
        answer: of the ensemble.
        outputs: a function that returns the members' outputs anew; called only to explain.
        names: of these members.

    Raises:
        DataError: which members, and in which rows.
    """
    total = answer.sum().item()  # a sum sees NaN in one pass; infinities may only look like it
    if total == total or not bool(answer.isnan().any()):
        return
    faults = []
    for name, output in zip(names, outputs(), strict=True):
        odd = output.isnan() | (output == torch.inf)
        rows = odd.reshape(len(odd), -1).any(1).nonzero()[:, 0].tolist()
        if rows:
            faults.append(f"{name} has NaN or infinity in {places(rows)}")
    said = "; ".join(faults) or "the members are finite, yet their combination holds NaN"
    raise DataError(f"{said}; leave out those members, or repair the inputs they choke on")


def _check_output(output: Tensor, rule: Rule) -> None:
    """Refuse what the combiner would refuse.

    Raises:
        DataError: integers, too few axes, or a single class.
    """
    least = 2 if rule.options.get("exclusive", True) and rule.name != "mean_value" else 1
    classes = output.shape[-1] if least > 1 and output.ndim else 2
    if output.is_floating_point() and output.ndim >= least and output.numel() and classes > 1:
        return
    values = rule.name == "mean_value"
    only: Any = Pieces((output,))
    Members(
        only,
        space="value" if values else "logit",
        spaces=("value",) if values else ("logit",),
        exclusive=bool(rule.options.get("exclusive", True)),
    )

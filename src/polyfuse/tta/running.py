"""Means over views that are added up as they come: one output at a time is in memory."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from polyfuse.combine import geometric_mean, mean_logit, mean_probability, mean_value, product
from polyfuse.combine.base import Members, Pieces
from polyfuse.errors import DataError

Combiner = Callable[..., Any]

MEANS = (mean_probability, mean_logit, geometric_mean, product, mean_value)
BARE = (
    "{} places are in no view with a weight; add the identity, or crops that cover the whole image"
)


class Running:
    """One of `MEANS` over views, whose weights may differ from class to class or place to place.

    Logarithms are added as logarithms, so nothing underflows.

    Args:
        combiner: one of `MEANS`.
        space: what the numbers are: "logit", "prob", "log_prob".
        exclusive: exactly one class is true; else every number is a label of its own.
        returns: "prob", or "log_prob": the logarithm, without the detour.

    Example:
        >>> running = Running(mean_probability)
        >>> for logits in torch.tensor([[[0.0, 0.0]], [[9.0, -9.0]]]):
        ...     running.add(logits)
        >>> running.answer()
        tensor([[0.7500, 0.2500]])
    """

    def __init__(
        self,
        combiner: Combiner,
        *,
        space: str = "logit",
        exclusive: bool = True,
        returns: str = "prob",
    ) -> None:
        """Have heard nobody yet."""
        self.combiner, self.returns = combiner, returns
        self.space = "value" if combiner is mean_value else space
        self.exclusive = exclusive or self.space == "value"
        self.logs = combiner is mean_probability and returns == "log_prob"
        self.total: Tensor | None = None
        self.said: Tensor | float = 0.0
        self.dtype = torch.float32
        self.per_class = False

    def add(self, output: Tensor, weight: float | Tensor = 1.0, seen: Tensor | None = None) -> None:
        """Add what one view says.

        Args:
            output: `(n, ..., class)`.
            weight: of the view, 0 or more; or `(class,)`.
            seen: the say of the view at each place `(n or 1, ...)`, without the class axis.

        Raises:
            DataError: numbers that are not in this space, or no floating ones.
        """
        if not output.is_floating_point():
            raise DataError(f"a view says {output.dtype}; a mean takes floating numbers")
        self.dtype = output.dtype
        say = self._say(weight, seen)
        part = self._part(output)
        if self.logs:
            logs = part + torch.as_tensor(say, dtype=part.dtype, device=part.device).log()
            self.total = logs if self.total is None else torch.logaddexp(self.total, logs)
        elif self.total is None:  # in the layout of the output, whatever it is
            self.total = _times(part, say)
        elif isinstance(say, Tensor):
            self.total = self.total + _times(part, say)
        else:
            self.total.add_(part, alpha=say)
        self.said = self.said + say

    def answer(self, blame: Callable[[], NoReturn] | None = None) -> Tensor:
        """Return the mean of what was added, `(n, ..., class)`.

        Args:
            blame: says where NaN comes from.

        Raises:
            DataError: a place in no view; NaN, infinite numbers.
        """
        assert self.total is not None
        if isinstance(self.said, Tensor) and self.combiner is not product:
            _refuse_bare(self.said)
        result = self._result(self.total)
        if not torch.compiler.is_compiling() and self._is_odd(result):
            (blame or _blame)()
        return (result if self.exclusive else result[..., 1]).to(self.dtype)

    def _part(self, output: Tensor) -> Tensor:
        """Return what is added of an output, in the wide precision."""
        if self.space == "value":
            return output.to(torch.promote_types(output.dtype, torch.float32))
        members: Members[Any] = Members(
            Pieces((output,)), space=self.space, exclusive=self.exclusive
        )
        if self.combiner is mean_logit:
            return next(members.scores()).to(members.wide)
        linear = self.combiner is mean_probability and not self.logs
        return next(members.probabilities() if linear else members.logs())

    def _say(self, weight: float | Tensor, seen: Tensor | None) -> float | Tensor:
        """Return a weight that is multiplied with the output."""
        self.per_class = self.per_class or isinstance(weight, Tensor)
        say = weight if seen is None else weight * seen[..., None]
        return say[..., None] if isinstance(say, Tensor) and not self.exclusive else say

    def _result(self, total: Tensor) -> Tensor:
        if self.logs:
            said = torch.as_tensor(self.said, dtype=total.dtype, device=total.device)
            return (total - said.log()).log_softmax(-1)
        mean = total if self.combiner is product else total / self.said
        if self.space == "value":
            return mean
        if self.combiner is mean_probability:
            exact = self.space == "logit" and not self.per_class  # sums to 1 as it is
            return mean if exact else mean / mean.sum(-1, keepdim=True)
        return mean.log_softmax(-1) if self.returns == "log_prob" else mean.softmax(-1)

    def _is_odd(self, result: Tensor) -> bool:
        if self.space == "value":
            return not bool(result.isfinite().all())
        return bool(result.sum().isnan()) and bool(result.isnan().any())


def _times(part: Tensor, say: float | Tensor) -> Tensor:
    """Return a part times its say; without one there is not even 0 times infinity."""
    if not isinstance(say, Tensor):
        return part * say
    say = say.to(part)
    return torch.where(say > 0, part, 0) * say


def _refuse_bare(said: Tensor) -> None:
    if torch.compiler.is_compiling() or bool((said > 0).all()):
        return
    raise DataError(BARE.format(int((~(said > 0)).reshape(-1, said.shape[-1]).any(-1).sum())))


def _blame() -> NoReturn:
    raise DataError(
        "what the views say gives NaN or infinity: look at each view's outputs with "
        "TTA.outputs(images)"
    )

"""One optimiser for stacked models, whose steps are those that the models' own would take."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from polyfuse.fit.stacked import Stack, Unstackable

# Each number of a weight moves by its own gradients alone, in proportion to the rate.
ELEMENTWISE = (Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, SGD)
FUSED = (Adam, AdamW, SGD)  # of these torch has a step that goes over a tensor once


class StackedOptimizer:
    """The optimisers of stacked models as one.

    Args:
        stack: the models.
        optimizers: of each, in its order; they differ in their rates at most.
        rates: of each, one a group of parameters; those that the optimisers have by default.

    Raises:
        Unstackable: an optimiser that looks at more than one number at a time, or other options.

    Example:
        >>> nets = [nn.Linear(2, 2) for _ in range(3)]
        >>> own = [SGD(net.parameters(), lr=rate) for net, rate in zip(nets, (0.1, 0.1, 0.2))]
        >>> stack = Stack(nets, nn.functional.cross_entropy)
        >>> StackedOptimizer(stack, own).ratios[0].tolist()
        [1.0, 1.0, 2.0]
    """

    def __init__(
        self,
        stack: Stack,
        optimizers: Sequence[Optimizer],
        rates: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Make it, with the state that the optimisers have."""
        kinds = {type(optimizer) for optimizer in optimizers}
        [kind, *others] = kinds
        if others or kind not in ELEMENTWISE:
            names = ", ".join(sorted(each.__name__ for each in kinds))
            raise Unstackable(
                f"the optimiser {names} is not one of those that move each number by itself: "
                + ", ".join(each.__name__ for each in ELEMENTWISE)
            )
        self.stack, self.own = stack, list(optimizers)
        self.rates = rates or [[group["lr"] for group in own.param_groups] for own in optimizers]
        self._begin()

    def step(self, factor: float) -> None:
        """Step with this factor of the rates, and forget the gradients."""
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, self.rates[0], strict=True):
            group["lr"] = rate * factor
        before = [
            [p.detach().clone() for p in group["params"]] if bool((ratios != 1).any()) else []
            for group, ratios in zip(groups, self.ratios, strict=True)
        ]
        self.optimizer.step()
        self.optimizer.zero_grad()
        for group, kept, ratios in zip(groups, before, self.ratios, strict=True):
            for parameter, old in zip(group["params"], kept, strict=False):
                share = ratios.to(old).view(-1, *[1] * (old.dim() - 1))
                parameter.data.copy_(torch.lerp(old, parameter.detach(), share))

    def show(self) -> None:
        """Give each model's own optimiser its part of the state, as views, and its rates of now."""
        for place, (own, table) in enumerate(zip(self.own, self._tables(), strict=True)):
            groups = zip(own.param_groups, self.optimizer.param_groups, self.ratios, strict=True)
            for group, stacked, ratios in groups:
                group["lr"] = stacked["lr"] * float(ratios[place])
            for name, parameter in self.stack.parameters.items():
                if state := self.optimizer.state.get(parameter):
                    own.state[table[name]] = _part(state, place, parameter.shape)

    def _begin(self) -> None:
        """Make the optimiser, and stack the state that the models' own ones have."""
        self.ratios = [_ratios(rates) for rates in zip(*self.rates, strict=True)]
        kind: Any = type(self.own[0])
        self.optimizer = kind([self._group(number) for number in range(len(self.ratios))])
        tables = self._tables()
        for name, parameter in self.stack.parameters.items():
            states = [own.state.get(t[name]) for own, t in zip(self.own, tables, strict=True)]
            if states[0]:
                self.optimizer.state[parameter] = _joined(states, parameter.shape[1:])

    def _tables(self) -> list[dict[str, nn.Parameter]]:
        return [dict(model.named_parameters()) for model in self.stack.models]

    def _group(self, number: int) -> dict[str, Any]:
        """Return a group of parameters, stacked, with its options."""
        described = []
        for own, table in zip(self.own, self._tables(), strict=True):
            group, names = own.param_groups[number], {id(p): name for name, p in table.items()}
            options = {key: group[key] for key in group if key not in _OWN}
            described.append((options, [names.get(id(p), "") for p in group["params"]]))
        options, names_of_group = described[0]
        if any(each != described[0] for each in described) or "" in names_of_group:
            raise Unstackable("their optimisers have other options or other parameters")
        parameters = [self.stack.parameters[name] for name in names_of_group]
        if isinstance(self.own[0], FUSED) and options.get("fused") is options.get("foreach"):
            options["fused"] = all(p.is_floating_point() for p in parameters)
        return {**options, "lr": self.rates[0][number], "params": parameters}


_OWN = frozenset({"params", "lr", "initial_lr", "param_names"})


def _ratios(rates: Sequence[float]) -> Tensor:
    """Return each rate's ratio to the first."""
    if rates[0] == 0 and any(rates):
        raise Unstackable("one of them has a rate of 0")
    return torch.tensor([1.0 if rate == rates[0] else rate / rates[0] for rate in rates])


def _part(state: Mapping[str, Any], place: int, shape: torch.Size) -> dict[str, Any]:
    return {
        name: value[place] if isinstance(value, Tensor) and value.shape == shape else value
        for name, value in state.items()
    }


def _joined(states: Sequence[Any], shape: torch.Size) -> dict[str, Any]:
    """Stack what has the shape of a parameter; the rest, such as counts of steps, is alike."""
    return {
        name: torch.stack([state[name] for state in states])
        if isinstance(value, Tensor) and value.shape == shape and name != "step"
        else value
        for name, value in states[0].items()
    }

"""Weights of a soup by gradient: a softmax of raw numbers, moved along the held-out loss."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from polyfuse.errors import DataError
from polyfuse.soups.base import Pot, layer_of
from polyfuse.statedict import role


def learn(
    pot: Pot,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    steps: int,
    lr: float,
    per_layer: bool,
) -> dict[str, list[float]]:
    """Return weights on the simplex for each layer (Wortsman et al. 2022, learned soup).

    All checkpoints are held in memory. The weights start equal and are moved by AdamW; each step
    takes the next batch, and begins again with the first one after the last.

    Args:
        pot: the checkpoints.
        batches: of `(inputs, targets)`, held out from training; gone through again and again.
        loss: `(outputs, targets) -> scalar`.
        steps: of the optimiser.
        lr: its learning rate.
        per_layer: weights for each layer; else one set for all of them.

    Returns:
        By layer, a weight for each source; they sum to 1.

    Raises:
        DataError: no batch, or a loss that is NaN or infinite.

    Example:
        >>> sources = [{"weight": torch.tensor([[value]])} for value in (1.0, 3.0)]
        >>> from torch import nn
        >>> pot = Pot(sources, lambda: nn.Linear(1, 1, bias=False))
        >>> far = [(torch.ones(1, 1), torch.full((1, 1), 3.0))]
        >>> square = nn.functional.mse_loss
        >>> found = learn(pot, far, square, steps=50, lr=0.1, per_layer=False)
        >>> found[""][1] > 0.9
        True
    """
    layers = pot.layers()
    place = {layer: i if per_layer else 0 for i, layer in enumerate(layers)}
    stacks = _stacked(pot)
    device = next(iter(stacks.values())).device
    raw = torch.zeros(
        len(layers) if per_layer else 1, len(pot.sources), device=device, requires_grad=True
    )
    optimizer = torch.optim.AdamW([raw], lr=lr, weight_decay=0.0)
    model = pot.pour((0,))
    given = _endless(batches)
    for _ in range(steps):
        inputs, targets = (_moved(part, device) for part in next(given))
        state = _mixed(stacks, raw.softmax(-1), place)
        value = loss(functional_call(model, state, (inputs,)), targets)
        if not torch.isfinite(value):
            raise DataError(f"the held-out loss is {value.item()}; check the batches and the loss")
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks it
        optimizer.step()
    shares = raw.detach().double().softmax(-1).tolist()
    return {layer: shares[place[layer]] for layer in layers}


def _stacked(pot: Pot) -> dict[str, Tensor]:
    """Return what is averaged, `(source, ...)`, where the model is and at least in fp32."""
    parts: dict[str, list[Tensor]] = {name: [] for name in pot.floating()}
    for number, column in enumerate(pot.columns):
        with pot.open(number) as checkpoint:
            for name, part in parts.items():
                target = pot.targets[name]
                kind = torch.promote_types(target.dtype, torch.float32)
                part.append(pot.wide(checkpoint, column, name).to(target.device, kind))
    return {name: torch.stack(part) for name, part in parts.items()}


def _mixed(
    stacks: Mapping[str, Tensor], shares: Tensor, place: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the convex combination; of second moments, the variance.

    torch has no gradient with respect to running statistics, so theirs are left out.
    """
    mixed = {}
    for name, stack in stacks.items():
        share = shares[place[layer_of(name)]].to(stack.dtype)
        kept = share if role(name, stacks) == "parameter" else share.detach()
        mixed[name] = torch.tensordot(kept, stack, 1)
    for name in mixed:
        if role(name, mixed) == "running_var":
            mean = mixed[name.removesuffix("running_var") + "running_mean"]
            mixed[name] = (mixed[name] - mean.square()).clamp_min(0)
    return mixed


def _endless(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise DataError(
                "no batches, or no more: give a list or a loader that can be read again"
            )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value

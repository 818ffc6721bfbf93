"""Optimisers that recipes name: `(parameters) -> torch.optim.Optimizer`."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

Parameters = Iterable[nn.Parameter]


def adamw(parameters: Parameters, *, lr: float = 1e-3, weight_decay: float = 1e-2) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019).

    Example:
        >>> adamw(nn.Linear(2, 2).parameters()).param_groups[0]["lr"]
        0.001
    """
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def adam(parameters: Parameters, *, lr: float = 1e-3, weight_decay: float = 0.0) -> Optimizer:
    """Adam (Kingma and Ba 2015).

    Example:
        >>> adam(nn.Linear(2, 2).parameters()).param_groups[0]["lr"]
        0.001
    """
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def sgd(
    parameters: Parameters,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """SGD with momentum (Sutskever et al. 2013).

    Example:
        >>> sgd(nn.Linear(2, 2).parameters()).param_groups[0]["momentum"]
        0.9
    """
    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def rmsprop(
    parameters: Parameters,
    *,
    lr: float = 1e-3,
    alpha: float = 0.99,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """RMSprop (Tieleman and Hinton 2012), `alpha` the decay of the squared gradients' average.

    Example:
        >>> rmsprop(nn.Linear(2, 2).parameters()).param_groups[0]["alpha"]
        0.99
    """
    return torch.optim.RMSprop(
        parameters, lr=lr, alpha=alpha, momentum=momentum, weight_decay=weight_decay
    )


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": adamw,
    "adam": adam,
    "sgd": sgd,
    "rmsprop": rmsprop,
}

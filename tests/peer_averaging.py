"""Averages of timm and ema-pytorch, in their environment: python peer_averaging.py IN.pt OUT.pt

IN holds the weights after each step; OUT gets each peer's average of them, as a state dict.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

STEPS = 20_000  # of the ramp that power-EMAs follow


def net() -> nn.Module:
    """Return the model that the weights are of."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def replay(states: list[dict[str, Any]], make: Any, update: Any) -> dict[str, Any]:
    """Return a peer's average of weights that come one after the other."""
    model = net()
    model.load_state_dict(states[0])
    average = make(model)
    for step, state in enumerate(states, 1):
        model.load_state_dict(state)
        update(average, model, step)
    inner = getattr(average, "ema_model", None) or average.module
    return dict(inner.state_dict())


def ramp(make: Any) -> float:
    """Return the mean time that a power-EMA of `theta(t) = t` stands for, as a share of the run."""
    model = nn.Linear(1, 1, bias=False).double()
    average = make(model)
    for step in range(1, STEPS + 1):
        model.weight.data.fill_(step)
        average.update()
    return float(average.ema_model.weight.detach()) / STEPS


def main(source: str, target: str) -> None:
    """Let every peer average the same weights."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from peers import allow_torchvision

    allow_torchvision()
    import ema_pytorch
    from timm.utils import ModelEmaV3

    states = torch.load(source)

    def timm(**options: Any) -> dict[str, Any]:
        return replay(
            states,
            lambda model: ModelEmaV3(model, **options),
            lambda average, model, step: average.update(model, step),
        )

    def lucid(**options: Any) -> dict[str, Any]:
        make = ema_pytorch.EMA
        return replay(states, lambda m: make(m, **options), lambda average, *_: average.update())

    def karras(every: int) -> float:
        return ramp(lambda m: ema_pytorch.KarrasEMA(m, sigma_rel=0.1, update_every=every))

    each = {"update_after_step": 0, "update_every": 1}
    found = {
        "timm": timm(decay=0.9),
        "timm power": timm(decay=0.9, use_warmup=True),
        "timm power, others": timm(
            decay=0.9, use_warmup=True, warmup_gamma=2.0, warmup_power=0.5, min_decay=0.3
        ),
        "ema-pytorch": lucid(beta=0.9, power=100.0, **each),
        "ema-pytorch power": lucid(beta=0.9, **each),
        "karras": {every: karras(every) for every in (1, 10)},
    }
    torch.save(found, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

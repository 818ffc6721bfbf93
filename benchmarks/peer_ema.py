"""Updates of the peers' averages, each timed when its name is read; runs in the peers' environment.

python benchmarks/peer_ema.py MODEL THREADS
"""

import sys
import time
from collections.abc import Callable

import torch
from peers import allow_torchvision
from shapes import Net

DECAY = 0.999


def subjects(name: str) -> dict[str, Callable[[], object]]:
    """Return an update of each peer."""
    allow_torchvision()
    from ema_pytorch import EMA
    from timm.utils import ModelEmaV3
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = Net(name)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    timms = ModelEmaV3(model, decay=DECAY)
    lucid = EMA(model, beta=DECAY, update_after_step=0, update_every=1)
    return {
        "torch AveragedModel": lambda: torchs.update_parameters(model),
        "timm ModelEmaV3": lambda: timms.update(model),
        "ema-pytorch EMA": lucid.update,
    }


def main(name: str, threads: str) -> None:
    """Say who is there, then answer each name with the seconds of an update."""
    torch.set_num_threads(int(threads))
    known = subjects(name)
    print(*known, sep=",", flush=True)
    for line in sys.stdin:
        update = known[line.strip()]
        start = time.perf_counter()
        update()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

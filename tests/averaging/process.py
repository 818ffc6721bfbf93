"""One of two processes that train one model, in each way: python process.py FILE RANK.

It prints JSON, a line a way: digests of the averages, gathered where they are sharded, and more.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from polyfuse.averaging import Averages, ema, lawa, swa
from polyfuse.statedict import digest

KINDS = ("ddp", "fsdp", "fsdp16")
RULES = {"ema": ema(0.9), "swa": swa(), "lawa": lawa(2)}


class Net(nn.Sequential):
    """Shards of its tensors are uneven; one tensor is the root's own."""

    def __init__(self):
        super().__init__(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return super().forward(x) * self.scale.mean()


def net(kind):
    torch.manual_seed(0)
    return Net().to(torch.bfloat16 if kind == "fsdp16" else torch.float32)


def whole(state):
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in state.items()
    }


def mark(state):
    return digest(whole(state).items())


def wrapped(kind):
    model = net(kind)
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model), model
    if kind.startswith("fsdp"):
        mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, model


def train(model, averages, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dtype = next(model.parameters()).dtype
    for step in steps:
        x = torch.full((4, 3), 1.0 + step, dtype=dtype)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        averages.update()


def main(file, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for kind in KINDS:
        print(json.dumps(told(kind, f"{file}.{kind}.{rank}.pt")))
    dist.barrier()
    dist.destroy_process_group()


def told(kind, path):
    outer, model = wrapped(kind)
    averages = Averages(outer, RULES)
    train(outer, averages, range(3))
    state = averages.state_dict()
    torch.save(state, path)
    own = mark(model.state_dict())
    with averages.applied("ema", saving=True), torch.no_grad():
        inside = mark(model.state_dict())
        seen = outer(torch.ones(2, 3, dtype=next(model.parameters()).dtype))
    # No look at the weights here: a state dict would let FSDP2 drop what it has gathered.
    train(outer, averages, range(3, 5))

    again, _ = wrapped(kind)
    resumed = Averages(again, RULES)
    train(again, resumed, range(3))
    resumed.load_state_dict(torch.load(path, weights_only=False))
    train(again, resumed, range(3, 5))

    found = {name: mark(averages.average(name)) for name in RULES}
    return {
        "averages": found,
        "resumed": {name: mark(resumed.average(name)) for name in RULES} == found,
        "names": list(averages.average("ema")),
        "swapped": own != inside,
        "seen": seen.flatten().tolist(),
        "ema": {k: t.float().flatten().tolist() for k, t in whole(averages.average("ema")).items()},
        "weights": {k: t.float().flatten().tolist() for k, t in whole(model.state_dict()).items()},
        "sharded": sum(isinstance(t, DTensor) for t in averages.average("ema").values()),
        "memory": averages.memory("ema").numel(),
    }


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""One rank of a distributed run that saves a checkpoint: `dcp_ranks.py RANK RANKS FOLDER`."""

import sys
from pathlib import Path

import torch
from torch import nn


def main(rank, ranks, folder):
    """Train for a step under FSDP2, save with DCP, and the whole tensors with torch.save."""
    import torch.distributed as dist  # here: pytest imports this file, too
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (ranks,))
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 5)).sum().backward()
    optimizer.step()
    state, optimizer_state = get_state_dict(model, optimizer)
    table = torch.arange(35.0).view(5, 7)
    for name, placement in (("columns", Shard(1)), ("rows", Shard(0)), ("all", Replicate())):
        state[name] = distribute_tensor(table, mesh, [placement])
    dcp.save({"model": state, "optim": optimizer_state, "epoch": 3}, checkpoint_id=folder / "saved")
    full = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in state.items()}
    if rank == 0:
        torch.save(full, folder / "full.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

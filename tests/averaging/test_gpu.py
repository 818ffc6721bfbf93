"""On a GPU: the same averages, no wait of the host in an update, copies to the CPU that wait."""

import pytest
import torch
from odd import MANY, generator, move, tensors
from torch import nn

from polyfuse.averaging import Averages
from polyfuse.errors import TrainingError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8))


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_are_those_of_the_cpu(device, dtype):
    near, far = net().to(dtype), net().to("cuda", dtype)
    reference, averages = Averages(near, MANY), Averages(far, MANY, device=device)
    draws = generator(), generator()
    for _ in range(4):
        for model, draw, each in zip((near, far), draws, (reference, averages), strict=True):
            move(model, draw)
            each.update()
    own = tensors(far)
    for name in MANY:
        found = averages.average(name)
        for key, expected in reference.average(name).items():
            torch.testing.assert_close(found[key].cpu(), expected, rtol=1e-2, atol=1e-4)
        with averages.applied(name):
            pass
        assert all(torch.equal(own[key], value) for key, value in tensors(far).items())


@pytest.mark.parametrize("device", [None, "cpu"])
def test_an_update_never_makes_the_host_wait(device):
    model = net().cuda()
    averages = Averages(model, {k: v for k, v in MANY.items() if k != "own"}, device=device)
    averages.update()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            averages.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nan_is_found_one_update_later():
    model = net().cuda()
    averages = Averages(model, MANY, looks=1)
    averages.update()
    model[0].weight.data[0, 0] = torch.nan
    averages.update()
    torch.cuda.synchronize()
    with pytest.raises(TrainingError, match=r"weights '0\.weight'.* took it in before"):
        averages.update()

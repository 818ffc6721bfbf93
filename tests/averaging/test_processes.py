"""DistributedDataParallel and FSDP2 in two processes: each keeps its part, together the same."""

import json
from pathlib import Path

import numpy as np
import process
import pytest
import torch

from polyfuse.averaging import Averages

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="no distributed")


@pytest.fixture(scope="module")
def told(tmp_path_factory, run_scripts):
    """Return what two processes said, by the way they trained."""
    folder = tmp_path_factory.mktemp("processes")
    ranks = [[Path(process.__file__), folder / "meet", rank] for rank in range(2)]
    ended = run_scripts(ranks, folder)
    assert [status for status, _, _ in ended] == [0, 0], ended
    said = [output.splitlines()[-len(process.KINDS) :] for _, output, _ in ended]
    lines = zip(*said, strict=True)
    return {
        kind: [json.loads(a), json.loads(b)]
        for kind, (a, b) in zip(process.KINDS, lines, strict=True)
    }


@pytest.fixture(params=process.KINDS)
def both(request, told):
    return request.param, told[request.param]


def test_all_processes_have_the_same_averages(both):
    _, (first, second) = both
    for key in ("averages", "names", "seen", "ema"):
        assert first[key] == second[key]


def test_averages_are_those_of_one_process(both):
    kind, (said, _) = both
    model = process.net(kind)
    averages = Averages(model, process.RULES)
    process.train(model, averages, range(5))
    tolerance = 0.02 if kind == "fsdp16" else 1e-5
    assert said["names"] == list(model.state_dict())
    for name, values in averages.average("ema").items():
        np.testing.assert_allclose(
            said["ema"][name], values.float().flatten(), rtol=tolerance, atol=tolerance
        )


def test_a_swap_reaches_the_forward_pass_and_is_undone(both):
    kind, (said, _) = both
    model = process.net(kind)
    averages = Averages(model, process.RULES)
    process.train(model, averages, range(3))
    expected = averages.model("ema")(torch.ones(2, 3, dtype=next(model.parameters()).dtype))
    np.testing.assert_allclose(said["seen"], expected.detach().float().flatten(), rtol=0.02)
    assert said["swapped"]


def test_training_goes_on_from_the_own_weights_after_a_swap(both):
    """FSDP2 keeps gathered weights of the root after a forward pass; they must not be stale."""
    kind, (said, _) = both
    model = process.net(kind)
    process.train(model, Averages(model, process.RULES), range(5))
    tolerance = 0.02 if kind == "fsdp16" else 1e-5
    for name, values in model.state_dict().items():
        np.testing.assert_allclose(
            said["weights"][name], values.float().flatten(), rtol=tolerance, atol=tolerance
        )


def test_resumed_is_bit_identical(both):
    assert all(said["resumed"] for said in both[1])


def test_each_process_keeps_its_part(both):
    kind, said = both
    parts = [one["memory"] for one in said]
    assert parts == ([29, 29] if kind == "ddp" else [20, 9])  # rows: 3 + 2, 1 + 0 and 2 + 1
    assert [one["sharded"] for one in said] == ([0, 0] if kind == "ddp" else [5, 5])

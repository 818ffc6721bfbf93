"""Ensembles as graphs: compiled without a break, exported with a fixed and with any batch size."""

import pytest
import torch
from torch import nn

from polyfuse.calibration import CalibratedPool, Temperature
from polyfuse.ensemble import Ensemble

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
BATCH = torch.export.Dim("batch", min=2, max=1000)


def members():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(4, k), nn.Tanh(), nn.Linear(k, 3)).eval() for k in (5, 6, 7)]


def pool(**options):
    fitted = CalibratedPool(**options)
    one = Temperature()
    one.temperature_ = 1.7
    fitted.calibrators_ = (one, one, one) if fitted.per_member else (one,)
    return fitted


CASES = {
    **{name: {"combiner": name} for name in ("mean_logit", "power_mean", "median", "hard_vote")},
    **{
        f"{name} weighted": {"combiner": name, "weights": [1.0, 0.0, 2.0]}
        for name in ("mean_probability", "hard_vote", "trimmed_mean")
    },
    "per class": {"weights": [[1, 2, 3], [1, 1, 1], [3, 2, 1]]},
    "labels": {"combiner": "mean_probability", "exclusive": False},
    "calibrated": {"combiner": pool()},
    "each calibrated": {"combiner": pool(per_member=True, weights=[1, 2, 1])},
    "own": {"combiner": lambda logits: logits.amax(0)},
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_exported_with_any_batch_size(case):
    ensemble = Ensemble(members(), **CASES[case])
    shapes = {"inputs": {0: BATCH}}
    program = torch.export.export(ensemble, (ROWS,), dynamic_shapes=shapes).module()
    for rows in (ROWS, torch.cat([ROWS, -ROWS])):
        expected = ensemble(rows)
        torch.testing.assert_close(program(rows), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["mean_logit", "mean_probability weighted", "per class"])
def test_compiled_without_a_break(case):
    torch._dynamo.reset()
    ensemble = Ensemble(members(), **CASES[case])
    compiled = torch.compile(ensemble, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ROWS), ensemble(ROWS), atol=1e-6, rtol=1e-5)
    compiled(ROWS).log()[:, 0].sum().backward()
    assert all(p.grad is not None for p in ensemble.parameters())


def test_exported_with_a_fixed_batch_and_with_members():
    ensemble = Ensemble(members())
    program = torch.export.export(ensemble, (ROWS,), {"return_members": True}).module()
    answer, logits = program(ROWS, return_members=True)
    torch.testing.assert_close(answer, ensemble(ROWS))
    torch.testing.assert_close(logits, ensemble.logits(ROWS))


def test_weights_of_a_graph_are_a_buffer_or_the_last_that_were_loaded():
    one = Ensemble(members(), weights=[1.0, 1.0, 1.0])
    program = torch.export.export(one, (ROWS,))
    assert "weights" in program.state_dict
    other = Ensemble(members(), "hard_vote", weights=[1.0, 1.0, 1.0])
    other.load_state_dict(other.state_dict() | {"weights": torch.tensor([9.0, 1.0, 1.0])})
    voted = torch.export.export(other, (ROWS,)).module()(ROWS)
    assert torch.equal(voted, other(ROWS))
    assert torch.equal(voted, other.members[0](ROWS).argmax(-1))


def test_a_graph_always_loops():
    same = [nn.Linear(4, 3) for _ in range(3)]
    ensemble = Ensemble(same, executor="vmap")
    program = torch.export.export(ensemble, (ROWS,))
    assert sum(node.target is torch.ops.aten.linear.default for node in program.graph.nodes) == 3


def test_the_logits_are_exported_by_a_module_around_them():
    class Logits(nn.Module):
        def __init__(self, ensemble):
            super().__init__()
            self.ensemble = ensemble

        def forward(self, rows):
            return self.ensemble.logits(rows)

    whole = Logits(Ensemble(members()))
    torch.testing.assert_close(torch.export.export(whole, (ROWS,)).module()(ROWS), whole(ROWS))

"""Loop or vmap: the same answers, measured once, nothing stale, and the loop wherever vmap errs."""

import copy
import time

import pytest
import torch
from torch import nn

from polyfuse.ensemble import Ensemble
from polyfuse.errors import DataError

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, rows):
        return self.head(self.layer(rows[:, None]))[:, 0]


ARCHITECTURES = {
    "mlp": mlp,
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(4, 3)
    ),
    "transformer": lambda: Transformer().eval(),
}


def alike(make=mlp, count=5, seed=0):
    torch.manual_seed(seed)
    return [make() for _ in range(count)]


@pytest.fixture
def vmap_wins(monkeypatch):
    """Let the measurement come out for vmap."""
    monkeypatch.setattr("polyfuse.ensemble.choosing._faster", lambda vmapped, loop: "vmap")


@pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_vmap_answers_as_the_loop(make, mode):
    members = alike(make)
    with mode():
        expected = Ensemble(members, executor="loop").logits(ROWS)
        got = Ensemble(members, executor="vmap").logits(ROWS)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_vmap_does_one_by_one_is_looped_over(vmap_wins):
    assert Ensemble(alike(ARCHITECTURES["transformer"])).chosen(ROWS) == "loop"


def test_gradients_flow_through_vmap():
    members = alike()
    twins = copy.deepcopy(members)
    for each, executor in ((members, "vmap"), (twins, "loop")):
        Ensemble(each, executor=executor)(ROWS)[:, 0].sum().backward()
    for member, twin in zip(members, twins, strict=True):
        for got, expected in zip(member.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_whatever_changes_the_members_shows(vmap_wins):
    members = alike()
    ensemble = Ensemble(members)

    def follows():
        for member in members:
            assert not member.training
        expected = torch.stack([member(ROWS.to(members[0][0].weight)) for member in members])
        got = ensemble.logits(ROWS.to(members[0][0].weight))
        assert ensemble.chosen(ROWS.to(members[0][0].weight)) == "vmap"
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    follows()
    members[1].load_state_dict(alike(seed=1)[0].state_dict())
    follows()
    members[2][0].weight.data.mul_(3)
    follows()
    members[3][0].weight.detach().numpy()[:] = 1.0
    follows()
    members[0][0].weight = nn.Parameter(torch.ones(8, 4))
    follows()
    members[4][3] = nn.Linear(8, 3).eval()
    follows()
    members[4][1].running_mean.fill_(2.0)
    follows()
    ensemble.members[1] = members[1] = alike(seed=2)[0]
    follows()
    ensemble.double()
    follows()


@torch.no_grad()
def test_members_that_grow_apart_are_looped_over(vmap_wins):
    changes = {
        "submodule": lambda member: member.__setitem__(2, nn.Tanh()),
        "shape": lambda member: member.__setitem__(3, nn.Linear(8, 3, bias=False)),
        "attribute": lambda member: setattr(member[1], "eps", 5.0),
        "mode": lambda member: member[1].train(),
        "hook": lambda member: member[3].register_forward_hook(lambda m, i, output: output + 1),
        "parameter": lambda member: setattr(member[0], "extra", nn.Parameter(torch.ones(1))),
    }
    for name, change in changes.items():
        members = alike()
        ensemble = Ensemble(members)
        assert ensemble.chosen(ROWS) == "vmap"
        change(members[2])
        expected = torch.stack([member(ROWS) for member in copy.deepcopy(members)])
        torch.testing.assert_close(ensemble.logits(ROWS), expected, msg=name)
        assert ensemble.chosen(ROWS) == "loop", name


class Odd(nn.Module):
    """A member that vmap cannot run, or would run wrong."""

    def __init__(self, way):
        super().__init__()
        self.net, self.way = nn.Linear(4, 3), way
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, rows):
        if self.way == "branches" and self.net(rows).sum() > 0:
            return rows[:, :3]
        if self.way == "counts":
            self.calls += 1
        if self.way == "replaces":
            self.calls = self.calls + 1
        if self.way == "draws":
            return self.net(rows) + torch.rand(len(rows), 3)
        if self.way == "wraps":
            return {"logits": self.net(rows)}
        return self.net(rows)


@pytest.mark.parametrize("way", ["branches", "counts", "replaces", "draws"])
@torch.no_grad()
def test_what_vmap_cannot_do_is_looped_over(way, vmap_wins):
    members = alike(lambda: Odd(way).eval(), 3)
    twins = copy.deepcopy(members)
    torch.manual_seed(3)
    expected = torch.stack([twin(ROWS) for twin in twins])
    torch.manual_seed(3)
    ensemble = Ensemble(members)
    assert torch.equal(ensemble.logits(ROWS), expected)  # no random number was drawn in vain
    assert ensemble.chosen(ROWS) == "loop"


@pytest.mark.parametrize("way", ["branches", "counts", "replaces"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_vmap_that_was_asked_for_says_what_it_cannot_do(way, mode):
    ensemble = Ensemble(alike(lambda: Odd(way).eval(), 3), executor="vmap")
    with mode(), pytest.raises(DataError, match="executor='vmap' cannot run these members"):
        ensemble(ROWS)


@torch.no_grad()
def test_selected_outputs_are_vmapped(vmap_wins):
    members = alike(lambda: Odd("wraps").eval(), 3)
    ensemble = Ensemble(members, select="logits")
    assert ensemble.chosen(ROWS) == "vmap"
    expected = torch.stack([member.net(ROWS) for member in members])
    torch.testing.assert_close(ensemble.logits(ROWS), expected)


@torch.no_grad()
def test_plain_attributes_that_differ_keep_members_apart(vmap_wins):
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.net, self.scale = nn.Linear(4, 3), scale

        def forward(self, rows):
            return self.net(rows) * self.scale

    unlike = Ensemble([Scaled(1.0), Scaled(2.0)])
    assert unlike.chosen(torch.zeros(6, 4)) == "loop"
    assert Ensemble([Scaled(2.0), Scaled(2.0)]).chosen(ROWS) == "vmap"


@torch.no_grad()
def test_batch_norm_in_training_learns_as_in_a_loop(vmap_wins):
    members = alike()
    twins = copy.deepcopy(members)
    ensemble = Ensemble(members).train()
    ensemble(ROWS)
    for twin in twins:
        twin.train()(ROWS)
    for member, twin in zip(members, twins, strict=True):
        assert torch.equal(member[1].running_mean, twin[1].running_mean)
    with pytest.raises(DataError, match=r"updates its buffers while training; call .eval\(\)"):
        Ensemble(members, executor="vmap")(ROWS)


def test_dropout_is_drawn_for_each_member():
    dropping = nn.Sequential(nn.Linear(4, 50), nn.Dropout())
    same = [copy.deepcopy(dropping).train() for _ in range(3)]
    zeros = Ensemble(same, executor="vmap").logits(ROWS) == 0
    assert not torch.equal(zeros[0], zeros[1])


@torch.no_grad()
def test_the_faster_is_chosen_once_for_similar_inputs(monkeypatch):
    measured = []

    def slow(function):
        measured.append(1)
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    monkeypatch.setattr("polyfuse.ensemble.choosing._timed", slow)
    ensemble = Ensemble(alike(count=3))
    chosen = ensemble.chosen(ROWS)
    assert chosen in ("loop", "vmap")
    assert f"chosen={chosen}" in repr(ensemble)
    first = len(measured)
    assert first >= 2
    ensemble(ROWS)
    ensemble(ROWS[:5])
    assert len(measured) == first
    ensemble(torch.cat([ROWS] * 9))
    assert len(measured) > first


@pytest.mark.parametrize(("vmap", "loop", "chosen"), [(1.0, 2.0, "vmap"), (1.0, 1.2, "loop")])
@torch.no_grad()
def test_vmap_has_to_win_clearly(vmap, loop, chosen, monkeypatch):
    times = iter([vmap, loop] * 50)
    monkeypatch.setattr("polyfuse.ensemble.choosing._timed", lambda function: next(times))
    assert Ensemble(alike()).chosen(ROWS) == chosen


def test_gradients_are_recorded_by_the_loop(vmap_wins):
    assert Ensemble(alike()).chosen(ROWS) == "loop"


def test_vmap_of_different_members_is_refused():
    for members, said in [
        ([nn.Linear(4, 3), nn.Linear(4, 3, bias=False)], "member 1 has tensors of other names"),
        ([nn.Linear(4, 3), nn.Linear(4, 2)], "member 1 "),
        ([nn.Linear(4, 3), nn.Identity()], "member 1 is a Identity, member 0's a Linear"),
        ([nn.ReLU(), nn.ReLU()], "share all parameters, or have none"),
        ([torch.relu, torch.tanh], "member 1"),
    ]:
        with pytest.raises(DataError, match=said):
            Ensemble(members, executor="vmap")


@torch.no_grad()
def test_shared_trunks_are_not_stacked():
    trunk = nn.Linear(4, 8)
    members = [nn.Sequential(trunk, nn.Linear(8, 3)) for _ in range(4)]
    ensemble = Ensemble(members, executor="vmap")
    expected = Ensemble(members, executor="loop").logits(ROWS)
    torch.testing.assert_close(ensemble.logits(ROWS), expected)
    [execution] = ensemble._executions.values()
    assert execution.vmapped.shared == [True, True, False, False]


def test_replicas_of_data_parallel_answer_for_themselves(vmap_wins):
    ensemble = Ensemble(alike(), weights=[1, 0, 2, 1, 1])
    replica = ensemble._replicate_for_data_parallel()
    assert replica._is_replica
    with torch.no_grad():
        assert replica.chosen(ROWS) == "loop"
        expected = ensemble(ROWS)
        torch.testing.assert_close(nn.DataParallel(ensemble)(ROWS), expected)

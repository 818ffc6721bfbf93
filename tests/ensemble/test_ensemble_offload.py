"""Members that rest elsewhere and come one at a time; batches, one after the other."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from polyfuse.ensemble import Ensemble, looping, offload
from polyfuse.errors import DataError

CPU = torch.device("cpu")


def members(count=3):
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)) for _ in range(count)]


def batches():
    torch.manual_seed(1)
    return [torch.randn(n, 4) for n in (5, 5, 2)]


@pytest.fixture
def log(monkeypatch):
    """Write down who comes, runs and leaves."""
    seen = []

    @contextlib.contextmanager
    def visiting(member, device, home):
        seen.append("come")
        yield
        seen.append("leave")

    for module in (looping, __import__("polyfuse.ensemble", fromlist=["visiting"])):
        monkeypatch.setattr(module, "visiting", visiting)
    return seen


@pytest.mark.parametrize("combiner", ["mean_probability", "mean_logit", "median", "hard_vote"])
@pytest.mark.parametrize("weights", [None, [1, 0, 3]])
def test_predicts_the_same_as_each_batch_alone(combiner, weights):
    if combiner == "median" and weights:
        weights = [1, 1, 3]
    each = members()
    resident = Ensemble(each, combiner, weights=weights)
    resting = Ensemble(each, combiner, weights=weights, offload="cpu")
    assert resident.training
    predicted = resident.predict(batches())
    assert resident.training
    resident.eval()
    resting.eval()
    with torch.no_grad():
        expected = torch.cat([resident(batch) for batch in batches()])
        alone = torch.cat([resting(batch) for batch in batches()])
    assert torch.equal(predicted, expected)
    assert torch.equal(resting.predict(batches()), alone)
    torch.testing.assert_close(alone, expected, atol=1e-6, rtol=0)


def test_each_member_comes_once_for_all_batches(log):
    each = members()
    for number, member in enumerate(each):
        member.register_forward_hook(lambda *_, number=number: log.append(number))
    Ensemble(each, offload="cpu").predict(batches())
    assert log == [say for n in range(3) for say in ("come", n, n, n, "leave")]


def test_a_member_without_a_weight_does_not_come(log):
    Ensemble(members(), weights=[0, 1, 0], offload="cpu").predict(batches())
    assert log == ["come", "leave"]


def test_one_batch_at_a_time_brings_each_member_too(log):
    with torch.no_grad():
        Ensemble(members(), offload="cpu").eval()(batches()[0])
    assert log == ["come", "leave"] * 3


def test_outputs_are_added_up_not_kept():
    resting = Ensemble(members(), offload="cpu").eval()
    gathered = resting._gathered(resting._heard())
    with torch.no_grad():
        for member in resting.members:
            gathered.add(member(batches()[0]))
    assert gathered.outputs == []
    torch.testing.assert_close(gathered.answer(), Ensemble(resting.members)(batches()[0]))


def test_a_visitor_goes_home_with_the_very_tensors_it_came_with():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    net[0].weight.grad = torch.ones(3, 4)
    before = {name: t.data_ptr() for name, t in net.state_dict().items()}
    values = net[0].weight.detach().clone()
    moved = []

    def to(device):
        moved.append(device)
        for parameter in net.parameters():
            parameter.data = parameter.data.clone()
        return net

    net.to = to  # no second device here: a copy stands for it
    with offload.visiting(net, torch.device("meta"), CPU):
        assert net[0].weight.data_ptr() != before["0.weight"]
        net[1].running_mean += 1
    assert moved == [torch.device("meta")]
    after = net.state_dict()
    assert {n: t.data_ptr() for n, t in after.items()} == before
    assert torch.equal(net[0].weight, values)
    assert net[1].running_mean.tolist() == [1.0, 1.0, 1.0]


def test_batches_are_tensors_tuples_dicts_and_loaders():
    each = [lambda a, b: a * b, lambda a, b: a + b]
    rows = torch.arange(6.0).view(6, 1)
    expected = ((rows * (rows + 1)) + (rows + rows + 1)) / 2
    for options in ({}, {"offload": "cpu"}):
        ensemble = Ensemble(each, "mean_value", **options)
        loader = DataLoader(TensorDataset(rows, rows + 1), batch_size=4)
        assert torch.equal(ensemble.predict(loader), expected)
        dicts = ({"a": a, "b": b} for a, b in loader)
        assert torch.equal(ensemble.predict(dicts), expected)
        labelled = [(a, b, "label") for a, b in loader]
        assert torch.equal(ensemble.predict(labelled, inputs=lambda batch: batch[:2]), expected)


def test_a_shuffled_loader_shows_all_members_the_same_rows():
    rows = torch.randn(64, 3)
    loader = DataLoader(TensorDataset(rows), batch_size=8, shuffle=True)
    torch.manual_seed(5)
    mean = Ensemble([nn.Identity(), nn.Identity()], "mean_value", offload="cpu").predict(loader)
    torch.testing.assert_close(mean.sort(0).values, rows.sort(0).values)
    assert {tuple(row) for row in mean.tolist()} == {tuple(row) for row in rows.tolist()}


def test_faults_are_told():
    resting = Ensemble(members(), offload="cpu")
    with pytest.raises(DataError, match=r"only predicts: call it under torch.no_grad\(\)"):
        resting(batches()[0])
    for options in ({}, {"offload": "cpu"}):
        with pytest.raises(DataError, match="no batches"):
            Ensemble(members(), **options).predict([])
        bad = Ensemble([nn.Identity(), lambda x: x * torch.nan], **options)
        with pytest.raises(DataError, match=r"member 1 \(Function\) has NaN"):
            bad.predict(batches())
        apart = Ensemble([nn.Linear(4, 3), nn.Linear(4, 2)], **options)
        with pytest.raises(DataError, match=r"member 0 \(Linear\) \(5, 3\).*1 \(Linear\) \(5, 2\)"):
            apart.predict(batches())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("combiner", ["mean_probability", "median"])
def test_members_visit_a_gpu(combiner):
    each = [nn.Linear(4, 3), nn.Linear(4, 3).eval()]
    before = [p.data_ptr() for member in each for p in member.parameters()]
    resting = Ensemble(each, combiner, weights=[1, 2], offload="cpu")
    expected = resting.predict(batches())
    torch.testing.assert_close(resting.predict(batches(), device="cuda"), expected)
    with torch.no_grad():
        assert resting(batches()[0].cuda()).device.type == "cuda"
    assert [p.data_ptr() for member in each for p in member.parameters()] == before
    whole = Ensemble(each, combiner, weights=[1, 2]).cuda()
    assert whole.weights.dtype == torch.float64
    torch.testing.assert_close(whole.predict(batches()), expected)
    with torch.no_grad():
        assert whole.chosen(batches()[0].cuda()) in ("loop", "vmap")

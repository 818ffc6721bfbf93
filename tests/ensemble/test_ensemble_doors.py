"""What goes into an ensemble: fitted combinations, inputs and outputs of all kinds, faults."""

import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse.calibration import CALIBRATORS, CalibratedPool
from polyfuse.combine import mean_probability
from polyfuse.ensemble import Ensemble
from polyfuse.errors import DataError
from polyfuse.greedy_selection import GreedySelection
from polyfuse.simplex import SimplexWeights

CLASSES, ROWS = 3, 60


def members(count=4):
    torch.manual_seed(1)
    return [nn.Linear(5, CLASSES).double() for _ in range(count)]


def held_out(each):
    torch.manual_seed(2)
    inputs = torch.randn(ROWS, 5, dtype=torch.float64)
    with torch.no_grad():
        probabilities = torch.stack([member(inputs).softmax(-1) for member in each]).numpy()
    truth = probabilities.mean(0).argmax(-1)
    flips = np.random.default_rng(0).random(ROWS) < 0.3
    return inputs, probabilities, np.where(flips, (truth + 1) % CLASSES, truth)


FITTED = {
    "greedy": GreedySelection(rounds=7),
    "simplex": SimplexWeights(entropy=0.01),
    "per class": SimplexWeights(per_class=True, entropy=0.01),
    **{name: CalibratedPool(method=name) for name in CALIBRATORS},
    **{f"{n} weighted": CalibratedPool(method=n, weights=[1, 0, 2, 1]) for n in CALIBRATORS},
    **{f"{n} each": CalibratedPool(method=n, per_member=True) for n in CALIBRATORS},
    "each weighted": CalibratedPool(per_member=True, weights=[1, 0, 2, 1]),
}


@pytest.mark.parametrize("fitted", FITTED.values(), ids=FITTED)
def test_answers_as_what_was_fitted_predicts(fitted, monkeypatch):
    each = members()
    inputs, probabilities, labels = held_out(each)
    fitted.fit(probabilities, labels)
    ensemble = Ensemble(each, fitted)
    expected = torch.from_numpy(fitted.predict_proba(probabilities))
    torch.testing.assert_close(ensemble(inputs), expected, atol=1e-9, rtol=0)
    monkeypatch.setattr("polyfuse.ensemble.gathering.AT_ONCE", 0)
    torch.testing.assert_close(ensemble(inputs), expected, atol=1e-9, rtol=0)
    other = Ensemble(members(), fitted)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(other(inputs), ensemble(inputs))


@pytest.mark.parametrize("method", CALIBRATORS)
def test_gradients_flow_through_calibration(method):
    each = members()
    inputs, probabilities, labels = held_out(each)
    ensemble = Ensemble(each, CalibratedPool(method=method).fit(probabilities, labels))
    ensemble(inputs)[:, 0].sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in ensemble.parameters())


def test_numbers_and_arrays_and_anything_with_weights():
    each = members()
    inputs, probabilities, _ = held_out(each)
    numbers = SimplexWeights(loss="mse").fit(probabilities[..., 0], probabilities[1, :, 0])
    firsts = [nn.Sequential(one, nn.Softmax(-1)) for one in each]
    mean = Ensemble(firsts, numbers, select=lambda output: output[:, 0])(inputs)
    np.testing.assert_allclose(mean.detach(), probabilities[1, :, 0], atol=1e-4)
    logits = Ensemble(each).logits(inputs)
    for weights in ([1, 2, 3, 4], np.arange(1, 5), torch.arange(1, 5)):
        for combiner in (weights, SimpleNamespace(weights_=weights)):
            expected = mean_probability(logits, weights=[1, 2, 3, 4])
            torch.testing.assert_close(Ensemble(each, combiner)(inputs), expected)


@dataclass
class ModelOutput:
    """As Hugging Face's."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Tells(nn.Module):
    """A member that returns its logits wrapped."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = nn.Linear(5, CLASSES), wrap

    def forward(self, rows, scale=1.0):
        return self.wrap(self.net(rows) * scale)


WRAPS = {
    "object": (ModelOutput, "logits"),
    "dict": (lambda z: {"logits": z, "more": z + 1}, "logits"),
    "tuple": (lambda z: (z, "hidden"), 0),
    "function": (lambda z: {"deep": [z]}, lambda output: output["deep"][0]),
}


@pytest.mark.parametrize("wrap", WRAPS, ids=str)
def test_logits_are_selected(wrap):
    tell, select = WRAPS[wrap]
    rows = torch.randn(6, 5)
    wrapped, plain = Tells(tell), Tells(lambda z: z)
    expected = torch.stack([wrapped.net(rows), plain.net(rows)])
    ensemble = Ensemble([wrapped, plain], select=[select, None])
    assert torch.equal(ensemble.logits(rows), expected)
    if not callable(select):  # a tensor is taken as it is
        assert torch.equal(Ensemble([wrapped, plain], select=select).logits(rows), expected)


def test_arguments_pass_through():
    rows = torch.randn(6, 5)
    ensemble = Ensemble([Tells(lambda z: z) for _ in range(2)])
    doubled = 2 * ensemble.logits(rows)
    torch.testing.assert_close(ensemble.logits(rows, 2.0), doubled)
    torch.testing.assert_close(ensemble.logits(rows, scale=2.0), doubled)
    torch.testing.assert_close(ensemble.logits(rows=rows, scale=2.0), doubled)
    batch = {"rows": rows, "scale": 2.0}
    assert ensemble(**batch).shape == (6, CLASSES)
    takes = Ensemble([lambda pair: pair["a"] + pair["b"][0]], "mean_value")
    assert takes({"a": torch.ones(2), "b": (torch.ones(2),)}).tolist() == [2.0, 2.0]


def test_functions_and_methods_are_members():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def encode(self, rows):
            return self.layer(rows)

    ensemble = Ensemble([Encoder().encode, lambda rows: rows[:, :3]]).double()
    assert ensemble(torch.zeros(2, 4, dtype=torch.float64)).shape == (2, 3)
    assert len(list(ensemble.parameters())) == 2
    assert re.search(r"Function\(\s*encode", repr(ensemble))


def refused(call, *said):
    with pytest.raises(DataError) as raised:
        call()
    for part in said:
        assert part in str(raised.value)


def test_members_that_are_none_are_refused_at_once():
    refused(lambda: Ensemble([nn.Linear(1, 1), 3, "a.pt"]), "member 1 is 3", "member 2 is 'a.pt'")
    refused(lambda: Ensemble([nn.Linear]), "member 0 is <class")
    refused(lambda: Ensemble(nn.Linear(1, 1)), "give a list")


def test_unknown_combiners_and_options_are_refused():
    each = members(2)
    refused(lambda: Ensemble(each, "mean_logits"), "did you mean 'mean_logit'?", "package.module")
    refused(lambda: Ensemble(each, "no.such:thing"), "cannot import 'no.such:thing'")
    refused(lambda: Ensemble(each, "math:pi"), "name a function")
    refused(lambda: Ensemble(each, GreedySelection()), "call fit(...) first")
    refused(lambda: Ensemble(each, CalibratedPool()), "call fit(...) first")
    refused(lambda: Ensemble(each, object()), "expected a combiner")
    refused(lambda: Ensemble(each, executor="vmpa"), "'auto', 'loop', 'vmap'")
    refused(lambda: Ensemble(each, select=[0]), "1 choices for 2 members")
    refused(lambda: Ensemble(each, select=1.5), "select is 1.5")
    with pytest.raises(Exception, match="has no option 'cuts'; did you mean 'cut'"):
        Ensemble(each, "trimmed_mean", cuts=1)
    with pytest.raises(Exception, match="has no option 'weights'"):
        Ensemble(each, "maximum", weights=[1, 1])


@pytest.mark.parametrize(
    "weights", [[1, 2, 3], [1, -1], [0, 0], [np.nan, 1], np.ones((3, 3)), [[1, 0], [1, 0]]], ids=str
)
def test_wrong_weights_are_refused(weights):
    refused(lambda: Ensemble(members(2), weights=weights), "weights")


def test_fitted_on_other_members_is_refused():
    _, probabilities, labels = held_out(members())
    for fitted in FITTED.values():
        fitted.fit(probabilities, labels)
    for name in ("greedy", "per class", "each weighted", "beta weighted", "temperature each"):
        refused(lambda name=name: Ensemble(members(2), FITTED[name]), "4")


def test_outputs_that_differ_are_told_all_at_once():
    each = [nn.Linear(5, 3), nn.Linear(5, 4), nn.Linear(5, 3), nn.Linear(5, 2)]
    for combiner in ("mean_probability", "median", lambda z: z.mean(0)):
        refused(
            lambda combiner=combiner: Ensemble(each, combiner)(torch.zeros(2, 5)),
            "member 0 (Linear) (2, 3)",
            "member 1 (Linear) (2, 4)",
            "member 3 (Linear) (2, 2)",
        )
    each = [lambda x: (x, x), nn.Identity(), lambda x: {"a": x}, lambda x: None]
    refused(
        lambda: Ensemble(each)(torch.zeros(2, 5)),
        "member 0 (Function) returned a tuple (Tensor, Tensor)",
        "member 2 (Function) returned a dict with keys a",
        "member 3 (Function) returned nothing",
        "select=",
    )
    refused(lambda: Ensemble(each[:1], select=2)(torch.zeros(2, 5)), "select=2 finds nothing")
    mixed = [nn.Identity(), lambda x: x.double()]
    refused(lambda: Ensemble(mixed)(torch.zeros(2, 5)), "float32 on cpu", "float64 on cpu")


def test_outputs_that_differ_are_told_where_they_are_large(monkeypatch):
    monkeypatch.setattr("polyfuse.ensemble.gathering.AT_ONCE", 0)
    test_outputs_that_differ_are_told_all_at_once()


def test_members_of_several_dtypes_are_told_all_at_once():
    each = [nn.Linear(5, 3), nn.Linear(5, 3).double(), nn.Linear(5, 3).bfloat16(), nn.ReLU()]
    refused(
        lambda: Ensemble(each)(torch.zeros(2, 5)),
        "member 0 (Linear) is float32 on cpu",
        "member 1 (Linear) is float64 on cpu",
        "member 2 (Linear) is bfloat16 on cpu",
        ".to(device, dtype)",
    )


def test_a_members_own_error_says_whose_it_is():
    def fails(rows):
        raise ValueError("no such rows")

    with pytest.raises(ValueError, match="no such rows") as raised:
        Ensemble([nn.Identity(), fails])(torch.zeros(2, 3))
    assert raised.value.__notes__ == ["raised by member 1 (Function) of an ensemble"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.zeros(4, 3).long(), "int64 of shape"),
        (torch.zeros(4), "with 3 or more axes"),
        (torch.zeros(4, 1), "one class"),
    ],
    ids=["integers", "one axis", "one class"],
)
def test_outputs_the_combiner_cannot_take(output, said):
    refused(lambda: Ensemble([lambda _: output])(torch.zeros(1)), said)


def test_members_that_came_later_are_refused():
    rows = torch.zeros(2, 5, dtype=torch.float64)
    for calls in (0, 2):
        ensemble = Ensemble(members(2))
        for _ in range(calls):
            ensemble(rows)
        ensemble.members.append(nn.Linear(5, 3).double())
        refused(lambda ensemble=ensemble: ensemble(rows), "made of 2 members and has 3 now")


def test_what_is_known_is_still_checked():
    """The second call takes the shortest way: its answers and its errors are the first one's."""
    rows, broken = torch.randn(2, 5), {}

    def moody(inputs):
        found = broken.get("how", lambda x: x)(inputs)
        if isinstance(found, Exception):
            raise found
        return found

    ensemble = Ensemble([nn.Identity(), moody])
    first = ensemble(rows)
    assert ensemble._known
    assert torch.equal(ensemble(rows), first)
    broken["how"] = lambda x: x[:, :3]
    refused(lambda: ensemble(rows), "member 0 (Identity) (2, 5)", "member 1 (Function) (2, 3)")
    broken["how"] = lambda x: x.double()
    refused(lambda: ensemble(rows), "float64 on cpu")
    broken["how"] = lambda x: {"logits": x}
    refused(lambda: ensemble(rows), "member 1 (Function) returned a dict with keys logits")
    broken["how"] = lambda x: ValueError("moody")
    with pytest.raises(ValueError, match="moody") as raised:
        ensemble(rows)
    assert raised.value.__notes__ == ["raised by member 1 (Function) of an ensemble"]
    ensemble.check, broken["how"] = True, lambda x: x * torch.nan
    refused(lambda: ensemble(rows), "member 1 (Function) has NaN")


def test_a_combiner_that_answers_in_the_wrong_shape():
    rows = torch.zeros(4, 3)
    for wrong, said in [
        (lambda z: z, "shape (2, 4, 3)"),
        (lambda z: z.mean(), "shape ()"),
        (lambda z: z.mean(1), "shape (2, 3)"),
        (lambda z: None, "NoneType"),
    ]:
        refused(lambda wrong=wrong: Ensemble([nn.Identity()] * 2, wrong)(rows), said, "<lambda>")

"""Training on inputs that are changed to raise the loss: the step, its bounds, what it moves."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import tiny
from polyfuse import FitOptions, fit_member, mlp
from polyfuse.errors import TrainingError
from polyfuse.fit.adversarial import attackable, attacked, fgsm, statistics_kept
from polyfuse.optimizers import sgd
from polyfuse.schedules import constant

LEARN, STOP = np.arange(16), np.arange(16, 24)
within = partial(fgsm, eps=0.1, low=-3.0, high=3.0)
plain = partial(FitOptions, epochs=1, accelerator="cpu", batch_size=16, schedule=constant)
one_step = partial(plain, optimizer=partial(sgd, lr=1.0, momentum=0.0))


def net(*, seed=0, norm=False):
    torch.manual_seed(seed)
    if norm:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return mlp(inputs=4, classes=2, hidden=8)


def fit(model, options, **others):
    return fit_member(model, tiny.arrays(), LEARN, STOP, options, seed=3, **others)


# The step ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    eps=st.floats(1e-3, 2),
    low=st.floats(-2, 0),
    width=st.floats(0.1, 3),
    outside=st.booleans(),
)
def test_no_input_moves_further_than_eps_or_out_of_the_bounds(seed, eps, low, width, outside):
    draw, high = torch.Generator().manual_seed(seed), low + width
    x = low + width * torch.rand(5, 3, generator=draw, dtype=torch.float64)
    if outside:
        x = x + torch.randn(5, 3, generator=draw, dtype=torch.float64)
    slope = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    slope[0] = 0
    moved = fgsm(x, slope, eps=eps, low=low, high=high)
    assert float((moved - x).abs().max()) <= eps * (1 + 1e-12)
    assert torch.equal(moved[0], x[0])
    # Inside, or where an augmentation has put it, never further out.
    assert bool((moved <= x.clamp_min(high)).all())
    assert bool((moved >= x.clamp_max(low)).all())
    inside = (x >= low) & (x <= high)
    wanted = (x + eps * slope.sign()).clamp(low, high)
    torch.testing.assert_close(moved[inside], wanted[inside])


def test_the_loss_grows_to_first_order():
    model, data = net(), tiny.arrays()
    x, labels = data.values[LEARN].clone().requires_grad_(), torch.from_numpy(data.labels[LEARN])
    before = functional.cross_entropy(model(x), labels)
    (slope,) = torch.autograd.grad(before, x)
    for eps in (1e-3, 1e-2):
        moved = fgsm(x.detach(), slope, eps=eps, low=-9.0, high=9.0)
        gain = (functional.cross_entropy(model(moved), labels) - before).detach()
        # Of all steps within eps, this one's gain is the largest there is: eps times |slope|_1.
        assert float(gain) == pytest.approx(eps * float(slope.abs().sum()), rel=0.1)


def test_bounds_may_be_those_of_a_channel():
    mean, deviation = torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.2, 0.1, 0.5])
    x = torch.rand(2, 3, 4, 5)
    slope = torch.randn(2, 3, 4, 5)
    normal = (x - mean[:, None, None]) / deviation[:, None, None]
    moved = fgsm(
        normal,
        slope,
        eps=(0.03 / deviation).tolist(),
        low=((0 - mean) / deviation).tolist(),
        high=((1 - mean) / deviation).tolist(),
    )
    back = moved * deviation[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(back, fgsm(x, slope, eps=0.03))


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"eps": -1.0}, {"eps": 0.1, "low": 1.0}])
def test_bounds_that_leave_nothing_are_refused(wrong):
    with pytest.raises(TrainingError, match="type eps > 0 and low < high"):
        fgsm(torch.zeros(2, 2), torch.ones(2, 2), **wrong)


def test_bounds_of_other_channels_are_refused():
    with pytest.raises(TrainingError, match=r"2 bounds for inputs of shape \(1, 3\)"):
        fgsm(torch.zeros(1, 3), torch.ones(1, 3), eps=[0.1, 0.1])


# In training ------------------------------------------------------------------------------------


def test_a_step_goes_down_the_mean_of_both_losses():
    data, model, by_hand = tiny.arrays(), net(), net()
    fitted = fit(model, one_step(adversary=within))
    x, labels = data.values[LEARN], torch.from_numpy(data.labels[LEARN])
    inputs = x.clone().requires_grad_()
    true = functional.cross_entropy(by_hand(inputs), labels)
    (slope,) = torch.autograd.grad(true, inputs, retain_graph=True)
    changed = functional.cross_entropy(by_hand(within(x, slope)), labels)
    loss = (true + changed) / 2
    loss.backward()
    for name, parameter in by_hand.named_parameters():
        wanted = parameter - parameter.grad
        torch.testing.assert_close(model.state_dict()[name], wanted.detach(), rtol=1e-5, atol=1e-6)
    assert fitted.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_an_adversary_that_changes_nothing_changes_no_gradient():
    without, with_it = net(), net()
    fit(without, one_step())
    fit(with_it, one_step(adversary=lambda inputs, gradient: inputs))
    for name, value in without.state_dict().items():
        torch.testing.assert_close(with_it.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_adversary_sees_the_gradient_of_the_loss_however_much_is_accumulated():
    seen = []

    def watching(inputs, gradient):
        seen.append((inputs, gradient / gradient.abs().sum()))
        return inputs

    still = partial(plain, optimizer=partial(sgd, lr=0.0), batch_size=4)
    for accumulate in (1, 4):
        fit(net(), still(adversary=watching, accumulate=accumulate))
    data, order = tiny.arrays(), np.random.default_rng([3, 0]).permutation(16)
    for i, places in enumerate(np.array_split(order, 4)):
        inputs = data.values[LEARN[places]].clone().requires_grad_()
        labels = torch.from_numpy(data.labels[LEARN[places]])
        functional.cross_entropy(net()(inputs), labels).backward()
        for x, slope in (seen[i], seen[4 + i]):
            assert torch.equal(x, inputs)
            torch.testing.assert_close(slope, inputs.grad / inputs.grad.abs().sum())


def test_running_statistics_are_those_of_true_inputs_alone():
    far = partial(fgsm, eps=2.0, low=-9.0, high=9.0)
    without, with_it = net(norm=True), net(norm=True)
    still = partial(plain, optimizer=partial(sgd, lr=0.0), batch_size=8)
    fit(without, still())
    fit(with_it, still(adversary=far))
    assert tiny.same(without.state_dict(), with_it.state_dict())
    assert int(with_it[1].num_batches_tracked) == 2


def test_batch_norm_normalises_changed_inputs_by_their_own_batch():
    model = net(norm=True).train()
    x = torch.randn(8, 4) + 5
    with statistics_kept(model):
        kept = model[1](model[0](x))
    assert model[1].track_running_stats
    torch.testing.assert_close(kept.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    assert float(model[1].running_mean.abs().max()) == 0


def test_it_makes_a_model_harder_to_fool():
    data = tiny.arrays()
    x, labels = data.values[LEARN], torch.from_numpy(data.labels[LEARN])
    strong = partial(fgsm, eps=0.3, low=-9.0, high=9.0)
    losses = {}
    for adversary in (None, strong):
        model = net()
        fit(model, plain(epochs=25, optimizer=partial(sgd, lr=0.3), adversary=adversary))
        inputs = x.clone().requires_grad_()
        functional.cross_entropy(model(inputs), labels).backward()
        fooled = strong(x, inputs.grad)
        losses[adversary] = float(functional.cross_entropy(model(fooled), labels).detach())
    assert losses[strong] < losses[None]


@pytest.mark.parametrize("others", [{}, {"accumulate": 3, "batch_size": 4, "clip": 0.5}])
def test_it_is_resumed_to_the_bit(others, tmp_path):
    def stop(done, total, note):
        if done == 1:
            raise KeyboardInterrupt

    options = plain(**{"epochs": 2, "batch_size": 8, "adversary": within, **others})
    with pytest.raises(KeyboardInterrupt):
        fit(net(norm=True), options, resume=tmp_path / "resume", notify=stop)
    again = fit(net(norm=True), options, resume=tmp_path / "resume")
    assert tiny.same(again.state, fit(net(norm=True), options).state)


def test_mixed_precision_gives_the_gradient_of_the_loss_too():
    whole, mixed = net(), net()
    fit(whole, one_step(adversary=within))
    fit(mixed, one_step(adversary=within, precision="bf16-mixed"))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(mixed.state_dict()[name], value, rtol=0.1, atol=0.02)


def test_tokens_cannot_be_moved_a_little():
    with pytest.raises(TrainingError, match=r"inputs are torch.int64, and only floats"):
        attackable(torch.arange(3))


@pytest.mark.parametrize(
    ("adversary", "message"),
    [
        (lambda x, slope: x[:1], r"float32 of \(2, 2\) to torch.float32 of \(1, 2\)"),
        (lambda x, slope: x.double(), "to torch.float64"),
    ],
)
def test_an_adversary_that_changes_the_shape_is_refused(adversary, message):
    with pytest.raises(TrainingError, match=f"adversary: it maps.*{message}"):
        attacked(adversary, torch.zeros(2, 2), torch.zeros(2, 2))


def test_a_loss_that_does_not_depend_on_the_inputs_is_refused():
    with pytest.raises(TrainingError, match="no gradient with respect to the inputs"):
        attacked(within, torch.zeros(2, 2), None)

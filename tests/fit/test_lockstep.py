"""Members in lock-step: the same numbers as one after another, to rounding; resumed bit for bit."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tiny
from polyfuse import Arrays, FitOptions, fit_member, mlp
from polyfuse.averaging import ema
from polyfuse.errors import CheckpointError, TrainingError
from polyfuse.fit import OutOfTime
from polyfuse.fit.lockstep import Lane, fit_together
from polyfuse.fit.stacked import Stack, Unstackable
from polyfuse.fit.stacked_optimizer import StackedOptimizer
from polyfuse.optimizers import adam, adamw, sgd

fixed = partial(FitOptions, accelerator="cpu", batch_size=8, epochs=3)
DATA = tiny.arrays(40, classes=3)
STOP = np.arange(32, 40)


def plain():
    return mlp(inputs=4, classes=3, hidden=8)


def normed():
    # No bias before batch-norm: its gradient is rounding alone, which Adam makes as large as any.
    layers = [nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def convolved():
    layers = [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1), nn.Dropout2d(0.3)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))


def lanes(make, options, count=3, *, weighted=False):
    """Return lanes that differ in all that members may differ in."""
    made = []
    for number in range(count):
        draw = np.random.default_rng(number)
        torch.manual_seed(number)
        learn = draw.integers(0, 32, 21 + number)  # a bootstrap; sizes as those of folds
        weights = draw.random(len(learn)) if weighted else None
        made.append(Lane(make(), learn, STOP, options, 7 + number, weights))
    return made


def alone(lane, data=DATA):
    rest = {"seed": lane.seed, "weights": lane.weights}
    return fit_member(copy.deepcopy(lane.model), data, lane.learn, lane.stop, lane.options, **rest)


def check_alike(given, data=DATA, **options):
    each = [alone(lane, data) for lane in given]
    for one, other in zip(each, fit_together(given, data, **options), strict=True):
        assert (one.best_epoch, one.fingerprint) == (other.best_epoch, other.fingerprint)
        for a, b in zip(one.history, other.history, strict=True):
            assert a == pytest.approx(b, rel=1e-5)
        for name, value in one.state.items():
            torch.testing.assert_close(other.state[name], value, rtol=1e-4, atol=1e-6)
    return each


# Equal to training alone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (plain, adamw),
        (normed, adamw),
        (normed, partial(sgd, lr=0.1)),
        (convolved, partial(torch.optim.RMSprop, lr=0.01, momentum=0.5)),
        (convolved, partial(adam, weight_decay=0.1)),
    ],
)
def test_each_member_is_what_it_would_be_alone(make, optimizer):
    check_alike(lanes(make, fixed(optimizer=optimizer)))


def test_weights_clipping_and_accumulation_are_each_members_own():
    options = fixed(clip=0.1, accumulate=2, optimizer=partial(sgd, lr=0.5))
    check_alike(lanes(normed, options, weighted=True))


def test_each_member_has_its_own_rate():
    given = [
        lane._replace(options=fixed(optimizer=partial(kind, lr=0.01 * (1 + number))))
        for kind in (adamw, sgd)
        for number, lane in enumerate(lanes(normed, fixed()))
    ]
    check_alike(given[:3])
    check_alike(given[3:])


def test_each_member_has_its_own_patience():
    options = fixed(epochs=5, patience=1, optimizer=partial(sgd, lr=0.01))
    each = check_alike(lanes(normed, options, 4))
    assert len({len(fitted.history) for fitted in each}) > 1


def test_a_stop_part_that_is_empty_keeps_the_last_epoch():
    given = [lane._replace(stop=STOP[:0]) for lane in lanes(plain, fixed())]
    assert [fitted.best_epoch for fitted in check_alike(given)] == [3, 3, 3]


def noise(inputs, generator):
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def test_augmentation_is_drawn_as_for_each_alone():
    check_alike(lanes(plain, fixed(augmentation=noise)))


def test_a_batch_that_members_share_is_loaded_and_augmented_once(monkeypatch):
    monkeypatch.setattr("polyfuse.fit.lockstep.PRELOADED", 0)
    calls = []

    def counted(inputs, generator):
        calls.append(tuple(inputs.shape))
        return noise(inputs, generator)

    options = fixed(augmentation=counted, order_seed=5)
    rows = np.arange(24)
    given = [lane._replace(learn=rows) for lane in lanes(normed, options, weighted=False)]
    weighted = [lane._replace(weights=np.arange(24.0) + lane.seed) for lane in given]
    check_alike(weighted)
    calls.clear()
    first, second, _ = fit_together(given, DATA)
    assert calls == [(8, 4)] * 9
    assert not tiny.same(first.state, second.state)


def test_an_order_that_is_shared_is_that_of_each_members_own_rows():
    check_alike(lanes(normed, fixed(augmentation=noise, order_seed=5)))


def test_class_weights_and_a_sampler_are_those_of_each_member():
    from polyfuse.fit.sampling import balanced

    check_alike(lanes(plain, fixed(class_weights="balanced")))
    check_alike(lanes(plain, fixed(sampler=balanced)))


def test_inputs_that_are_too_large_to_keep_are_loaded_by_batch(monkeypatch):
    monkeypatch.setattr("polyfuse.fit.lockstep.PRELOADED", 0)
    check_alike(lanes(normed, fixed()))


def test_parameters_with_options_of_their_own_and_frozen_ones():
    def make():
        model = plain()
        model[1].weight.requires_grad_(False)
        return model

    def two_groups(parameters):
        first, *rest = [p for p in parameters if p.requires_grad]
        groups = [{"params": [first], "weight_decay": 0.5}, {"params": rest, "lr": 0.2}]
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9)

    [fitted, *_] = check_alike(lanes(make, fixed(optimizer=two_groups)))
    torch.manual_seed(0)
    assert torch.equal(fitted.state["1.weight"], make()[1].weight)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.last(self.second(self.first(inputs).tanh()).tanh())


def test_tensors_of_two_names_stay_one():
    [fitted, *_] = check_alike(lanes(Tied, fixed(optimizer=partial(sgd, lr=0.1))))
    assert torch.equal(fitted.state["first.weight"], fitted.state["second.weight"])


# Resuming ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: like a signal, nothing inside may catch it."""


@pytest.mark.parametrize(
    ("epoch", "optimizer"),
    [(1, partial(sgd, lr=0.01)), (2, partial(adamw, lr=0.01)), (3, partial(sgd, lr=0.01))],
)
def test_a_killed_training_goes_on_with_the_same_bits(epoch, optimizer, tmp_path):
    options = fixed(epochs=4, patience=1, optimizer=optimizer)
    clean = fit_together(lanes(normed, options, 4), DATA)

    def die(done, total, note):
        if done == epoch:
            raise Killed

    file = tmp_path / "progress.safetensors"
    with pytest.raises(Killed):
        fit_together(lanes(normed, options, 4), DATA, resume=file, notify=die)
    again = fit_together(lanes(normed, options, 4), DATA, resume=file)
    for one, other in zip(clean, again, strict=True):
        assert tiny.same(one.state, other.state)
        assert one.history == other.history


def test_a_deadline_keeps_the_progress_and_some_of_the_members_may_go_on(tmp_path):
    file = tmp_path / "progress.safetensors"
    clean = fit_together(lanes(plain, fixed()), DATA, resume=file)
    with pytest.raises(OutOfTime):
        fit_together(lanes(plain, fixed()), DATA, deadline=0)
    # As after a kill between the commits of finished members.
    [last] = fit_together(lanes(plain, fixed())[2:], DATA, resume=file, deadline=0)
    assert tiny.same(last.state, clean[2].state)


def test_progress_of_other_training_is_refused(tmp_path):
    file = tmp_path / "progress.safetensors"
    fit_together(lanes(plain, fixed()), DATA, resume=file)
    with pytest.raises(CheckpointError, match="keeps the progress of other training"):
        fit_together(lanes(plain, fixed(clip=0.5)), DATA, resume=file)


# A member that fails ----------------------------------------------------------------------------


def diverging(on_nan, rate=1e30):
    [first, second, third] = lanes(plain, fixed(optimizer=partial(sgd, lr=0.1), on_nan=on_nan))
    wild = replace(second.options, optimizer=partial(sgd, lr=rate))
    return [first, second._replace(options=wild), third]


def test_a_member_that_diverges_does_not_touch_the_others():
    calm = fit_together(lanes(plain, fixed(optimizer=partial(sgd, lr=0.1))), DATA)
    given = diverging("stop")
    first, failed, third = fit_together(given, DATA)
    assert isinstance(failed, TrainingError)
    assert "in epoch 1; lower the learning rate (now 1e+30)" in str(failed)
    for one, other in ((first, calm[0]), (third, calm[2])):
        for name, value in one.state.items():
            torch.testing.assert_close(value, other.state[name], rtol=1e-4, atol=1e-6)


def test_a_member_that_diverges_late_is_kept_as_it_was():
    late = partial(fixed, epochs=3, schedule=late_blow, optimizer=partial(sgd, lr=0.1))
    given = lanes(plain, late(on_nan="keep"))
    kept = fit_together(given, DATA)
    again = [alone(lane) for lane in lanes(plain, late(on_nan="keep"))]
    assert [fitted.diverged for fitted in kept] == [one.diverged for one in again] == [2, 2, 2]
    assert [fitted.best_epoch for fitted in kept] == [1, 1, 1]


def late_blow(step, total):
    return 1.0 if step < total / 3 else 1e30


# What cannot be stacked -------------------------------------------------------------------------


class Drawing(nn.Linear):
    def forward(self, inputs):
        return functional.dropout(super().forward(inputs), 0.5, self.training)


class Branching(nn.Linear):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs if outputs.sum() > 0 else -outputs


class Lamb(torch.optim.SGD):
    """Stands for all that scale an update by a norm."""


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (partial(Drawing, 4, 3), {}, "under vmap: .*random"),
        (partial(Branching, 4, 3), {}, "under vmap: .*data-dependent control flow"),
        (plain, {"optimizer": partial(Lamb, lr=0.1)}, "the optimiser Lamb is not one of those"),
        (plain, {"precision": "bf16-mixed"}, "precision is bf16-mixed"),
        (plain, {"averaging": {"ema": ema(0.9)}}, "averages follow a member"),
        (partial(nn.Sequential, nn.AlphaDropout(0.1), nn.Linear(4, 3)), {}, "AlphaDropout"),
    ],
)
def test_what_cannot_be_stacked_says_why(make, options, message):
    with pytest.raises(Unstackable, match=message):
        fit_together(lanes(make, fixed(**options)), DATA)


def test_members_that_are_not_alike_say_where():
    [first, second, _] = lanes(plain, fixed())
    other = second._replace(model=mlp(inputs=4, classes=3, hidden=9))
    with pytest.raises(Unstackable, match=r"out_features=8.*out_features=9"):
        fit_together([first, other], DATA)
    other = second._replace(options=fixed(epochs=4))
    with pytest.raises(Unstackable, match="options differ in more than the optimiser"):
        fit_together([first, other], DATA)
    other = second._replace(options=fixed(optimizer=partial(adamw, weight_decay=0.5)))
    with pytest.raises(Unstackable, match="optimisers have other options"):
        fit_together([first, other], DATA)
    other = second._replace(learn=np.arange(9))
    with pytest.raises(Unstackable, match="different numbers of batches"):
        fit_together([first, other], DATA)
    with pytest.raises(TrainingError, match="the same object twice"):
        fit_together([first, second._replace(model=first.model)], DATA)


# The parts --------------------------------------------------------------------------------------


def test_gradients_are_clipped_for_each_model_as_torch_does():
    nets = [nn.Linear(4, 3).double() for _ in range(3)]
    each = copy.deepcopy(nets)
    stack = Stack(nets, functional.cross_entropy)
    inputs, labels = torch.randn(3, 5, 4).double(), torch.arange(15).view(3, 5) % 3
    scaled = inputs * torch.tensor([0.01, 1, 100]).view(3, 1, 1)
    stack.losses([0, 1, 2], scaled, labels, None).sum().backward()
    stack.clip(0.2)
    for place, net in enumerate(each):
        functional.cross_entropy(net(scaled[place]), labels[place]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.2)
        for name, parameter in net.named_parameters():
            clipped = stack.parameters[name].grad[place]
            torch.testing.assert_close(clipped, parameter.grad, rtol=1e-12, atol=1e-15)


def test_models_show_the_weights_of_the_stack():
    nets = [normed() for _ in range(2)]
    stack = Stack(nets, functional.cross_entropy)
    optimizer = StackedOptimizer(stack, [torch.optim.SGD(net.parameters(), 0.1) for net in nets])
    stack.generators = [torch.Generator(), torch.Generator()]
    before = copy.deepcopy(nets[1].state_dict())
    inputs, labels = torch.randn(1, 6, 4), torch.arange(6).view(1, 6) % 3
    stack.losses([1], inputs, labels, None).sum().backward()
    optimizer.step(1.0)
    assert torch.equal(nets[1][0].weight, stack.parameters["0.weight"][1])
    assert not torch.equal(nets[1][0].weight, before["0.weight"])
    assert nets[1][1].num_batches_tracked == 1
    assert nets[0][1].num_batches_tracked == 0


def test_a_dropout_of_everything_and_of_nothing():
    for p, expected in ((0.0, 1.0), (1.0, 0.0)):
        nets = [nn.Sequential(nn.Dropout(p)) for _ in range(2)]
        stack = Stack(nets, lambda outputs, labels: (outputs * labels).mean())
        stack.generators = [torch.Generator(), torch.Generator()]
        ones = torch.ones(2, 3, 4)
        assert stack.losses([0, 1], ones, ones, None).tolist() == [expected, expected]


def test_rows_of_several_heads():
    labels = np.stack([np.arange(24) % 3, np.arange(24) % 2], 1)
    data = Arrays(tiny.arrays(24).values, labels)

    def make():
        return nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))

    given = [
        Lane(make(), np.arange(16), np.arange(16, 24), fixed(), seed=number) for number in range(2)
    ]
    check_alike(given, data)

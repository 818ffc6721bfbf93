import math
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tiny
from polyfuse import Arrays, CharacterCNN, FitOptions, fit_member, mlp
from polyfuse.checkpoints import safetensors
from polyfuse.data.augment import street_number
from polyfuse.errors import CheckpointError, DataError, TrainingError
from polyfuse.fit import OutOfTime
from polyfuse.losses import cross_entropy
from polyfuse.optimizers import adamw, sgd
from polyfuse.schedules import constant

LEARN, STOP = np.arange(16), np.arange(16, 24)
fixed = partial(FitOptions, accelerator="cpu", batch_size=8)
plain_sgd = partial(sgd, momentum=0.0)


def net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return mlp(inputs=4, classes=2, hidden=8, dropout=dropout)


def fit(model, options, *, data=None, seed=3, **others):
    return fit_member(model, data or tiny.arrays(), LEARN, STOP, options, seed=seed, **others)


class Normed(nn.Module):
    """Batch-norm and dropout: eval mode differs from training mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2)
        )

    def forward(self, x):
        return self.body(x)


# The epoch that is kept -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overfitted():
    """Training that goes wrong on the stopping rows after some epochs: their labels are flipped."""
    data = tiny.arrays()
    labels = data.labels.copy()
    labels[STOP] = 1 - labels[STOP]
    data = Arrays(data.values, labels)
    model = Normed()
    fitted = fit(model, fixed(epochs=8, optimizer=partial(adamw, lr=0.03)), data=data)
    return data, model, fitted


def test_the_best_epoch_is_kept_and_not_the_last(overfitted):
    _, model, fitted = overfitted
    losses = [epoch["stopping_loss"] for epoch in fitted.history]
    assert len(losses) == 8
    assert fitted.best_epoch == 1 + int(np.argmin(losses)) < 8
    assert not tiny.same(fitted.state, model.state_dict())


def test_the_kept_weights_have_the_lowest_stopping_loss(overfitted):
    data, _, fitted = overfitted
    kept = Normed()
    kept.load_state_dict(fitted.state)
    with torch.no_grad():
        logits = kept.eval()(data.values[STOP])
    loss = functional.cross_entropy(logits, torch.from_numpy(data.labels[STOP]))
    assert float(loss) == pytest.approx(min(e["stopping_loss"] for e in fitted.history), rel=1e-6)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_training(patience):
    still = fixed(epochs=9, patience=patience, optimizer=partial(plain_sgd, lr=0.0))
    fitted = fit(net(), still)
    assert (fitted.best_epoch, len(fitted.history)) == (1, 1 + patience)


# Resuming ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: like a signal, nothing inside may catch it."""


def images():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 11, (24, 6), generator=draw).numpy()
    return Arrays(torch.rand(24, 3, 24, 64, generator=draw), labels, blank=10)


def cnn(seed=0):
    torch.manual_seed(seed)
    return CharacterCNN(width=4, hidden=8, dropout=0.3)


def jitter(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


CASES = {
    "sgd, momentum, dropout": (
        tiny.arrays,
        partial(net, dropout=0.3),
        fixed(epochs=3, optimizer=sgd, augmentation=jitter),
    ),
    "adamw, accumulate, clip": (
        tiny.arrays,
        partial(net, dropout=0.3),
        fixed(epochs=3, batch_size=4, accumulate=3, clip=0.1),
    ),
    "batch-norm, patience": (tiny.arrays, lambda seed=0: Normed(), fixed(epochs=3, patience=1)),
    "channels last, sgd": (
        images,
        cnn,
        fixed(epochs=2, optimizer=sgd, augmentation=street_number),
    ),
    "channels last, adamw": (
        images,
        cnn,
        fixed(epochs=3, accumulate=2, augmentation=partial(street_number, across=3)),
    ),
    "bfloat16": (tiny.arrays, net, fixed(epochs=2, precision="bf16-mixed")),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_after_any_epoch_and_resumed_gives_the_same_bits(case, tmp_path):
    data, model, options = CASES[case]
    whole_file = tmp_path / "whole.safetensors"
    whole_model = model()
    whole = fit(whole_model, options, data=data(), resume=whole_file)
    assert len(whole.history) >= 2
    for done in range(1, len(whole.history)):
        file = tmp_path / f"{done}.safetensors"
        with pytest.raises(Killed):
            fit(model(), options, data=data(), resume=file, notify=raising_after(done))
        other = model(seed=9)  # what it starts from must not matter
        again = fit(other, options, data=data(), resume=file)
        assert tiny.same(again.state, whole.state)
        assert tiny.same(other.state_dict(), whole_model.state_dict())
        assert again[1:] == whole[1:]
        # Weights, optimiser, history and best epoch, as the next epoch would find them.
        assert file.read_bytes() == whole_file.read_bytes()


def raising_after(epochs):
    def notify(done, total, note):
        if done == epochs:
            raise Killed

    return notify


def test_a_deadline_stops_at_the_end_of_an_epoch_and_keeps_progress(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr("polyfuse.fit.time", SimpleNamespace(time=lambda: clock.now))
    file, options = tmp_path / "resume", fixed(epochs=3)

    def notify(done, total, note):
        clock.now += 10

    with pytest.raises(OutOfTime):
        fit(net(), options, resume=file, deadline=15, notify=notify)
    assert clock.now == 20  # two epochs of ten
    fitted = fit(net(), options, resume=file, deadline=25, notify=notify)
    assert clock.now == 30  # the third
    assert tiny.same(fitted.state, fit(net(), options).state)


def test_finished_training_is_not_continued(tmp_path):
    file, options = tmp_path / "resume", fixed(epochs=2)
    whole = fit(net(), options, resume=file)
    again = fit(net(), options, resume=file, notify=raising_after(2))
    assert tiny.same(again.state, whole.state)
    assert again[1:] == whole[1:]


FOREIGN = {
    "seed": {"seed": 4},
    "option": {"options": fixed(epochs=2, clip=0.5)},
    "option of an option": {"options": fixed(epochs=2, optimizer=partial(adamw, lr=0.5))},
    "threads": {"options": fixed(epochs=2, threads=2)},
    "data": {"data": tiny.arrays(seed=5)},
    "model": {"model": mlp(inputs=4, classes=2, hidden=9)},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_progress_of_other_training_is_refused(what, tmp_path):
    file = tmp_path / "resume"
    fit(net(), fixed(epochs=2), resume=file)
    before = file.read_bytes()
    given = {"model": net(), "options": fixed(epochs=2), **FOREIGN[what]}
    with pytest.raises(CheckpointError, match=r"other training.*delete it"):
        fit(**given, resume=file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "weights of someone else"])
def test_a_damaged_resume_file_is_refused(damage, tmp_path):
    file = tmp_path / "resume"
    fit(net(), fixed(epochs=1), resume=file)
    if damage == "weights of someone else":
        safetensors.write(file, net().state_dict())
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else -1])
    with pytest.raises(CheckpointError, match="resume"):
        fit(net(), fixed(epochs=1), resume=file)


# What is refused --------------------------------------------------------------------------------


class NotFinite(nn.Module):
    """Predicts NaN from its n-th pass in one of the two modes on."""

    def __init__(self, training, after):
        super().__init__()
        self.body, self.when, self.left = nn.Linear(4, 2), training, after

    def forward(self, x):
        if self.training == self.when:
            self.left -= 1
            return self.body(x) * (math.nan if self.left < 0 else 1.0)
        return self.body(x)


# An epoch has two passes in training mode and one in eval mode; checking the labels takes one more.
@pytest.mark.parametrize(("training", "after"), [(True, 2), (False, 2)])
def test_a_loss_that_is_not_finite_names_the_epoch_and_the_fix(training, after):
    with pytest.raises(TrainingError, match=r"nan in epoch 2; lower the learning rate.*clip"):
        fit(NotFinite(training, after), fixed(epochs=3))


def no_optimizer(parameters):
    raise AssertionError("training began")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Arrays(torch.zeros(24, 4), np.full(24, 2)), "labels go up to 2.*give it 3 classes"),
        (Arrays(torch.zeros(24, 4), np.zeros((24, 6), int)), r"labels have shape \(2, 6\)"),
        (Arrays(torch.zeros(24, 4)), "no labels"),
        (Arrays(torch.zeros(24, 5), np.zeros(24, int)), "does not take these inputs"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_training(data, message):
    with pytest.raises(DataError, match=message):
        fit(net(), fixed(epochs=1, optimizer=no_optimizer), data=data)


# The numbers ------------------------------------------------------------------------------------


def plain_loop(model, data, options, seed):
    """Train with PyTorch alone, in the same data order."""
    labels, optimizer = torch.from_numpy(data.labels), options.optimizer(model.parameters())
    rate, step = optimizer.param_groups[0]["lr"], 0
    batches = math.ceil(len(LEARN) / options.batch_size)
    total = options.epochs * math.ceil(batches / options.accumulate)
    for epoch in range(options.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(LEARN)
        parts = np.array_split(order, batches)
        for first in range(0, batches, options.accumulate):
            together = parts[first : first + options.accumulate]
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.zero_grad()
            losses = [functional.cross_entropy(model(data.values[p]), labels[p]) for p in together]
            torch.stack(losses).mean().backward()
            if options.clip:
                nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            step += 1


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("others", [{}, {"clip": 0.1}, {"accumulate": 2}, {"accumulate": 3}])
def test_training_is_that_of_a_plain_loop(optimizer, others):
    options = fixed(epochs=3, batch_size=4, optimizer=optimizer, **others)
    ours, plain = net(), net()
    fit(ours, options)
    plain_loop(plain, tiny.arrays(), options, seed=3)
    assert not tiny.same(ours.state_dict(), net().state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_accumulating_equals_a_bigger_batch():
    small, big = net(), net()
    fit(small, fixed(epochs=2, batch_size=4, accumulate=2, optimizer=plain_sgd))
    fit(big, fixed(epochs=2, batch_size=8, optimizer=plain_sgd))
    for name, value in big.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_clip_bounds_a_step():
    # One step of SGD at rate 1 moves the weights by the gradient.
    one = partial(fixed, epochs=1, batch_size=16, optimizer=partial(plain_sgd, lr=1.0))
    moved = {}
    for clip in (None, 0.05):
        model = net()
        fit(model, one(clip=clip, schedule=constant))
        before, after = net().state_dict(), model.state_dict()
        change = torch.cat([(after[name] - before[name]).flatten() for name in before])
        moved[clip] = float(change.norm())
    assert moved[0.05] == pytest.approx(0.05, rel=1e-3)
    assert moved[None] > 0.1


def test_the_seed_alone_decides():
    options = fixed(epochs=2, augmentation=jitter)
    states = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        model = net(dropout=0.5)
        torch.manual_seed(noise)
        np.random.seed(noise)
        states.append(fit(model, options, seed=seed).state)
    assert tiny.same(states[0], states[1])
    assert not tiny.same(states[0], states[2])


def test_only_learning_rows_are_learned_from_and_augmented():
    seen = []

    def watching(x, generator):
        seen.extend(map(tuple, x.tolist()))
        return x

    data = tiny.arrays()
    fit(net(), fixed(epochs=2, augmentation=watching), data=data)
    assert sorted(seen) == sorted(2 * list(map(tuple, data.values[LEARN].tolist())))


def global_states():
    _, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), keys.tolist(), rest, random.getstate()


@pytest.mark.parametrize("model", [net(dropout=0.5), NotFinite(True, 1)])
def test_global_states_are_left_alone_whether_training_ends_or_fails(model):
    torch.set_num_threads(2)
    try:
        before = global_states()
        try:
            fit(model, fixed(epochs=2, augmentation=jitter))
        except TrainingError:
            assert isinstance(model, NotFinite)
        assert global_states() == before
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_history_and_notifications_agree():
    told = []
    fitted = fit(net(), fixed(epochs=2), notify=lambda *seen: told.append(seen))
    assert [epoch["epoch"] for epoch in fitted.history] == [1, 2]
    assert told == [
        (n + 1, 2, f"loss {epoch['stopping_loss']:.3f}") for n, epoch in enumerate(fitted.history)
    ]


def test_the_loss_of_the_first_epoch_is_the_mean_over_rows():
    data, model = tiny.arrays(), net()
    still = fixed(epochs=1, batch_size=5, optimizer=partial(plain_sgd, lr=0.0))
    fitted = fit(model, still, data=data)
    logits = model(data.values[LEARN]).detach()
    wanted = cross_entropy(logits, torch.from_numpy(data.labels[LEARN]))
    assert fitted.history[0]["loss"] == pytest.approx(float(wanted), rel=1e-5)

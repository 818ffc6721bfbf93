"""Which rows come when, and what each weighs: by itself, against scikit-learn, and in training."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from torch.nn import functional

import tiny
from polyfuse import Arrays, FitOptions, fit_member, mlp
from polyfuse.errors import TrainingError
from polyfuse.fit.sampling import Order, balanced, row_weights
from polyfuse.optimizers import sgd
from polyfuse.schedules import constant

fixed = partial(FitOptions, accelerator="cpu", batch_size=8)
still = partial(fixed, epochs=1, optimizer=partial(sgd, lr=0.0))
LABELS = np.array([0] * 12 + [1] * 3 + [3])
LEARN, STOP = np.arange(16), np.arange(16, 24)
weighed = FitOptions(class_weights="balanced")


def rare():
    """Rows of two classes, of which one is rare."""
    data = tiny.arrays()
    return Arrays(data.values, (np.arange(24) % 8 == 0).astype(int))


def net():
    torch.manual_seed(0)
    return mlp(inputs=4, classes=2, hidden=8)


def fit(options, model=None, *, data=None, learn=LEARN, **others):
    model = model or net()
    return fit_member(model, data or rare(), learn, STOP, options, seed=3, **others)


# Weights ----------------------------------------------------------------------------------------


def test_balanced_weights_are_those_of_scikit_learn():
    ours = row_weights(weighed, LABELS, None)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, compute_sample_weight("balanced", LABELS), rtol=1e-6)
    each = compute_class_weight("balanced", classes=np.unique(LABELS), y=LABELS)
    np.testing.assert_allclose(ours[[0, 12, 15]], each, rtol=1e-6)


def test_their_mean_is_1_and_classes_weigh_the_same():
    ours = row_weights(weighed, LABELS, None)
    assert ours.mean(dtype=float) == pytest.approx(1, rel=1e-6)
    sums = [ours[kind == LABELS].sum() for kind in (0, 1, 3)]
    assert sums == pytest.approx([16 / 3] * 3, rel=1e-6)


def test_rows_that_weigh_something_already_are_balanced_by_what_they_weigh():
    given = np.linspace(0.5, 2, 16)
    ours = row_weights(weighed, LABELS, given)
    sums = [ours[kind == LABELS].sum() for kind in (0, 1, 3)]
    assert sums == pytest.approx([16 / 3] * 3, rel=1e-6)
    np.testing.assert_allclose(ours[:12] / ours[0], given[:12] / given[0], rtol=1e-6)


@pytest.mark.parametrize("class_weights", ["balanced", [1.0, 4.0, 0.0, 2.0]])
def test_a_row_that_is_there_twice_is_one_that_weighs_twice(class_weights):
    times = np.array([2, 0, 1, 3, 1, 1, 0, 2, 1, 1, 1, 1, 2, 1, 0, 1])
    options = FitOptions(class_weights=class_weights)
    repeated = row_weights(options, LABELS.repeat(times), None)
    once = row_weights(options, LABELS, times.astype(float))
    for place in np.flatnonzero(times):
        first = times[:place].sum()
        # The mean is 1 over rows: 18 with repeats, 16 without.
        assert once[place] / 16 == pytest.approx(times[place] * repeated[first] / 18, rel=1e-6)


def test_a_list_names_the_weights_of_the_classes():
    ours = row_weights(FitOptions(class_weights=[1, 3, 99, 0]), LABELS, None)
    np.testing.assert_allclose(ours[[0, 12, 15]], np.array([1, 3, 0]) * 16 / 21, rtol=1e-6)


def test_without_any_there_are_none():
    assert row_weights(FitOptions(), LABELS, None) is None


def test_the_loss_of_an_epoch_is_torchs_weighted_mean_over_all_rows():
    data, model = rare(), net()
    given = fit(still(class_weights="balanced"), model, data=data).history[0]
    labels = torch.from_numpy(data.labels)
    of_class = torch.tensor(
        compute_class_weight("balanced", classes=np.arange(2), y=data.labels[LEARN]),
        dtype=torch.float32,
    )
    logits = model(data.values).detach()
    wanted = functional.cross_entropy(logits[LEARN], labels[LEARN], weight=of_class)
    assert given["loss"] == pytest.approx(float(wanted), rel=1e-5)
    # The stopping loss is not weighted: it chooses an epoch by what the ensemble is scored by.
    plain = functional.cross_entropy(logits[STOP], labels[STOP])
    assert given["stopping_loss"] == pytest.approx(float(plain), rel=1e-5)


def test_a_rare_class_is_learned_better_with_weights_than_without():
    data = rare()

    def recalled(**options):
        fast = fixed(epochs=6, optimizer=partial(sgd, lr=0.3), schedule=constant, **options)
        model = net()
        fit(fast, model, data=data)
        logits = model(data.values[LEARN]).detach()
        return functional.cross_entropy(logits[data.labels[LEARN] == 1], torch.ones(2).long())

    plain = recalled()
    assert recalled(class_weights="balanced") < 0.8 * plain
    assert recalled(sampler=balanced) < 0.8 * plain


def test_weights_are_part_of_what_is_resumed(tmp_path):
    file, options = tmp_path / "resume", fixed(epochs=2, class_weights="balanced")
    whole = fit(options, resume=file)
    assert whole.fingerprint != fit(fixed(epochs=2)).fingerprint
    assert tiny.same(fit(options, resume=file).state, whole.state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("balance", "class_weights='balance'; type balanced"),
        ([1.0, -1.0], "a number of 0 and more for each class"),
        ([0.0, 0.0], "not all of them 0"),
        ([float("nan"), 1.0], "a number of 0 and more"),
    ],
)
def test_class_weights_that_are_none_are_refused(given, message):
    with pytest.raises(TrainingError, match=message):
        FitOptions(class_weights=given)


def loss_without_weights(outputs, labels):
    return functional.cross_entropy(outputs, labels)


@pytest.mark.parametrize(
    ("options", "labels", "weights", "message"),
    [
        ({"class_weights": [1, 2]}, LABELS, None, "2 numbers, but labels go up to 3; type 4"),
        ({}, np.zeros((4, 2), int), None, r"one class a row.*int64 of shape \(4, 2\)"),
        ({}, np.zeros(4), None, r"one class a row.*float64 of shape \(4,\)"),
        ({}, np.array([0, 1]), np.array([1.0, 0.0]), "rows of class 1 weigh 0"),
        ({"class_weights": [0, 1, 1, 1]}, np.zeros(4, int), None, "all weights.* are 0"),
        ({"loss": loss_without_weights}, LABELS, None, "the loss takes no weights"),
        ({}, np.zeros(4, int), np.ones(3), "weights must be 4 finite numbers"),
    ],
)
def test_weights_that_fit_nothing_are_refused(options, labels, weights, message):
    options = FitOptions(**{"class_weights": "balanced", **options})
    with pytest.raises(TrainingError, match=message):
        row_weights(options, labels, weights)


# The order --------------------------------------------------------------------------------------


def test_balanced_draws_every_class_equally_often():
    for seed in range(5):
        drawn = balanced(np.arange(16) + 100, LABELS, np.random.default_rng(seed))
        assert drawn.shape == (16,)
        counts = np.bincount(LABELS[drawn])[[0, 1, 3]]
        assert sorted(counts) == [5, 5, 6]
        # No row of a class comes again before all of its class have come.
        assert np.bincount(drawn[LABELS[drawn] == 0]).max() == 1
        of_1 = np.bincount(drawn[LABELS[drawn] == 1], minlength=15)[12:15]
        assert of_1.min() >= 1
        assert of_1.max() == 2


def test_the_odd_row_goes_to_another_class_in_another_epoch():
    draws = [balanced(np.arange(16), LABELS, np.random.default_rng([7, e])) for e in range(20)]
    assert {int(np.bincount(LABELS[drawn]).argmax()) for drawn in draws} == {0, 1, 3}


def test_an_order_is_that_of_the_seed_and_the_epoch():
    for options in (fixed(), fixed(sampler=balanced)):
        one, same, other = (Order(LEARN, LABELS, options, seed) for seed in (3, 3, 4))
        batches = [np.concatenate(o.batches(e)) for o in (one, same, other) for e in (1, 2)]
        assert np.array_equal(batches[0], batches[2])
        assert not np.array_equal(batches[0], batches[1])
        assert not np.array_equal(batches[0], batches[4])


def test_steps_take_in_what_is_accumulated():
    order = Order(np.arange(21), np.zeros(21, int), fixed(batch_size=4, accumulate=4), 0)
    assert order.count == 6
    assert [order.share(i) for i in range(6)] == [4, 4, 4, 4, 2, 2]
    assert [order.ends_step(i) for i in range(6)] == [False, False, False, True, False, True]
    assert [order.step(1, i) for i in range(6)] == [2, 2, 2, 2, 3, 3]


def half(rows, labels, generator):
    """Draw half of the rows."""
    return generator.permutation(len(rows))[: len(rows) // 2]


def test_an_epoch_is_as_long_as_the_users_sampler_says():
    seen = []

    def watching(x, generator):
        seen.append(len(x))
        return x

    rates = fit(fixed(epochs=2, batch_size=4, sampler=half, augmentation=watching)).history
    assert seen == [4, 4, 4, 4]
    # The schedule ends with the last of four steps, not of eight.
    assert rates[1]["rate"] == pytest.approx(1e-3 * (1 + np.cos(np.pi * 3 / 4)) / 2)


def test_the_balanced_sampler_is_resumed_to_the_bit(tmp_path):
    def stop(done, total, note):
        if done == 1:
            raise KeyboardInterrupt

    options = fixed(epochs=2, sampler=balanced)
    with pytest.raises(KeyboardInterrupt):
        fit(options, resume=tmp_path / "resume", notify=stop)
    again = fit(options, resume=tmp_path / "resume")
    assert tiny.same(again.state, fit(options).state)
    assert not tiny.same(again.state, fit(fixed(epochs=2)).state)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda rows, labels, generator: [0.5], "float64"),
        (lambda rows, labels, generator: [], r"shape \(0,\)"),
        (lambda rows, labels, generator: [[1]], r"shape \(1, 1\)"),
        (lambda rows, labels, generator: rows + 1, "places from 1 to 16"),
        (lambda rows, labels, generator: [-1], "places from -1 to -1"),
        (lambda rows, labels, generator: np.arange(generator.integers(1, 16)), "in epoch"),
    ],
)
def test_a_sampler_that_gives_no_places_is_refused(sampler, message):
    with pytest.raises(TrainingError, match=f"sampler: it gives .*{message}.*as many in every"):
        fit(fixed(epochs=9, sampler=sampler))


def test_balanced_needs_classes():
    with pytest.raises(TrainingError, match=r"sampler: balanced needs one class a row"):
        balanced(np.arange(2), np.zeros((2, 3), int), np.random.default_rng(0))

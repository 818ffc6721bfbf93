"""Losses: one contract for all, and parity with torch and with formulas in 64 bits."""

import math

import pytest
import torch
from torch.nn import functional

from polyfuse.errors import DataError
from polyfuse.losses import (
    LOSSES,
    binary_cross_entropy,
    character_cross_entropy,
    cross_entropy,
    focal,
    gaussian_nll,
    huber,
    mean_absolute_error,
    mean_squared_error,
)


def some_batch(heads=(6,)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, *heads, 11, generator=generator, dtype=torch.float64)
    return logits, torch.randint(11, (8, *heads), generator=generator)


def numbers(*shape):
    generator = torch.Generator().manual_seed(1)
    outputs = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return outputs, torch.randn(shape, generator=generator, dtype=torch.float64)


def answers():
    outputs, labels = numbers(8, 3)
    return outputs, (labels > 0).long()


def pairs(*shape):
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
    return outputs, torch.randn(shape, generator=generator, dtype=torch.float64)


def read_characters():
    """Return outputs of six heads and one of the length, and strings padded with class 10."""
    outputs, labels = some_batch((7,))
    lengths = torch.tensor([1, 2, 3, 6, 0, 2, 1, 5])
    return outputs, labels[:, :6].clamp(max=9).where(torch.arange(6) < lengths[:, None], 10)


BATCHES = {
    "cross_entropy": [some_batch(()), some_batch((6,))],
    "character_cross_entropy": [some_batch((6,)), read_characters()],
    "focal": [some_batch(()), some_batch((6,))],
    "binary_cross_entropy": [answers()],
    "mean_squared_error": [numbers(8), numbers(8, 3)],
    "mean_absolute_error": [numbers(8), numbers(8, 3)],
    "huber": [numbers(8), numbers(8, 3)],
    "gaussian_nll": [pairs(8), pairs(8, 3)],
}
every = pytest.mark.parametrize(
    ("loss", "outputs", "labels"),
    [(LOSSES[name], *batch) for name, batches in BATCHES.items() for batch in batches],
    ids=[f"{name}-{i}" for name, batches in BATCHES.items() for i in range(len(batches))],
)


def test_every_loss_is_held_to_the_contract():
    assert set(BATCHES) == set(LOSSES)


@every
def test_gives_a_scalar_with_a_gradient(loss, outputs, labels):
    outputs = outputs.clone().requires_grad_()
    value = loss(outputs, labels)
    value.backward()
    assert value.shape == ()
    assert outputs.grad.shape == outputs.shape
    assert bool(outputs.grad.isfinite().all())


@every
def test_a_step_against_the_gradient_lowers_it(loss, outputs, labels):
    outputs = outputs.clone().requires_grad_()
    value = loss(outputs, labels)
    value.backward()
    assert loss(outputs.detach() - 0.1 * outputs.grad, labels) < value


def each_by_itself(loss, outputs, labels):
    return torch.stack([loss(outputs[i : i + 1], labels[i : i + 1]) for i in range(8)])


@every
def test_a_batch_is_the_mean_of_its_samples(loss, outputs, labels):
    each = each_by_itself(loss, outputs, labels)
    torch.testing.assert_close(loss(outputs, labels), each.mean())


@every
def test_weights_multiply_the_samples(loss, outputs, labels):
    weights = torch.linspace(0, 2, 8, dtype=torch.float64)
    wanted = (each_by_itself(loss, outputs, labels) * weights).mean()
    torch.testing.assert_close(loss(outputs, labels, weights=weights), wanted)
    alike = loss(outputs, labels, weights=torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(alike, loss(outputs, labels))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_matches_torch_summed_over_heads(label_smoothing):
    logits, labels = some_batch()
    options = {"label_smoothing": label_smoothing}
    heads = [functional.cross_entropy(logits[:, h], labels[:, h], **options) for h in range(6)]
    torch.testing.assert_close(cross_entropy(logits, labels, **options), torch.stack(heads).sum())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_one_head_is_torchs(label_smoothing):
    logits, labels = some_batch(())
    expected = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    ours = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, expected)


# Parity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_equation_4_of_lin_et_al(gamma):
    logits, labels = some_batch(())
    p = logits.softmax(-1)[torch.arange(8), labels]
    torch.testing.assert_close(
        focal(logits, labels, gamma=gamma), (-((1 - p) ** gamma) * p.log()).mean()
    )


def test_focal_with_gamma_0_is_the_cross_entropy():
    torch.testing.assert_close(focal(*some_batch(), gamma=0.0), cross_entropy(*some_batch()))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_finite_where_the_model_is_sure(gamma):
    logits = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    value = focal(logits, torch.tensor([0, 0]), gamma=gamma)
    value.backward()
    assert value.item() == pytest.approx(150.0)
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("more", [None, 3.0, [1.0, 2.0, 3.0]])
def test_binary_cross_entropy_is_torchs(more):
    outputs, labels = answers()
    given = None if more is None else torch.tensor(more, dtype=torch.float64)
    wanted = functional.binary_cross_entropy_with_logits(outputs, labels.double(), pos_weight=given)
    for kind in (torch.int64, torch.float32, torch.float64):
        ours = binary_cross_entropy(outputs, labels.to(kind), positive_weight=more)
        torch.testing.assert_close(ours, wanted)


def test_errors_of_numbers_are_torchs():
    outputs, labels = numbers(8, 3)
    torch.testing.assert_close(
        mean_squared_error(outputs, labels), functional.mse_loss(outputs, labels)
    )
    torch.testing.assert_close(
        mean_absolute_error(outputs, labels), functional.l1_loss(outputs, labels)
    )
    for delta in (0.5, 2.0):
        wanted = functional.huber_loss(outputs, labels, delta=delta)
        torch.testing.assert_close(huber(outputs, labels, delta=delta), wanted)


def test_gaussian_nll_is_the_density_of_a_normal_distribution():
    outputs, labels = pairs(8, 3)
    mean, log_variance = outputs.unbind(-1)
    normal = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
    torch.testing.assert_close(gaussian_nll(outputs, labels), -normal.log_prob(labels).mean())
    torch.testing.assert_close(
        gaussian_nll(outputs, labels),
        functional.gaussian_nll_loss(mean, labels, log_variance.exp(), full=True),
    )


def test_gaussian_nll_with_the_best_variance_is_known():
    # Where mean and variance are those of the labels, it is the entropy of the distribution.
    labels = numbers(1000)[1]
    log_variance = labels.var(correction=0).log()
    outputs = torch.stack([labels.mean().expand(1000), log_variance.expand(1000)], -1)
    wanted = (1 + math.log(2 * math.pi) + log_variance) / 2
    torch.testing.assert_close(gaussian_nll(outputs, labels), wanted)


def test_the_multiples_of_weighted_cross_entropy_that_differ_from_torch():
    """Torch divides by the weights of the classes in the batch, so a batch of a rare class counts
    as much as one of a common class; here a sample's weight is the same in every batch."""
    logits, labels = some_batch(())
    of_class = torch.linspace(0.5, 3, 11, dtype=torch.float64)
    weights = of_class[labels]
    torchs = functional.cross_entropy(logits, labels, weight=of_class)
    ours = cross_entropy(logits, labels, weights=weights)
    torch.testing.assert_close(ours / weights.mean(), torchs)
    assert abs(float(ours) - float(torchs)) > 0.1
    # Over all rows, where weights have a mean of 1, both are the same number.
    scaled = cross_entropy(logits, labels, weights=weights / weights.mean())
    torch.testing.assert_close(scaled, torchs)


def test_character_cross_entropy_without_a_length_is_the_sum_of_the_heads():
    logits, labels = some_batch()
    wanted = cross_entropy(logits, labels)
    torch.testing.assert_close(character_cross_entropy(logits, labels), wanted)


@pytest.mark.parametrize(("blank_weight", "length_weight"), [(1, 1), (0.25, 1), (0, 2.5), (3, 0)])
def test_character_cross_entropy_is_torchs_head_by_head(blank_weight, length_weight):
    outputs, labels = read_characters()
    of_class = torch.ones(11, dtype=torch.float64)
    of_class[10] = blank_weight
    heads = [
        functional.cross_entropy(outputs[:, h], labels[:, h], weight=of_class, reduction="sum") / 8
        for h in range(6)
    ]
    lengths = torch.tensor([1, 2, 3, 6, 0, 2, 1, 5])
    length = functional.cross_entropy(outputs[:, 6, :7], lengths)
    given = {"blank_weight": blank_weight, "length_weight": length_weight}
    ours = character_cross_entropy(outputs, labels, **given)
    torch.testing.assert_close(ours, torch.stack(heads).sum() + length_weight * length)


def test_with_no_weight_for_blanks_it_is_the_likelihood_of_goodfellow_et_al():
    """ln P(L) + the sum over the L characters of ln P(character), their equation 1."""
    outputs, labels = read_characters()
    logs, lengths = outputs[:, :6].log_softmax(-1), outputs[:, 6, :7].log_softmax(-1)
    wanted = []
    for sample, length in enumerate([1, 2, 3, 6, 0, 2, 1, 5]):
        characters = [logs[sample, i, labels[sample, i]] for i in range(length)]
        wanted.append(-lengths[sample, length] - sum(characters))
    ours = character_cross_entropy(outputs, labels, blank_weight=0.0)
    torch.testing.assert_close(ours, torch.stack(wanted).mean())


def test_what_a_length_head_has_beyond_the_lengths_does_not_matter():
    outputs, labels = read_characters()
    other = outputs.clone()
    other[:, 6, 7:] = -1e4
    assert character_cross_entropy(other, labels) == character_cross_entropy(outputs, labels)


def test_the_blank_may_be_another_class_than_the_last():
    outputs, labels = read_characters()
    turned, moved = outputs.roll(1, -1), (labels + 1) % 11
    turned[:, 6] = outputs[:, 6]
    ours = character_cross_entropy(turned, moved, blank=0, blank_weight=0.5)
    torch.testing.assert_close(ours, character_cross_entropy(outputs, labels, blank_weight=0.5))


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [mean_squared_error, mean_absolute_error, huber])
def test_a_column_is_not_spread_over_the_labels(loss):
    with pytest.raises(DataError, match=r"outputs \(8, 1\) with labels \(8,\).*squeeze"):
        loss(torch.zeros(8, 1), torch.zeros(8))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"outputs \(8, 3\) with labels \(8,\)"):
        binary_cross_entropy(torch.zeros(8, 3), torch.zeros(8))
    with pytest.raises(DataError, match="axis of 2"):
        gaussian_nll(torch.zeros(8), torch.zeros(8))
    with pytest.raises(DataError, match=r"outputs \(8, 3\) with labels \(8,\)"):
        gaussian_nll(torch.zeros(8, 3, 2), torch.zeros(8))


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(DataError, match=r"gamma=-1\.0"):
        focal(*some_batch(()), gamma=-1.0)
    with pytest.raises(DataError, match=r"delta=0\.0"):
        huber(*numbers(8), delta=0.0)


@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_a_head_without_labels_is_not_left_out_of_the_loss(loss):
    """Gathering six labels of seven heads would train a length head by nothing, without a word."""
    outputs, labels = read_characters()
    with pytest.raises(DataError, match=r"\(8, 7, 11\).*\(8, 6\).*character_cross_entropy"):
        loss(outputs, labels)
    with pytest.raises(DataError, match=r"outputs \(8, 7, 11\) with labels \(8,\)"):
        loss(outputs, labels[:, 0])


@pytest.mark.parametrize(
    ("heads", "classes", "options", "fact"),
    [
        (5, 11, {}, r"outputs \(8, 5, 11\) with labels \(8, 6\)"),
        (8, 11, {}, r"outputs \(8, 8, 11\) with labels \(8, 6\)"),
        (7, 6, {}, "over 6 positions needs 7 classes"),
        (6, 11, {"blank": 11}, "blank=11, and heads have 11 classes"),
        (6, 11, {"blank_weight": -0.5}, r"blank_weight=-0\.5; type 0 or more"),
        (7, 11, {"length_weight": math.nan}, "length_weight=nan; type 0 or more"),
    ],
)
def test_characters_that_do_not_fit_are_refused(heads, classes, options, fact):
    with pytest.raises(DataError, match=fact):
        character_cross_entropy(
            torch.zeros(8, heads, classes), torch.zeros(8, 6, dtype=int), **options
        )
    with pytest.raises(DataError, match=r"labels \(8,\)"):
        character_cross_entropy(torch.zeros(8, 11), torch.zeros(8, dtype=int))

"""Losses: one contract for all, and parity with torch."""

import pytest
import torch
from torch.nn import functional

from polyfuse.losses import LOSSES, cross_entropy

every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def some_batch(heads=(6,)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, *heads, 11, generator=generator, dtype=torch.float64)
    return logits, torch.randint(11, (8, *heads), generator=generator)


@every
@pytest.mark.parametrize("heads", [(), (6,)])
def test_gives_a_positive_scalar_with_a_gradient(loss, heads):
    logits, labels = some_batch(heads)
    value = loss(logits.requires_grad_(), labels)
    value.backward()
    assert value.shape == ()
    assert value.item() > 0
    assert logits.grad.shape == logits.shape
    assert bool(logits.grad.isfinite().all())


@every
def test_a_step_against_the_gradient_lowers_it(loss):
    logits, labels = some_batch()
    value = loss(logits.requires_grad_(), labels)
    value.backward()
    assert loss(logits.detach() - 0.1 * logits.grad, labels) < value


@every
def test_a_batch_is_the_mean_of_its_samples(loss):
    logits, labels = some_batch()
    each = torch.stack([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(loss(logits, labels), each.mean())


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

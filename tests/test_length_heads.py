"""Length heads: told apart from the characters, refused where they cannot be one."""

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse.data.arrays import Arrays
from polyfuse.data.base import Splits
from polyfuse.errors import DataError, TrainingError
from polyfuse.fit import FitOptions
from polyfuse.inference import (
    PREDICT_BATCH,
    check_labels,
    check_loss,
    has_length_head,
    predict,
    predict_heads,
    predict_lengths,
)
from polyfuse.losses import LOSSES
from polyfuse.models import MODELS
from polyfuse.subspaces import Subspace
from polyfuse.training import gradient_boosting, soft_boosting
from polyfuse.training.loop import Task, train


class Heads(nn.Module):
    """Five classes, and as many heads as asked for."""

    def __init__(self, heads=4, *, length_head=True):
        super().__init__()
        self.length_head, self.heads = length_head, nn.Linear(6, heads * 5)

    def forward(self, inputs):
        return self.heads(inputs).unflatten(1, (-1, 5))


def strings(rows=PREDICT_BATCH + 3):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (rows, 3))
    return Arrays(rng.standard_normal((rows, 6)).astype(np.float32), labels, blank=4)


def test_one_pass_gives_characters_and_lengths():
    model, split = Heads(), strings()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    heads = predict_heads(model, split)
    assert len(calls) == 2  # batches of 256
    with torch.no_grad():
        outputs = model(split.values).numpy()
    np.testing.assert_allclose(heads.characters, outputs[:, :3], atol=1e-6)
    np.testing.assert_allclose(heads.lengths, outputs[:, 3, :4], atol=1e-6)
    np.testing.assert_array_equal(predict(model, split), heads.characters)
    np.testing.assert_array_equal(predict_lengths(model, split), heads.lengths)
    assert heads.characters.flags.c_contiguous
    assert heads.lengths.flags.c_contiguous


def test_without_a_length_head_all_heads_are_characters():
    model, split = Heads(3, length_head=False), strings(5)
    assert predict_lengths(model, split) is None
    assert predict(model, split).shape == (5, 3, 5)


def test_a_member_that_sees_some_features_has_the_length_head_of_its_model():
    assert has_length_head(Subspace(Heads(), torch.tensor([0, 1])))
    assert not has_length_head(Subspace(Heads(length_head=False), torch.tensor([0, 1])))


def test_length_heads_that_fit_pass_and_others_are_refused():
    split = strings()
    rows = np.arange(5)
    check_labels(Heads(), split, rows)
    with pytest.raises(DataError, match=r"maps 2 samples to \(2, 4, 5\)"):
        check_labels(Heads(5), split, rows)
    wide = Arrays(split.values, np.zeros((len(split), 5), np.int64), blank=4)
    with pytest.raises(DataError, match="with more classes than positions"):
        check_labels(Heads(6), wide, rows)
    plain = Arrays(split.values, np.zeros((len(split), 3), np.int64))
    with pytest.raises(DataError, match="nothing says where one ends"):
        check_labels(Heads(), plain, rows)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", None])
def test_a_loss_that_takes_the_length_for_a_character_is_refused(loss):
    options = FitOptions(epochs=1) if loss is None else FitOptions(epochs=1, loss=LOSSES[loss])
    with pytest.raises(DataError, match="character_cross_entropy"):
        check_loss(Heads(), options.loss)
    check_loss(Heads(), LOSSES["character_cross_entropy"])
    check_loss(Heads(), lambda outputs, labels: outputs.sum())  # the user's own may know it
    check_loss(Heads(length_head=False), options.loss)


def small_backbone():
    return nn.Conv2d(3, 4, 8, stride=8)


@pytest.mark.parametrize("name", ["attention_resnet", "reader"])
def test_the_readers_that_ship_tell_characters_and_lengths_apart(name):
    more = {"width": 4} if name == "attention_resnet" else {"backbone": small_backbone}
    model = MODELS[name](length_head=True, positions=4, classes=11, **more)
    split = Arrays(np.zeros((2, 3, 24, 64), np.float32), np.full((2, 4), 10), blank=10)
    heads = predict_heads(model, split)
    assert heads.characters.shape == (2, 4, 11)
    assert heads.lengths.shape == (2, 5)
    assert np.abs(heads.lengths).max() < 1e3  # none of the constants that fill the head up
    check_labels(model, split, np.arange(2))


@pytest.mark.parametrize("strategy", [gradient_boosting, soft_boosting])
def test_boosting_has_nothing_to_add_a_length_head_to(strategy, tmp_path):
    split = strings(20)
    options = FitOptions(epochs=1, loss=LOSSES["character_cross_entropy"], accelerator="cpu")
    task = Task((Heads,), Splits(split, split, split), options)
    given = {"fit": options} if strategy is gradient_boosting else {}
    with pytest.raises(TrainingError, match="take length_head: false, or another strategy"):
        train(strategy(split, **given), task, tmp_path)

"""Inference: logits in eval mode, the model given back as it was, misfits refused early."""

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse.data.arrays import Arrays
from polyfuse.determinism import threads
from polyfuse.errors import DataError, TrainingError
from polyfuse.inference import (
    PREDICT_BATCH,
    check_labels,
    evaluating,
    milliseconds_per_image,
    predict,
)


def some_split(n=2 * PREDICT_BATCH + 3, labels=None):
    return Arrays(np.random.default_rng(0).normal(0, 1, (n, 4)), labels)


def some_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_predict_is_the_model_in_eval_mode():
    model, split = some_model(), some_split()
    logits = predict(model, split)
    assert logits.dtype == np.float32
    expected = some_model().eval()(split.values).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_predict_takes_rows_in_their_order():
    model, split = some_model(), some_split()
    rows = np.array([500, 3, 3, 0])
    np.testing.assert_allclose(predict(model, split, rows), predict(model, split)[rows], atol=1e-6)


def test_predict_never_passes_more_than_a_batch():
    sizes = []
    model = some_model()
    model.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    predict(model, some_split())
    assert max(sizes) <= PREDICT_BATCH
    assert sum(sizes) == 2 * PREDICT_BATCH + 3


def test_predict_leaves_the_model_as_it_was():
    model = some_model()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, some_split())
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_predict_gives_float32_for_low_precision_models():
    model = nn.Linear(4, 3, dtype=torch.bfloat16)
    wrapped = nn.Sequential(Cast(torch.bfloat16), model)
    assert predict(wrapped, some_split(5)).dtype == np.float32


class Cast(nn.Module):
    """Change the precision of the inputs."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, inputs):
        return inputs.to(self.dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value):
    model = nn.Linear(4, 3)
    nn.init.constant_(model.bias, value)
    with pytest.raises(TrainingError, match="NaN or infinity; lower the learning rate"):
        predict(model, some_split(5))


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_own_mode_back(fails):
    model = some_model()
    model[2].eval()

    def block():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not model(torch.zeros(2, 4)).requires_grad
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            block()
    else:
        block()
    assert [module.training for module in model] == [True, True, False, True]
    assert torch.is_grad_enabled()


def test_the_timing_uses_one_thread_eval_mode_and_a_batch():
    seen = []

    class Watching(nn.Module):
        def forward(self, inputs):
            seen.append((len(inputs), self.training, torch.get_num_threads()))
            return inputs

    with threads(2):
        assert milliseconds_per_image(Watching(), some_split(), batch=7) > 0
    assert set(seen) == {(7, False, 1)}


def test_timing_and_checks_follow_the_models_device():
    model = nn.Linear(4, 3, device="meta")  # a device that every machine has
    assert milliseconds_per_image(model, some_split(5)) > 0
    check_labels(model, some_split(5, [0, 1, 2, 0, 1]), np.arange(5))


def test_labels_that_fit_pass():
    check_labels(some_model(), some_split(5, [0, 1, 2, 0, 1]), np.arange(5))
    heads = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    check_labels(heads, some_split(3, [[0, 1], [2, 0], [1, 1]]), np.arange(3))


MISFITS = {
    "no labels": (None, r"has no labels"),
    "too large": ([0, 1, 2, 3, 0], r"labels go up to 3, but the model has 3 classes \(0 to 2\)"),
    "other shape": ([[0, 1]] * 5, r"2 samples to \(2, 3\), but their labels have shape \(2, 2\)"),
}


@pytest.mark.parametrize(("labels", "fact"), MISFITS.values(), ids=MISFITS)
def test_labels_that_do_not_fit_are_refused(labels, fact):
    with pytest.raises(DataError, match=fact):
        check_labels(some_model(), some_split(5, labels), np.arange(5))


def test_inputs_that_the_model_does_not_take_are_refused():
    with pytest.raises(DataError, match="does not take these inputs: "):
        check_labels(nn.Linear(5, 3), some_split(5, [0] * 5), np.arange(5))

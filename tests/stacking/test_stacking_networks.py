"""Torch modules as meta-models: by factory or object, trained the same way on every run."""

import numpy as np
import pytest
import torch
from noisy_members import members, nll, numbers
from torch import nn

from polyfuse.errors import DataError, PolyfuseError, TrainingError
from polyfuse.stacking import Stacker

FACTORY = "meta_factories:small"
FEW = {"epochs": 60, "weight_decay": 0.3}


@pytest.mark.parametrize(
    "meta", ["mlp", FACTORY, nn.Linear(12, 3)], ids=["mlp", "factory", "object"]
)
def test_it_learns_which_members_to_trust(meta):
    p, labels = members()
    new, fresh = members(1)
    fitted = Stacker(meta=meta, training=FEW).fit(p, labels)
    said = fitted.predict_proba(new)
    assert np.allclose(said.sum(-1), 1)
    assert nll(said, fresh) < nll(new.mean(0), fresh)


def test_a_linear_module_reaches_the_loss_of_logistic_regression():
    p, labels = members()
    new, fresh = members(1)
    ours = Stacker(meta="meta_factories:linear", training={"epochs": 200, "weight_decay": 0.3})
    theirs = Stacker().fit(p, labels)
    mine = nll(ours.fit(p, labels).predict_proba(new), fresh)
    assert abs(mine - nll(theirs.predict_proba(new), fresh)) < 0.05


def test_numbers_of_any_scale_are_learned():
    said, targets = numbers()
    said, targets = said * 1e4 + 1e6, targets * 1e4 + 1e6
    fitted = Stacker(target="numbers", meta="mlp").fit(said, targets)
    new, fresh = numbers(1)
    errors = np.abs(fitted.predict(new * 1e4 + 1e6) - (fresh * 1e4 + 1e6))
    assert errors.mean() < np.abs(new[0] - fresh).mean() * 1e4  # the best member is off by 1


def test_the_same_seed_gives_the_same_bits_whatever_surrounds_it():
    p, labels = members()
    options = {"meta": FACTORY, "training": {"epochs": 5, "batch_size": 50}}
    first = Stacker(**options).fit(p, labels).predict_proba(p)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    torch.set_num_threads(2)
    again = Stacker(**options).fit(p, labels).predict_proba(p)
    torch.set_num_threads(1)
    assert np.array_equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = Stacker(**options, seed=1).fit(p, labels).predict_proba(p)
    assert not np.array_equal(first, other)


def test_a_module_that_came_as_an_object_is_copied_and_stays_as_it_was():
    p, labels = members(n=60)
    module = nn.Linear(12, 3)
    before = module.weight.clone()
    fitted = Stacker(meta=module, training={"epochs": 3}, final="mean", folds=2).fit(p, labels)
    assert torch.equal(module.weight, before)
    weights = [model[0].model.module.weight for model in fitted.layers_[0][0].models]
    assert not torch.equal(weights[0], weights[1])


def test_predictions_do_not_depend_on_the_rows_beside_them():
    """Batch-norm and dropout are off when new rows are predicted."""
    p, labels = members()
    fitted = Stacker(meta=FACTORY, training=FEW).fit(p, labels)
    whole = fitted.predict_proba(p)
    assert np.allclose(fitted.predict_proba(p[:, 7:8]), whole[7:8], atol=1e-6)


def test_training_options_reach_the_optimizer():
    p, labels = members(n=60)
    still = Stacker(meta="meta_factories:linear", training={"optimizer": "sgd", "lr": 0.0})
    with torch.random.fork_rng():
        expected = still.fit(p, labels).predict_proba(p)
    longer = still.set_params(training={"optimizer": "sgd", "lr": 0.0, "epochs": 9})
    assert np.array_equal(longer.fit(p, labels).predict_proba(p), expected)
    moved = still.set_params(training={"optimizer": "sgd", "lr": 0.1, "epochs": 1})
    assert not np.array_equal(moved.fit(p, labels).predict_proba(p), expected)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"training": {"learning_rate": 1}}, PolyfuseError, "no option 'learning_rate'"),
        ({"training": {"optimizer": "adamax"}}, DataError, "did you mean 'adam"),
        ({"training": {"epochs": 0}}, DataError, "epochs=0 must be a whole number"),
        ({"training": {"lr": 1e38, "optimizer": "sgd"}}, TrainingError, "lower its lr"),
        ({"meta": "meta_factories:no_module"}, DataError, "made a str, no nn.Module"),
        ({"meta": "meta_factories:wrong_outputs"}, DataError, r"shape \(2, 4\); expected \(2, 3\)"),
        ({"meta": "meta_factories:broken"}, DataError, "out of luck"),
        ({"meta": "meta_factories:missing"}, DataError, "makes no module"),
        ({"meta": "no_such_package:f"}, DataError, "no_such_package"),
        ({"meta": nn.Linear(5, 3)}, DataError, "cannot take 12 columns"),
        ({"meta": "mpl"}, DataError, "did you mean 'mlp'"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, kind, told):
    p, labels = members(n=60)
    with pytest.raises(kind, match=told):
        Stacker(**{"meta": "mlp", **options}).fit(p, labels)

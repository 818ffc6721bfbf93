"""What boosting gains on real digits, paired over seeds; slow."""

from functools import cache, partial

import numpy as np
import pytest

import polyfuse
from polyfuse.calibration import Temperature
from polyfuse.classical import bundled_digits
from polyfuse.combine import BOOSTED_COMBINERS, mean_probability
from polyfuse.optimizers import adam
from polyfuse.training import STRATEGIES

SEEDS = 5
STUDENT = 2.78  # 95 % of Student's t with four degrees of freedom
# A learner as each of them likes it: SAMME needs one that is not perfect on its rows.
CASES = {
    "gradient_boosting": ("boosted_sum", {"rounds": 6, "shrinkage": 0.5}, 16, 10),
    "soft_boosting": ("boosted_sum", {"members": 6}, 16, 15),
    "samme": ("boosted_vote", {"rounds": 6}, 6, 8),
}


@cache
def digits():
    """Return 400, 300 and 1,000 of the real digits of scikit-learn."""
    images, labels = bundled_digits()
    inputs, order = images.reshape(-1, 64) / np.float32(16), np.random.default_rng(0)
    order = order.permutation(len(labels))
    parts = order[:400], order[400:700], order[700:1700]
    return polyfuse.Splits(*(polyfuse.Arrays(inputs[rows], labels[rows]) for rows in parts))


def calibrated(fuse, population):
    """Return NLL and accuracy on test, after a temperature that is fitted on validation."""
    data = digits()
    scale = Temperature(space="prob").fit(fuse(population.stack("val")), data.val.labels)
    p = scale.predict_proba(fuse(population.stack("test")))
    own = p[np.arange(len(p)), data.test.labels]
    return -np.log(own).mean(), (p.argmax(-1) == data.test.labels).mean()


def boosted(strategy, seed, folder):
    """Boost; return the population, and its fusion."""
    name, options, hidden, epochs = CASES[strategy]
    factory = partial(polyfuse.mlp, inputs=64, classes=10, hidden=hidden)
    optimizer = partial(adam, lr=0.01)
    fit = polyfuse.FitOptions(epochs=epochs, batch_size=16, optimizer=optimizer, accelerator="cpu")
    plan = STRATEGIES[strategy](digits().train, **options, seed=seed)
    population = polyfuse.train(plan, polyfuse.Task(factory, digits(), fit), folder).for_fusions
    weights = [member.record["weight"] for member in population.members]
    return population, partial(BOOSTED_COMBINERS[name], weights=weights)


def alone(member, stack):
    return mean_probability(stack[member : member + 1])


@pytest.mark.long
@pytest.mark.parametrize("strategy", CASES)
def test_boosting_is_better_than_its_members(strategy, tmp_path):
    """Than their mean; but for a few votes of SAMME, also than the first, which is the best one."""
    gains = []
    for seed in range(SEEDS):
        population, fuse = boosted(strategy, seed, tmp_path / str(seed))
        together, _ = calibrated(fuse, population)
        count = len(population.members)
        each = [calibrated(partial(alone, m), population)[0] for m in range(count)]
        gains.append([each[0] - together, np.mean(each) - together])
    error = np.std(gains, axis=0, ddof=1) / np.sqrt(SEEDS)
    better = np.mean(gains, axis=0) > STUDENT * error
    assert better[1]
    assert better[0] or strategy == "samme"

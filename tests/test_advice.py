"""Which row is recommended: never the best one lost by luck, and the cheapest of those left."""

import numpy as np
import pytest

from polyfuse.advice import advise
from polyfuse.metrics import Terms, nll
from polyfuse.significance import declare_winner


def decided(right):
    return Terms(np.asarray(right, float), np.ones(len(right)))


def rows_of(scores, **models):
    """The best of them is the dearest, unless told otherwise."""
    return [{"name": n, "models": models.get(n, 5), "parameters": None} for n in scores]


def advice(scores, models, **options):
    best = max(scores, key=lambda name: scores[name].value)
    return advise(rows_of(scores, **models), scores, "accuracy", best=best, **options)


def lost(rng, names, samples=300):
    """Tell whether the first of equally good rows is passed over for a worse score."""
    scores = {name: decided(rng.random(samples) < 0.7) for name in names}
    found = advice(scores, {}, replicates=100)
    return found.passed_over.get(names[0], "").startswith("worse than")


def test_a_row_as_good_as_the_best_is_rarely_lost_by_luck():
    """Of ten equal rows each may be the best: tests of each by itself would lose it often."""
    rng, names = np.random.default_rng(0), [f"row {i}" for i in range(10)]
    assert np.mean([lost(rng, names) for _ in range(150)]) <= 0.05


def test_few_groups_tell_rows_apart_that_all_pairs_of_rows_would_not():
    """Ten groups, nine rows: the least p is 1 in 512, times 8 with the best, 36 of all pairs."""
    groups = np.repeat(np.arange(10), 6)
    wrong = {f"row {i}": decided((np.arange(60) + i) % 3 > 0) for i in range(8)}
    scores = {"sure": decided(np.ones(60)), **wrong}
    found = advice(scores, {"row 0": 1}, groups=groups)
    assert found.recommended == "sure"
    assert found.passed_over["row 0"].endswith("p = 0.016")
    assert declare_winner(scores, groups=groups).winner is None


@pytest.mark.parametrize("parameters", [True, False])
def test_the_cheapest_is_found_by_parameters_or_where_they_are_unknown_by_models(parameters):
    scores = {"a": decided([1, 1, 1, 0]), "b": decided([1, 1, 0, 0]), "c": decided([0, 1, 1, 0])}
    rows = [
        {"name": "a", "models": 3, "parameters": 300},
        {"name": "b", "models": 1, "parameters": 200 if parameters else None},
        {"name": "c", "models": 2, "parameters": 50},
    ]
    found = advise(rows, scores, "accuracy", best="a")
    assert found.recommended == ("c" if parameters else "b")
    assert set(found.passed_over) == {"a", "b", "c"} - {found.recommended}
    assert "costs 6 times as much as c" in found.passed_over["a"] or not parameters


def test_a_lower_loss_is_better_and_among_equally_cheap_rows_it_decides():
    labels = np.zeros(50, int)
    good, poor = (np.tile([p, 1 - p], (50, 1)) for p in (0.9, 0.6))
    scores = {"poor": nll(poor, labels), "good": nll(good, labels)}
    rows = rows_of(scores)
    found = advise(rows, scores, "nll", best="good")
    assert found.recommended == "good"
    assert found.passed_over["poor"].startswith("worse than good on validation: +0.405 [")


def test_one_row_is_the_one_to_use():
    assert advice({"only": decided([1, 0])}, {}).recommended == "only"

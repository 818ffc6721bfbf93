"""ECE: parity with torchmetrics and scikit-learn's bins, and bins that replicates keep."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.calibration import calibration_curve

from polyfuse.errors import DataError
from polyfuse.metrics import bootstrap_counts, ece

equal_kinds = pytest.mark.parametrize("equal", ["width", "mass"])


def some(n=200, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, 2, (n, classes)) + 2 * np.eye(classes)[labels]
    return special.softmax(logits, -1), labels


def theirs_of():
    """Return torchmetrics' functions; its environment is made by `make integrations`."""
    return pytest.importorskip("torchmetrics.functional.classification")


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 2**32))
def test_equal_width_matches_torchmetrics(n, bins, seed):
    prediction, labels = some(n, seed=seed)
    expected = theirs_of().multiclass_calibration_error(
        torch.from_numpy(prediction), torch.from_numpy(labels), 4, n_bins=bins
    )
    assert ece(prediction, labels, bins=bins).value == pytest.approx(float(expected), abs=2e-6)


@equal_kinds
def test_bins_match_scikit_learns(equal):
    rng = np.random.default_rng(0)
    one = 0.5 + rng.random(300) / 2
    labels = (rng.random(300) < one**2).astype(int)
    strategy = {"width": "uniform", "mass": "quantile"}[equal]
    true, told = calibration_curve(labels, one, n_bins=10, strategy=strategy)
    score = ece(np.stack([1 - one, one], -1), labels, bins=10, equal=equal)
    sizes = np.bincount(score.bin, minlength=10)
    expected = sizes[sizes > 0] @ np.abs(true - told) / 300
    assert score.value == pytest.approx(expected, abs=1e-12)


def test_bins_of_equal_mass_hold_as_many_cases():
    score = ece(*some(200), bins=10, equal="mass")
    assert set(np.bincount(score.bin, minlength=10)) == {20}


def test_a_confidence_on_an_edge_counts_in_the_bin_below():
    prediction = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert ece(prediction, np.zeros(3, int), bins=4).bin.tolist() == [1, 2, 3]


@equal_kinds
@given(st.integers(1, 30), st.integers(0, 2**32))
def test_replicates_keep_the_bins(equal, n, seed):
    prediction, labels = some(n, seed=seed)
    score = ece(prediction, labels, bins=5, equal=equal)
    counts = bootstrap_counts(n, 3, seed=seed)
    confidence, right = prediction.max(-1), prediction.argmax(-1) == labels
    for found, row in zip(score.replicates(counts), counts, strict=True):
        drawn = np.repeat(np.arange(n), row.astype(int))
        parts = [drawn[score.bin[drawn] == b] for b in range(5)]
        gaps = [len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts if len(p)]
        assert found == pytest.approx(sum(gaps) / n, abs=1e-12)


def test_one_bin_is_confidence_minus_accuracy():
    prediction, labels = some()
    gap = prediction.max(-1).mean() - (prediction.argmax(-1) == labels).mean()
    assert ece(prediction, labels, bins=1).value == pytest.approx(abs(gap), abs=1e-12)


@pytest.mark.parametrize("options", [{"bins": 0}, {"equal": "size"}])
def test_no_such_bins(options):
    with pytest.raises(DataError, match="expected bins of 1 or more"):
        ece(*some(), **options)

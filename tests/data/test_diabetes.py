"""The embedded regression: scikit-learn's diabetes study, dealt and scaled by its training rows."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

from polyfuse.data import DATASETS
from polyfuse.data.diabetes import diabetes
from polyfuse.errors import DataError


def test_each_patient_is_in_one_split_and_is_that_of_scikit_learn():
    measures, progression = load_diabetes(return_X_y=True, scaled=False)
    splits = diabetes(seed=3)
    rows = [np.array(split.names, int) for split in splits]
    assert sorted(np.concatenate(rows)) == list(range(442))
    train = rows[0]
    for split, own in zip(splits, rows, strict=True):
        expected = (measures[own] - measures[train].mean(0)) / measures[train].std(0)
        np.testing.assert_allclose(split.values.numpy(), expected, rtol=1e-4, atol=1e-5)
        expected = (progression[own] - progression[train].mean()) / progression[train].std()
        np.testing.assert_allclose(split.labels[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert DATASETS["diabetes"] is diabetes


def test_there_is_something_to_learn_and_the_mean_scores_one():
    train, _, test = diabetes()
    assert np.sqrt((train.labels**2).mean()) == pytest.approx(1, abs=1e-5)
    said = LinearRegression().fit(train.values, train.labels).predict(test.values)
    assert np.sqrt(((said - test.labels) ** 2).mean()) < 0.8


def test_the_seed_deals_and_the_task_shapes_the_labels():
    assert diabetes(seed=1).train.fingerprint() == diabetes(seed=1).train.fingerprint()
    assert diabetes(seed=1).train.fingerprint() != diabetes(seed=2).train.fingerprint()
    assert diabetes(task="mean_variance").val.labels.shape == (88,)
    with pytest.raises(DataError, match="type regression"):
        diabetes(task="multilabel")

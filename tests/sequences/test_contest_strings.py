"""Priors of the contest's own labels: 40,000 real house numbers, read through simulated noise."""

import json

import numpy as np
import pytest
from scipy import special

from polyfuse.sequences import (
    apply_prior,
    encode,
    fit_strength,
    joint_decode,
    length_prior,
    matches,
    position_prior,
    strings,
)

LENGTHS = [0, 4636, 16262, 7813, 1280, 8, 1]  # of the training strings, from 0 characters


@pytest.fixture(scope="module")
def numbers(shared_data):
    """Return the contest's training and validation strings."""
    found = []
    for part in ("train", "val"):
        entries = json.loads((shared_data / "mchar" / f"mchar_{part}.json").read_text())
        found.append(["".join(map(str, entry["label"])) for entry in entries.values()])
    return found


def test_every_number_is_encoded_and_written_back(numbers):
    for texts in numbers:
        assert strings(encode(texts, positions=6), blank=10) == texts


def test_lengths_and_leading_zeros_are_those_of_the_contest(numbers):
    labels = encode(numbers[0])
    assert labels.shape == (30_000, 6)
    shares = np.exp(length_prior(labels, blank=10, smoothing=0.0))
    np.testing.assert_allclose(shares, np.array(LENGTHS) / 30_000)
    # A rule against leading zeros is a rule with exceptions, few as they are.
    assert [int(matches(texts, ["0?*"]).sum()) for texts in numbers] == [27, 6]


def test_priors_of_training_labels_help_on_validation_by_an_interval(numbers):
    train, val = (encode(texts, positions=6) for texts in numbers)
    val = val[:4000]
    rng = np.random.default_rng(0)
    seen = 2.5 * np.eye(11)[val] + rng.normal(0, 1, (*val.shape, 11))
    heads = special.log_softmax(2.5 * seen, -1)  # of a net that saw each class equally often
    prior, length = position_prior(train, classes=11), length_prior(train, blank=10)

    def read(rows, strength, of_length=0.0):
        told = apply_prior(heads[rows], prior, strength)
        return joint_decode(told, blank=10, log_prior=of_length * length)

    fit, score = slice(0, 2000), slice(2000, 4000)
    strength = fit_strength(lambda s: read(fit, s), val[fit])
    plain = (read(score, 0.0) == val[score]).all(1)
    told = (read(score, strength) == val[score]).all(1)
    gain = told.astype(float) - plain
    assert strength > 0
    assert gain.mean() - 1.96 * gain.std(ddof=1) / 2000**0.5 > 0.02
    # Lengths alone help, too; on top of positions, which know the blanks, they have little to add.
    by_length = fit_strength(lambda s: read(fit, 0.0, s), val[fit])
    assert (read(score, 0.0, by_length) == val[score]).all(1).mean() > plain.mean() + 0.005

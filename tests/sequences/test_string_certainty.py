"""Confidence of strings, abstention, and the risk that a coverage has."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from polyfuse.errors import DataError
from polyfuse.metrics import aurc
from polyfuse.sequences import (
    abstain,
    best_strings,
    confidence,
    decode,
    joint_confidence,
    risk_coverage,
    threshold_for,
)
from polyfuse.sequences.certainty import _luck

few = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def some(seed, rows=3, positions=3, classes=4):
    rng = np.random.default_rng(seed)
    heads = special.log_softmax(rng.normal(0, 2, (rows, positions, classes)), -1)
    return heads, rng.normal(0, 1, (rows, positions + 1))


def every_string(positions, classes):
    characters = range(classes - 1)
    return [
        [*text, *[classes - 1] * (positions - length)]
        for length in range(positions + 1)
        for text in itertools.product(characters, repeat=length)
    ]


@few
@given(seeds)
def test_confidences_of_all_strings_sum_to_one(seed):
    heads, lengths = some(seed, positions=2)
    total, together = np.zeros(3), np.zeros(3)
    for label in every_string(2, 4):
        read = np.tile(label, (3, 1))
        total += confidence(heads, read, blank=3)
        together += joint_confidence(heads, read, lengths, blank=3)
    np.testing.assert_allclose(total, 1, rtol=1e-9)
    np.testing.assert_allclose(together, 1, rtol=1e-9)


@given(seeds)
def test_a_confidence_is_how_often_the_string_is_drawn(seed):
    heads, _ = some(seed, rows=1, positions=2, classes=3)
    rng = np.random.default_rng(seed)
    drawn = (rng.random((4000, 2, 1)) > np.exp(heads[0]).cumsum(-1)).sum(-1).clip(max=2)
    read = decode(drawn, blank=2)
    for label in every_string(2, 3):
        share = (read == label).all(1).mean()
        sure = confidence(heads, np.array([label]), blank=2)[0]
        assert abs(share - sure) < 0.05


def test_joint_confidences_are_in_the_order_of_the_scores():
    heads, lengths = some(5)
    read, scores = best_strings(heads, 1000, blank=3, lengths=lengths)
    sure = np.stack(
        [joint_confidence(heads, read[:, k], lengths, blank=3) for k in range(read.shape[1])], 1
    )
    np.testing.assert_allclose(sure, special.softmax(scores, -1), rtol=1e-9)
    assert (np.diff(sure, axis=1) <= 1e-12).all()


def test_only_what_a_string_claims_counts():
    heads = np.log(np.array([[[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]]]))
    assert confidence(heads, [[0, 2, 2]], blank=2)[0] == pytest.approx(0.8 * 0.6)
    assert confidence(heads, [[0, 1, 0]], blank=2)[0] == pytest.approx(0.8 * 0.2 * 0.5)
    assert confidence(heads, [[2, 2, 2]], blank=-1)[0] == pytest.approx(0.1)


def test_impossible_strings_have_confidence_0():
    with np.errstate(divide="ignore"):
        heads = np.log(np.array([[[1.0, 0.0]]]))
    for sure in (confidence, joint_confidence):
        assert sure(heads, [[0]], blank=1).tolist() == [1.0]
        assert sure(heads, [[1]], blank=1).tolist() == [0.0]


samples = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0])),
        hnp.arrays(bool, n),
    )
)


@few
@given(samples)
def test_risk_and_coverage_are_those_of_the_answered(drawn):
    sure, right = drawn
    curve = risk_coverage(sure, right)
    assert sorted(set(sure), reverse=True) == curve.threshold.tolist()
    for threshold, coverage, risk in zip(*curve, strict=True):
        answered = ~abstain(sure, threshold)
        assert coverage == pytest.approx(answered.mean())
        assert risk == pytest.approx((~right)[answered].mean())
    assert curve.coverage[-1] == 1.0


@few
@given(samples)
def test_the_area_is_that_of_the_metric(drawn):
    sure, right = drawn
    wide = 0.5 + sure / 2  # the metric reads the largest of two probabilities
    both = np.stack([wide, 1 - wide], 1)
    expected = aurc(both, np.where(right, 0, 1)).value
    # Where both are 0.5 the metric takes the first for the answer, as is meant here.
    assert risk_coverage(wide, right).area == pytest.approx(expected)


@few
@given(samples, st.floats(0, 1))
def test_the_threshold_is_the_lowest_that_is_safe(drawn, risk):
    sure, right = drawn
    threshold = threshold_for(sure, right, risk=risk)
    answered = ~abstain(sure, threshold)
    assert not answered.any() or (~right)[answered].mean() <= risk
    for lower in sorted(set(sure)):
        if lower < threshold:
            assert (~right)[sure >= lower].mean() > risk


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0, 1, exclude_max=True))
@few
def test_luck_is_the_binomial_distribution(wrong, more, risk):
    expected = stats.binom.cdf(wrong, wrong + more, risk)
    assert _luck(wrong, wrong + more, risk) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def drawn_rows(rng, rows=300):
    """Return confidences, and whether it is right; each is right as often as it says."""
    sure = rng.uniform(0.4, 1, rows)
    return sure, rng.random(rows) < sure


def test_a_controlled_threshold_keeps_its_promise_where_the_lowest_safe_one_does_not():
    rng, fresh = np.random.default_rng(0), drawn_rows(np.random.default_rng(1), 50_000)
    broken = {None: 0, 0.1: 0}
    for _ in range(60):
        sure, right = drawn_rows(rng)
        for doubt in broken:
            threshold = threshold_for(sure, right, risk=0.15, doubt=doubt)
            answered = ~abstain(fresh[0], threshold)
            broken[doubt] += answered.any() and (~fresh[1])[answered].mean() > 0.15
    assert broken[0.1] <= 6
    assert broken[None] > 20


def test_control_needs_rows_enough():
    sure = np.linspace(0.5, 1, 500)
    right = np.ones(500, bool)
    assert threshold_for(sure, right, risk=0.05, doubt=0.05) == 0.5
    assert threshold_for(sure[:5], right[:5], risk=0.05, doubt=0.05) == np.inf
    assert threshold_for(sure, ~right, risk=1.0, doubt=0.05) == 0.5
    assert threshold_for(sure, right, risk=0.0, doubt=0.05) == np.inf


def test_abstaining_leaves_out_the_unsure_and_the_unknown():
    assert abstain([0.9, 0.5, np.nan], 0.5).tolist() == [False, False, True]
    assert abstain([0.9], np.inf).tolist() == [True]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: risk_coverage([0.5], [1]), "one boolean a sample"),
        (lambda: risk_coverage([0.5, 0.6], [True]), "shapes \\(2,\\) and \\(1,\\)"),
        (lambda: risk_coverage([], np.zeros(0, bool)), "one confidence"),
        (lambda: risk_coverage([np.nan], [True]), "hold NaN"),
        (lambda: threshold_for([0.5], [True], risk=1.5), "risk=1.5 is no share"),
        (lambda: threshold_for([0.5], [True], risk=np.nan), "risk=nan is no share"),
        (lambda: threshold_for([0.5], [True], risk=0.1, doubt=0), "doubt=0 is no probability"),
        (lambda: confidence(np.zeros((1, 2, 3)), [[0, 0]], blank=2), "no log-probabilities"),
        (lambda: confidence(some(0)[0], [[0, 0, 0]], blank=2), "expected \\(3, 3\\)"),
        (lambda: joint_confidence(some(0)[0], [[0, 9, 0]] * 3, blank=2), "do not fit 4 classes"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(DataError, match=said):
        call()

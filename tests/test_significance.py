"""Significance: exact tests against SciPy, false alarms as rare as said, true gains told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from polyfuse.errors import DataError
from polyfuse.metrics import Terms, accuracy, auroc, f1, nll, replicate_scores, rmse, scored_by
from polyfuse.significance import compare_pairs, declare_winner, holm, mcnemar


def rightness(share, n=400, seed=0):
    right = (np.random.default_rng(seed).random(n) < share).astype(float)
    return Terms(right, np.ones(n))


def values(mean, n=400, seed=0, common=None):
    own = np.random.default_rng(seed).normal(mean, 1, n)
    return Terms(own if common is None else own + common, np.ones(n))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_sign_test(wins, losses, level):
    a = np.repeat([1, 0, 1, 0], [wins, losses, level, level])
    b = np.repeat([0, 1, 1, 0], [wins, losses, level, level])
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(b, a) == mcnemar(a, b)
    ones = np.ones(len(a))
    if len(a):
        assert mcnemar(Terms(a.astype(float), ones), Terms(b.astype(float), ones)) == mcnemar(a, b)


@pytest.mark.parametrize(("wins", "losses"), [(50_400, 49_600), (3000, 1), (500_000, 500_000)])
def test_mcnemar_of_many_samples_stays_exact(wins, losses):
    a = np.repeat([1, 0], [wins, losses])
    expected = stats.binomtest(wins, wins + losses).pvalue
    assert mcnemar(a, 1 - a) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1, 0, 1], "same ones in the same order"),
        ([0.5, 1], [1, 0], "right or wrong"),
        ([2, 1], [1, 0], "right or wrong"),
    ],
)
def test_mcnemar_refuses_what_is_not_right_or_wrong(a, b, message):
    with pytest.raises(DataError, match=message):
        mcnemar(np.array(a), np.array(b))


def test_mcnemar_refuses_terms_of_characters():
    several = Terms(np.array([1.0, 0.0]), np.array([2.0, 1.0]))
    with pytest.raises(DataError, match="compare_pairs takes the bootstrap"):
        mcnemar(several, several)


def by_steps(ps):
    """Holm as he wrote it: from the smallest, each times the number of those that are left."""
    adjusted, worst = dict.fromkeys(range(len(ps)), 0.0), 0.0
    for step, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, ps[i] * (len(ps) - step))
        adjusted[i] = min(worst, 1.0)
    return list(adjusted.values())


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_goes_step_by_step(ps):
    found = holm(ps)
    assert found == pytest.approx(by_steps(ps), abs=1e-15)
    assert all(p <= q <= min(1, len(ps) * p) + 1e-15 for p, q in zip(ps, found, strict=True))


@pytest.mark.parametrize("ps", [[0.1, np.nan], [1.5], [-0.1]])
def test_holm_refuses_what_is_no_chance(ps):
    with pytest.raises(DataError, match="between 0 and 1"):
        holm(ps)


def test_all_rows_are_scored_on_the_same_replicates():
    rng = np.random.default_rng(0)
    labels, scores, numbers = rng.integers(0, 2, 80), rng.random(80), rng.normal(0, 1, (2, 80))
    p = np.stack([1 - scores, scores], -1)
    parts = Terms(rng.random(80), 1 + rng.random(80))
    own = scored_by(lambda f, y: float(np.mean(f == y)))
    rows = [
        accuracy(p, labels),
        f1(p, labels),
        nll(p, labels),
        rmse(*numbers),
        auroc(p, labels),
        parts,
        own(p.argmax(-1), labels),
    ]
    together = replicate_scores(rows, replicates=50, seed=3)
    assert together.shape == (50, 7)
    for i, row in enumerate(rows):
        alone = replicate_scores([row], replicates=50, seed=3)[:, 0]
        np.testing.assert_allclose(together[:, i], alone, rtol=1e-12)
    np.testing.assert_allclose(together[:, 6], together[:, 0], atol=1e-12)
    others = replicate_scores(rows, replicates=50, seed=4)
    assert (others != together).any()


def test_rows_of_other_samples_are_refused():
    with pytest.raises(DataError, match=r"rows of \[5, 6\] samples"):
        replicate_scores([rightness(0.5, 5), rightness(0.5, 6)])
    with pytest.raises(DataError, match="4 groups"):
        replicate_scores([rightness(0.5, 5)], groups=np.zeros(4, int))
    with pytest.raises(DataError, match=r"rows of \[\] samples"):
        replicate_scores([])


def test_pairs_are_mcnemars_where_samples_are_right_or_wrong():
    a, b = rightness(0.9), rightness(0.6, seed=1)
    (pair,) = compare_pairs({"a": a, "b": b}, replicates=200)
    assert pair.p == pair.corrected == mcnemar(a, b)
    assert pair.better == "a"
    assert pair.difference.low <= pair.difference.value <= pair.difference.high


def test_pairs_of_other_scores_are_a_paired_test():
    common = np.random.default_rng(9).normal(0, 5, 400)
    a, b = values(0.2, seed=1, common=common), values(0.0, seed=2, common=common)
    (pair,) = compare_pairs({"a": a, "b": b}, replicates=2000)
    expected = stats.ttest_rel(a.numerator, b.numerator).pvalue
    assert pair.p == pytest.approx(expected, rel=0.3)
    assert pair.difference.value == pytest.approx(a.value - b.value)


def test_groups_are_what_counts_as_independent():
    groups = np.repeat(np.arange(8), 50)
    shared = np.random.default_rng(0).random(8) < 0.6
    a = Terms(shared[groups].astype(float), np.ones(400))
    b = Terms(np.zeros(400), np.ones(400))
    alone, together = (
        compare_pairs({"a": a, "b": b}, replicates=300, groups=g)[0] for g in (None, groups)
    )
    assert alone.p < 1e-10
    assert together.p >= 2.0**-7
    one_group = compare_pairs({"a": a, "b": b}, replicates=300, groups=np.zeros(400, int))[0]
    assert one_group == alone


def test_a_reference_is_compared_with_each_and_corrected_for_that_many():
    rows = {name: rightness(0.7, seed=i) for i, name in enumerate("abcd")}
    pairs = compare_pairs(rows, reference="b", replicates=200)
    assert [pair[:2] for pair in pairs] == [("a", "b"), ("c", "b"), ("d", "b")]
    assert [pair.corrected for pair in pairs] == holm([pair.p for pair in pairs])
    every = compare_pairs(rows, replicates=200)
    assert len(every) == 6
    same = next(pair for pair in every if pair[:2] == ("a", "b"))
    assert same.difference == pairs[0].difference


def test_a_loss_is_better_where_it_is_lower():
    rows = {"a": values(0.0), "b": values(1.0, seed=1)}
    assert compare_pairs(rows, lower_is_better=True, replicates=200)[0].better == "a"
    assert compare_pairs(rows, replicates=200)[0].better == "b"
    assert declare_winner(rows, lower_is_better=True, replicates=200).winner == "a"


def test_a_winner_is_declared_where_it_beats_each():
    rows = {name: rightness(s, seed=i) for i, (name, s) in enumerate([("a", 0.5), ("b", 0.9)])}
    rows["c"] = rightness(0.6, seed=7)
    verdict = declare_winner(rows, replicates=300)
    assert verdict[:3] == ("b", "b", ("b",))
    assert [pair[:2] for pair in verdict.pairs] == [("b", "a"), ("b", "c")]
    assert all(pair.better == "b" and pair.difference.low > 0 for pair in verdict.pairs)


def test_rows_that_are_not_told_apart_share_the_place():
    best = rightness(0.9)
    flipped = best.numerator.copy()
    flipped[:3] = 1 - flipped[:3]
    rows = {"worse": rightness(0.3, seed=4), "near": Terms(flipped, np.ones(400)), "best": best}
    verdict = declare_winner(rows, replicates=300)
    assert verdict.winner is None
    assert set(verdict.level) == {"best", "near"}
    assert verdict.level[0] == verdict.best


def test_identical_rows_are_never_told_apart():
    verdict = declare_winner({"a": values(0.1), "b": values(0.1)}, replicates=100)
    assert verdict == ("a", None, ("a", "b"), verdict.pairs)
    assert verdict.pairs[0].p == 1
    assert verdict.pairs[0].difference == (0, 0, 0)


def test_few_samples_prove_little():
    rows = {"a": values(5.0, n=3), "b": Terms(values(5.0, n=3).numerator - 1, np.ones(3))}
    (pair,) = compare_pairs(rows, replicates=100)
    assert pair.difference.low == pytest.approx(1)  # the interval alone would be fooled
    assert pair.p == 0.25
    assert pair.better is None


@pytest.mark.parametrize("kind", [rightness, values])
def test_false_alarms_are_as_rare_as_said(kind):
    """Ten rows as good as each other: a best one that beats any other is a false alarm."""
    alarms = 0
    for trial in range(60):
        rows = {str(i): kind(0.7, n=200, seed=1000 * trial + i) for i in range(10)}
        verdict = declare_winner(rows, replicates=200, seed=trial)
        alarms += len(verdict.level) < 10
    assert alarms <= 8  # 3 are expected at most, and 9 or more in one of 200 tries


def test_an_undefined_score_wins_nothing():
    rows = {"a": auroc(np.array([0.1, 0.9]), np.array([0, 0])), "b": values(0.0, n=2)}
    with pytest.raises(DataError, match="the scores of a are undefined"):
        declare_winner(rows, replicates=20)
    (pair,) = compare_pairs(rows, replicates=20)
    assert pair.better is None
    assert pair.p == 1


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="two rows or more"):
        compare_pairs({"a": values(0.0)})
    with pytest.raises(DataError, match="no row 'bb'; did you mean"):
        compare_pairs({"aa": values(0.0), "b": values(0.0)}, reference="bb")

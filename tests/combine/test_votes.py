"""Votes: weights, ties, abstentions, beside scikit-learn's voting and plain Python."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.datasets import load_iris
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from polyfuse.combine import hard_vote, mean_probability, soft_vote
from polyfuse.errors import DataError


def some_logits(shape=(5, 23, 4)):
    return np.random.default_rng(0).normal(0, 2, shape)


def voted(p, weights):
    """Count weighted votes of those who are no NaN; ties by summed probability, then by label."""
    answer = []
    for rows in np.swapaxes(p, 0, 1):
        said = [(row, w) for row, w in zip(rows, weights, strict=True) if not np.isnan(row).any()]
        votes = [sum(w for row, w in said if row.argmax() == c) for c in range(p.shape[-1])]
        belief = [sum(w * row[c] for row, w in said) for c in range(p.shape[-1])]
        answer.append(max(range(p.shape[-1]), key=lambda c: (votes[c], round(belief[c], 9), -c)))
    return answer


@given(st.lists(st.integers(1, 4), min_size=5, max_size=5), st.integers(0, 1000))
def test_weighted_vote_is_counted_as_in_plain_python(weights, seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), (5, 6))
    p[rng.random((5, 6)) < 0.3] = np.nan
    p[0] = np.where(np.isnan(p[0]), 1 / 3, p[0])
    expected = voted(p, weights)
    for to in (np.asarray, torch.from_numpy):
        assert hard_vote(to(p), weights=weights, space="prob").tolist() == expected
        # The same proportions in tenths are no exact numbers.
        tenths = np.array(weights) / 10
        assert hard_vote(to(p), weights=tenths, space="prob").tolist() == expected


def test_a_tie_of_weights_is_a_tie_whatever_rounding_makes_of_it():
    p = np.array([[[0.9, 0.1]], [[0.45, 0.55]], [[0.4, 0.6]]])
    assert 0.1 + 0.2 != 0.3
    assert hard_vote(p, weights=[0.3, 0.1, 0.2], space="prob").tolist() == [0]
    assert hard_vote(1 - p, weights=[0.3, 0.1, 0.2], space="prob").tolist() == [1]


def test_soft_vote_decides_as_the_mean_probability():
    logits = some_logits()
    np.testing.assert_array_equal(soft_vote(logits), mean_probability(logits).argmax(-1))
    np.testing.assert_array_equal(soft_vote(logits, pool="logit"), logits.mean(0).argmax(-1))
    weights = [1, 5, 1, 1, 1]
    expected = np.average(special.softmax(logits, -1), 0, weights).argmax(-1)
    np.testing.assert_array_equal(soft_vote(logits, weights=weights), expected)
    with pytest.raises(DataError, match="use 'prob' or 'logit'"):
        soft_vote(logits, pool="rank")


def test_soft_vote_gives_ties_to_the_smaller_label():
    p = np.array([[[0.1, 0.6, 0.3]], [[0.5, 0.0, 0.5]]])
    assert soft_vote(p[:, :, ::-1].copy(), space="prob").tolist() == [0]
    tied = np.array([[[0.25, 0.5, 0.25]], [[0.25, 0.0, 0.75]]])
    assert soft_vote(tied, space="prob").tolist() == [2]
    assert soft_vote(
        np.array([[[0.25, 0.5, 0.25]], [[0.25, 0.25, 0.5]]]), space="prob"
    ).tolist() == [1]


@pytest.mark.parametrize("vote", [hard_vote, soft_vote])
@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_who_abstains_has_no_say(vote, to):
    logits = some_logits((5, 23, 3, 4))
    absent = np.random.default_rng(1).random((5, 23, 3)) < 0.4
    absent[0] &= ~absent.all(0)
    heard = np.where(absent[..., None], np.nan, logits)
    answer = np.asarray(vote(to(heard)))
    p = np.where(absent[..., None], np.nan, special.softmax(logits, -1))
    np.testing.assert_array_equal(np.asarray(vote(to(p), space="prob")), answer)
    for row in range(23):
        for head in range(3):
            here = logits[~absent[:, row, head], row : row + 1, head]
            assert vote(here).tolist() == [answer[row, head]]


@pytest.mark.parametrize("vote", [hard_vote, soft_vote])
def test_labels_of_their_own_may_lack_one_by_one(vote):
    logits = np.array([[[2.0, np.nan]], [[np.nan, -1.0]], [[-1.0, -1.0]]])
    assert vote(logits, exclusive=False).tolist() == [[1, 0]]


@pytest.mark.parametrize("vote", [hard_vote, soft_vote])
def test_half_a_row_is_no_abstention_and_silence_no_answer(vote):
    logits = some_logits()
    logits[2, 3, 1] = np.nan
    with pytest.raises(DataError, match="member 2 has NaN or infinity in row 3"):
        vote(logits)
    logits[:, 3] = np.nan
    with pytest.raises(DataError, match="no member has a say in row 3"):
        vote(logits)


def test_heads_vote_by_themselves():
    logits = some_logits((3, 8, 2, 4))
    for vote in (hard_vote, soft_vote):
        by_head = [vote(np.ascontiguousarray(logits[:, :, head])) for head in range(2)]
        np.testing.assert_array_equal(vote(logits), np.stack(by_head, -1))


@pytest.mark.parametrize("weights", [None, [1, 2, 4, 8]])
def test_parity_with_scikit_learn(weights):
    """Its hard vote gives ties to the smaller label; ours only where probabilities tie too."""
    x, y = load_iris(return_X_y=True)
    x = x[:, :2]
    learners = [
        ("linear", LogisticRegression()),
        ("bayes", GaussianNB()),
        ("tree", DecisionTreeClassifier(max_depth=2, random_state=0)),
        ("stump", DecisionTreeClassifier(max_depth=1, random_state=0)),
    ]
    soft = VotingClassifier(learners, voting="soft", weights=weights).fit(x, y)
    p = np.stack([member.predict_proba(x) for member in soft.estimators_])
    np.testing.assert_allclose(
        mean_probability(p, space="prob", weights=weights), soft.predict_proba(x), atol=1e-14
    )
    np.testing.assert_array_equal(soft_vote(p, space="prob", weights=weights), soft.predict(x))
    hard = VotingClassifier(learners, voting="hard", weights=weights).fit(x, y)
    ours = hard_vote(p, space="prob", weights=weights)
    votes = np.apply_along_axis(np.bincount, 0, p.argmax(-1), weights=weights, minlength=3)
    untied = (votes == votes.max(0)).sum(0) == 1
    np.testing.assert_array_equal(ours[untied], hard.predict(x)[untied])
    assert weights or not untied.all()

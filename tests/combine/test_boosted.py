"""The weighted vote of SAMME and the weighted sum, against their formulas in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from polyfuse.boosting import samme_decision
from polyfuse.combine import BOOSTED_COMBINERS, boosted_sum, boosted_vote, product
from polyfuse.compare import FUSIONS
from polyfuse.errors import DataError

every = pytest.mark.parametrize("combiner", BOOSTED_COMBINERS.values(), ids=BOOSTED_COMBINERS)


def some_logits(shape=(4, 11, 3), seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape)


@settings(max_examples=25)
@given(
    members=st.integers(1, 4),
    classes=st.integers(2, 6),
    heads=st.sampled_from([(), (2,)]),
    seed=st.integers(0, 99),
)
def test_the_vote_is_the_softmax_of_the_decision_over_k_less_1(members, classes, heads, seed):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(members, 5, *heads, classes))
    weights = draw.gamma(1, size=members)
    decision = samme_decision(logits.argmax(-1), weights, classes=classes)
    expected = special.softmax(decision / (classes - 1), -1)
    np.testing.assert_allclose(boosted_vote(logits, weights=weights), expected, atol=1e-13)


def test_the_vote_sees_only_the_ratio_of_weights_and_the_sum_their_size():
    logits, weights = some_logits(), np.array([0.3, 2.0, 0.0, 1.0])
    scaled = boosted_vote(logits, weights=7 * weights)
    np.testing.assert_allclose(boosted_vote(logits, weights=weights), scaled, atol=1e-15)
    for size in (1, 7):
        expected = special.softmax(np.tensordot(size * weights, logits, 1), -1)
        np.testing.assert_allclose(
            boosted_sum(logits, weights=size * weights), expected, atol=1e-14
        )


def test_the_sum_of_outputs_multiplies_probabilities():
    logits, weights = some_logits((3, 9, 4, 5)), [0.1, 0.5, 3.0]
    np.testing.assert_allclose(
        boosted_sum(logits, weights=weights), product(logits, weights=weights), atol=1e-14
    )


def test_the_sum_of_values_is_the_sum():
    values, weights = some_logits((3, 9)), [0.1, 0.5, 3.0]
    answer = boosted_sum(values, weights=weights, space="value")
    np.testing.assert_allclose(answer, np.tensordot(weights, values, 1), atol=1e-14)
    values[1, 2] = np.nan
    with pytest.raises(DataError, match="member 1 has NaN or infinity in row 2"):
        boosted_sum(values, space="value")


def test_the_votes_probabilities_are_flat():
    sure = boosted_vote(np.array([[[50.0, 0.0, 0.0, 0.0]]] * 3))
    np.testing.assert_allclose(sure[0, 0] / sure[0, 1], np.exp(4 / 9), rtol=1e-12)


def test_of_equal_classes_a_member_votes_for_the_smaller_label():
    for tie in (np.array([[[1.0, 3.0, 3.0]]]), torch.tensor([[[1.0, 3.0, 3.0]]])):
        assert int(np.asarray(boosted_vote(tie)).argmax()) == 1


@every
@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_the_three_spaces_agree_and_labels_are_pairs(combiner, to):
    logits, weights = some_logits(), [1.0, 2.0, 0.5, 0.0]
    expected = combiner(to(logits), weights=weights)
    for space, values in {
        "prob": special.softmax(logits, -1),
        "log_prob": special.log_softmax(logits, -1),
    }.items():
        answer = combiner(to(values), weights=weights, space=space)
        np.testing.assert_allclose(np.asarray(answer), np.asarray(expected), atol=1e-13)
    pairs = np.stack([np.zeros_like(logits), logits], -1)
    expected = np.asarray(combiner(to(pairs), weights=weights))[..., 1]
    answer = combiner(to(logits), weights=weights, exclusive=False)
    np.testing.assert_allclose(np.asarray(answer), expected, atol=1e-13)


@every
def test_a_member_without_weight_is_not_heard(combiner):
    logits = some_logits()
    logits[2] = np.where(np.arange(3) == 0, 60.0, -np.inf)
    kept = [0, 1, 3]
    alone = combiner(logits[kept], weights=[1, 2, 3])
    np.testing.assert_allclose(combiner(logits, weights=[1, 2, 0, 3]), alone, atol=1e-14)


@every
def test_refuses_what_is_in_no_space(combiner):
    with pytest.raises(DataError, match="unknown space 'probs'; did you mean 'prob'"):
        combiner(some_logits(), space="probs")
    with pytest.raises(DataError, match="as in logits"):
        combiner(some_logits() + 9, space="prob")
    with pytest.raises(DataError, match="a binary model's single logit is exclusive=False"):
        combiner(some_logits((4, 11, 1)))


@every
def test_compiles_to_one_graph_for_export(combiner):
    class Net(torch.nn.Module):
        def forward(self, stacked):
            return combiner(stacked, weights=[1.0, 2.0, 3.0, 4.0])

    logits = torch.from_numpy(some_logits()).float()
    program = torch.export.export(Net(), (logits,), strict=False)
    torch.testing.assert_close(program.module()(logits), Net()(logits))


def test_the_sum_is_differentiable():
    logits = torch.from_numpy(some_logits((3, 2, 4))).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: boosted_sum(z, weights=[1, 2, 0.5]), logits)


def test_both_may_be_named_as_fusions():
    assert BOOSTED_COMBINERS.items() <= FUSIONS.items()

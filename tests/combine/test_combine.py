"""Combiners: one contract for all of them, then what each one promises."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from polyfuse.combine import CLASS_COMBINERS, COMBINERS, hard_vote, mean_logit, mean_probability
from polyfuse.errors import DataError
from polyfuse.metrics import nll
from polyfuse.sequences import joint_decode
from polyfuse.tasks import FUSIONS, RULES

TOLERANCE = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14, "bfloat16": 8e-3}
OF_CLASSES = {name: FUSIONS[name] for name in RULES["classification"].fusions}
OF_STRINGS = [FUSIONS[name] for name in ("string_vote", "aligned_vote", "joint_decoding")]
every = pytest.mark.parametrize("fusion", OF_CLASSES.values(), ids=OF_CLASSES)
every_mean = pytest.mark.parametrize("mean", [mean_probability, mean_logit])
every_precision = pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
stacks = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 5)),
    elements=st.floats(-30, 30),
)


def some_logits(dtype="float64", shape=(5, 37, 3, 7)):
    """Members that often disagree, without exact ties."""
    return np.random.default_rng(0).normal(0, 2, shape).astype(dtype)


# What copies of one member give: more confidence, shares of points, and a coded vote.
NO_MEANS = {
    COMBINERS["product"]: lambda z, members: special.softmax(members * z, -1),
    COMBINERS["rank_mean"]: lambda z, members: (
        (stats.rankdata(z, axis=-1) - 1) / (z.shape[-1] * (z.shape[-1] - 1) / 2)
    ),
    COMBINERS["boosted_sum"]: lambda z, members: special.softmax(members * z, -1),
    COMBINERS["boosted_vote"]: lambda z, members: special.softmax(
        np.where(z == z.max(-1, keepdims=True), 1, -1 / (z.shape[-1] - 1)) / (z.shape[-1] - 1), -1
    ),
}


def reference(fusion, logits):
    """The answer in plain float64 NumPy and SciPy, for the means."""
    wide = logits.astype(np.float64)
    if fusion is mean_probability:
        return special.softmax(wide, -1).mean(0)
    return special.softmax(wide.mean(0), -1)


@every
def test_members_may_come_in_any_order(fusion):
    logits = some_logits(shape=(4, 9, 3, 5))
    expected = fusion(logits)
    for order in itertools.islice(itertools.permutations(range(4)), 1, None, 5):
        np.testing.assert_allclose(fusion(logits[list(order)]), expected, atol=1e-14)


@every
@pytest.mark.parametrize("members", [1, 3])
def test_identical_members_answer_as_one(fusion, members):
    logits = some_logits(shape=(1, 9, 3, 5))
    answer = fusion(np.repeat(logits, members, 0))
    if fusion in NO_MEANS:
        np.testing.assert_allclose(answer, NO_MEANS[fusion](logits[0], members), atol=1e-14)
    elif answer.dtype.kind == "f":
        np.testing.assert_allclose(answer, special.softmax(logits[0], -1), atol=1e-14)
    elif fusion is FUSIONS["joint_decoding"]:
        heads = special.log_softmax(logits[0], -1)
        np.testing.assert_array_equal(answer, joint_decode(heads, blank=4))
    else:  # votes on strings read nothing after the first blank, the last class
        read = logits[0].argmax(-1)
        ended = np.maximum.accumulate(read == 4, axis=1) & (fusion in OF_STRINGS)
        np.testing.assert_array_equal(answer, np.where(ended, 4, read))


@every
@every_precision
def test_numpy_and_torch_agree(fusion, precision):
    logits = some_logits(precision)
    ours, theirs = fusion(logits), fusion(torch.from_numpy(logits))
    assert isinstance(theirs, torch.Tensor)
    assert str(theirs.dtype) == f"torch.{ours.dtype}"
    np.testing.assert_allclose(theirs.numpy(), ours, atol=TOLERANCE[precision])


@every
@every_precision
def test_input_is_not_modified(fusion, precision):
    logits = some_logits(precision)
    tensor = torch.from_numpy(logits.copy())
    fusion(logits)
    fusion(tensor)
    np.testing.assert_array_equal(logits, some_logits(precision))
    np.testing.assert_array_equal(tensor.numpy(), logits)


@every
@pytest.mark.parametrize("chunk", [1, 7, 36])
def test_samples_do_not_influence_each_other(fusion, chunk):
    logits = some_logits("float32")
    parts = [fusion(logits[:, i : i + chunk]) for i in range(0, 37, chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), fusion(logits))


@every
@pytest.mark.parametrize("chunk", [1, 7, 36])
def test_samples_do_not_influence_each_other_in_torch(fusion, chunk):
    logits = torch.from_numpy(some_logits("float32"))
    parts = [fusion(logits[:, i : i + chunk]) for i in range(0, 37, chunk)]
    assert torch.equal(torch.cat(parts), fusion(logits))


@every
@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((2, 3, 4, 5), int),
        np.zeros((2, 3, 4, 5), bool),
        np.zeros((2, 5)),
        np.zeros((0, 3, 4, 5)),
        np.zeros((2, 0, 4, 5)),
        np.zeros((2, 3, 4, 0)),
    ],
    ids=lambda z: f"{z.dtype}{z.shape}",
)
def test_refuses_what_is_no_stack_of_logits(fusion, to, logits):
    with pytest.raises(DataError, match="expected floating logits"):
        fusion(to(logits))


@every
def test_refuses_a_list_and_says_how_to_stack_it(fusion):
    with pytest.raises(DataError, match=r"np\.stack\(logits\)"):
        fusion([np.zeros((3, 4, 5)), np.zeros((3, 4, 5))])


@every
@every_precision
@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_huge_logits_give_finite_answers(fusion, precision, to):
    signs = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], (3, 20, 4, 5))
    answer = np.asarray(fusion(to((1e4 * signs).astype(precision))))
    assert np.isfinite(answer).all()
    if answer.dtype.kind == "f":
        np.testing.assert_allclose(answer.sum(-1), 1, atol=2e-3)


@every
def test_the_largest_float16_logits_do_not_overflow(fusion):
    logits = np.random.default_rng(1).choice([-65504.0, 65504.0], (3, 20, 4, 5))
    assert np.isfinite(fusion(logits.astype(np.float16))).all()


@every_mean
@every_precision
def test_means_match_float64(mean, precision):
    logits = some_logits(precision)
    answer = mean(logits)
    assert answer.dtype == precision
    np.testing.assert_allclose(answer, reference(mean, logits), atol=TOLERANCE[precision])


@every_mean
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("members", [2, 300])
def test_low_precision_is_summed_in_float32_and_rounded_once(mean, precision, members):
    logits = torch.from_numpy(3 * some_logits("float32", (members, 50, 7))).to(precision)
    answer = mean(logits)
    assert answer.dtype == precision
    exact = torch.from_numpy(reference(mean, logits.double().numpy()))
    normal = exact > torch.finfo(precision).tiny
    ulp = torch.finfo(precision).eps * exact
    assert bool(((answer.double() - exact).abs() <= 0.51 * ulp)[normal].all())


@given(stacks)
def test_jensen_mean_probability_is_no_worse_than_the_mean_member(logits):
    labels = np.arange(logits.shape[1]) % logits.shape[2]
    each = [nll(special.softmax(member, -1), labels).value for member in logits]
    assert nll(mean_probability(logits), labels).value <= np.mean(each) + 1e-9


@given(stacks)
def test_mean_logit_is_the_renormalised_geometric_mean(logits):
    geometric = stats.gmean(special.softmax(logits, -1), axis=0)
    expected = geometric / geometric.sum(-1, keepdims=True)
    np.testing.assert_allclose(mean_logit(logits), expected, atol=1e-12)


@given(stacks, st.floats(-50, 50))
def test_means_do_not_see_a_constant_added_to_a_members_logits(logits, constant):
    moved = logits.copy()
    moved[0] += constant
    for mean in (mean_probability, mean_logit):
        np.testing.assert_allclose(mean(moved), mean(logits), atol=1e-12)


def voted(logits):
    """Count votes; ties by summed probability, then by label: in plain Python."""
    members, samples, classes = logits.shape
    share = special.softmax(logits, -1)
    answer = []
    for s in range(samples):
        votes = [int((logits[:, s].argmax(-1) == c).sum()) for c in range(classes)]
        answer.append(max(range(classes), key=lambda c: (votes[c], share[:, s, c].sum(), -c)))
    assert members == logits.shape[0]
    return np.array(answer)


@given(stacks)
def test_hard_vote_counts_votes_and_breaks_ties_by_summed_probability(logits):
    total = np.sort(special.softmax(logits, -1).sum(0), -1)
    assume(np.diff(total, axis=-1).min() > 1e-9)
    np.testing.assert_array_equal(hard_vote(logits), voted(logits))


def test_hard_vote_gives_the_last_tie_to_the_smaller_label():
    logits = np.array([[[0.0, 3.0, 0.0]], [[0.0, 0.0, 3.0]]])
    assert hard_vote(logits).tolist() == [1]
    assert hard_vote(logits[::-1].copy()).tolist() == [1]
    assert hard_vote(torch.from_numpy(logits)).tolist() == [1]


def test_hard_vote_outweighs_any_confidence():
    logits = np.array([[[50.0, 0.0]], [[0.0, 1e-3]], [[0.0, 1e-3]]])
    assert hard_vote(logits).tolist() == [1]


@pytest.mark.parametrize(
    "name", sorted(set(CLASS_COMBINERS) - {"hard_vote", "soft_vote", "rank_mean"})
)
def test_gradients_flow_through_all_but_votes_and_ranks(name):
    logits = torch.from_numpy(some_logits("float64", (4, 3, 4))).requires_grad_()
    assert torch.autograd.gradcheck(COMBINERS[name], logits)


@every
@settings(max_examples=30)
@given(stacks)
def test_answers_lie_on_the_simplex(fusion, logits):
    if fusion in OF_STRINGS:
        logits = logits[:, :, None]
    answer = fusion(logits)
    if answer.dtype.kind == "f":
        assert (answer >= 0).all()
        np.testing.assert_allclose(answer.sum(-1), 1, atol=1e-12)
    else:
        assert answer.dtype == np.int64
        assert set(answer.flat) <= set(range(logits.shape[-1]))


def test_numpy_results_are_those_of_the_first_version_to_the_bit():
    logits = some_logits("float32", (9, 40, 3, 11))
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    share = raised / raised.sum(-1, keepdims=True)
    np.testing.assert_array_equal(mean_probability(logits), share.mean(0))
    pooled = logits.mean(0)
    raised = np.exp(pooled - pooled.max(-1, keepdims=True))
    np.testing.assert_array_equal(mean_logit(logits), raised / raised.sum(-1, keepdims=True))
    votes = np.eye(11, dtype=np.float32)[logits.argmax(-1)].sum(0)
    np.testing.assert_array_equal(hard_vote(logits), (votes + share.mean(0) * 0.49).argmax(-1))


def test_combiners_are_part_of_the_fusions():
    assert set(CLASS_COMBINERS) < set(OF_CLASSES) < set(FUSIONS)
    assert set(CLASS_COMBINERS) < set(COMBINERS)

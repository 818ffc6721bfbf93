"""Spaces, weights and labels: what every combiner does with them, and what it refuses."""

import inspect

import numpy as np
import pytest
import torch
from scipy import special

from polyfuse import combine
from polyfuse.combine import CLASS_COMBINERS, COMBINERS
from polyfuse.errors import DataError

WEIGHTED = {n: f for n, f in COMBINERS.items() if "weights" in inspect.signature(f).parameters}
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.25, 1.0])
LIKELIHOODS = [-1.0, -2.0, -0.5, -9.0, -3.0]
SEVERAL = 1e-12
DECISIONS = ("hard_vote", "soft_vote")  # what gives classes
ADDED = ("product", "boosted_sum")  # what is no mean: its weights are exponents
every_class = pytest.mark.parametrize("name", CLASS_COMBINERS)
both = pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])


def some_logits(shape=(5, 23, 4), seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape)


def some(name, seed=0):
    """Return predictions that this combiner takes, and options that it needs."""
    if name == "quantile_average":
        return np.sort(some_logits(seed=seed), -1), {}
    if name == "mixture_moments":
        return np.abs(some_logits((5, 23, 2), seed)), {}
    needed = {"log_likelihoods": LIKELIHOODS} if name == "bayesian_average" else {}
    return some_logits(seed=seed), needed


def close(answer, expected, tolerance=SEVERAL):
    np.testing.assert_allclose(np.asarray(answer), np.asarray(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", COMBINERS)
def test_order_of_members_kind_and_copies(name):
    values, needed = some(name)
    answer = COMBINERS[name](values, **needed)
    turned = {k: v[::-1] for k, v in needed.items()}
    close(COMBINERS[name](values[::-1], **turned), answer)  # a view with negative strides
    on_torch = COMBINERS[name](torch.from_numpy(values), **needed)
    assert isinstance(on_torch, torch.Tensor)
    assert isinstance(answer, np.ndarray)
    close(on_torch, answer)
    one = COMBINERS[name](values[:1], **{k: v[:1] for k, v in needed.items()})
    if name not in ADDED:
        close(COMBINERS[name](np.repeat(values[:1], 5, 0), **needed), one)
    if name in ("quantile_average", "mixture_moments", "mean_value"):
        close(one, values[0])


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f4", ">f8", np.longdouble])
def test_every_float_comes_back_as_it_came(name, dtype):
    values, needed = some(name)
    answer = COMBINERS[name](values.astype(dtype), **needed)
    assert answer.dtype == (np.int64 if name in DECISIONS else dtype)
    assert (
        COMBINERS[name](values[:1].astype(dtype), **{k: [1.0] for k in needed}).dtype.kind in "fi"
    )


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_wide_and_rounded_once(name, dtype):
    values, needed = some(name)
    low = torch.from_numpy(values).to(dtype)
    if name == "quantile_average":
        low = low.sort(-1).values
    answer, exact = COMBINERS[name](low, **needed), COMBINERS[name](low.double(), **needed)
    if answer.dtype == torch.int64:
        assert torch.equal(answer, exact)
    else:
        assert answer.dtype == dtype
        torch.testing.assert_close(
            answer.double(), exact, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-6
        )


@every_class
@both
def test_the_three_spaces_agree(name, to):
    logits = some_logits()
    expected = CLASS_COMBINERS[name](to(logits))
    close(CLASS_COMBINERS[name](to(special.softmax(logits, -1)), space="prob"), expected)
    close(CLASS_COMBINERS[name](to(special.log_softmax(logits, -1)), space="log_prob"), expected)


@pytest.mark.parametrize("name", sorted(set(CLASS_COMBINERS) - {"rank_mean"}))
@both
def test_labels_that_exclude_nothing_are_pairs_of_yes_and_no(name, to):
    logits = some_logits((5, 23, 3))
    pairs = np.stack([np.zeros_like(logits), logits], -1)
    expected = CLASS_COMBINERS[name](pairs)
    expected = expected if "vote" in name else expected[..., 1]
    combiner = CLASS_COMBINERS[name]
    close(combiner(to(logits), exclusive=False), expected)
    close(combiner(to(special.expit(logits)), space="prob", exclusive=False), expected)
    close(combiner(to(special.log_expit(logits)), space="log_prob", exclusive=False), expected)
    close(combiner(to(logits[..., 0].copy()), exclusive=False), expected[..., 0])  # binary


@pytest.mark.parametrize("name", WEIGHTED)
@both
def test_weights_are_as_copies_of_members(name, to):
    values, _ = some(name)
    combiner = COMBINERS[name]
    close(combiner(to(values), weights=np.ones(5)), combiner(to(values)))
    if name in ("trimmed_mean", "winsorised_mean"):  # copies change who is cut
        return
    if name in ADDED:
        copies = np.concatenate([values, values[1:2]])
        close(combiner(to(values), weights=[1, 2, 1, 1, 1]), combiner(to(copies)))
        return
    copies = np.repeat(values, [2, 8, 0, 5, 4], 0)
    close(combiner(to(values), weights=WEIGHTS), combiner(to(copies)))
    close(combiner(to(values), weights=torch.from_numpy(WEIGHTS * 7)), combiner(to(copies)))


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1, 2], r"expected 5 weights, one a member; got an array of shape \(2,\)"),
        (np.ones((5, 1)), "expected 5 weights"),
        (3.0, "expected 5 weights"),
        ([1, 1, -1, 1, 1], "must be finite, 0 or more"),
        ([0, 0, 0, 0, 0], "not all 0"),
        ([1, 1, np.nan, 1, 1], "must be finite"),
    ],
)
def test_wrong_weights_are_refused(name, weights, said):
    values, _ = some(name)
    with pytest.raises(DataError, match=said):
        COMBINERS[name](values, weights=weights)


@pytest.mark.parametrize("name", ["mean_logit", "mean_probability", "power_mean", "product"])
def test_a_member_without_weight_rules_nothing_out(name):
    p = np.array([[[1.0, 0.0]], [[0.4, 0.6]]])
    close(COMBINERS[name](p, space="prob", weights=[0, 1]), p[1])


@every_class
@pytest.mark.parametrize("space", ["prob", "log_prob"])
def test_logits_are_no_probabilities(name, space):
    with pytest.raises(
        DataError, match=r"member 0: there is .* as in logits; member 1.*space='logit'"
    ):
        CLASS_COMBINERS[name](some_logits() + 3, space=space)
    with pytest.raises(DataError, match="as in logits"):
        CLASS_COMBINERS[name](some_logits() + 3, space=space, exclusive=False)


@every_class
def test_probabilities_that_do_not_sum_to_one_are_refused(name):
    p = special.softmax(some_logits(), -1)
    p[3, 7] *= 0.9
    said = r"member 3: a row sums to 0\.9 \(row 7\), not to 1"
    with pytest.raises(DataError, match=said):
        CLASS_COMBINERS[name](p, space="prob")
    with pytest.raises(DataError, match=said):
        CLASS_COMBINERS[name](np.log(p), space="log_prob")
    rounded = special.softmax(some_logits(), -1).round(4)
    CLASS_COMBINERS[name](rounded, space="prob")


@pytest.mark.parametrize("name", ["mean_probability", "median", "trimmed_mean", "winsorised_mean"])
def test_rounded_probabilities_come_out_renormalised(name):
    p = special.softmax(some_logits(), -1).round(4)
    close(COMBINERS[name](p, space="prob").sum(-1), 1)


@pytest.mark.parametrize("name", sorted(set(COMBINERS) - set(DECISIONS)))
@pytest.mark.parametrize("odd", [np.nan, np.inf])
@both
def test_nan_and_infinity_are_named(name, odd, to):
    values, needed = some(name)
    values[1, 3] = odd
    values[4, 20:] = odd
    said = r"member 1 has NaN or infinity in row 3; member 4 has NaN or infinity in 3 rows, .* 20"
    with pytest.raises(DataError, match=said):
        COMBINERS[name](to(values), **needed)


@pytest.mark.parametrize("name", CLASS_COMBINERS)
def test_nan_among_probabilities_is_named(name):
    p = special.softmax(some_logits(), -1)
    p[1, 3, 2] = np.nan
    with pytest.raises(DataError, match="member 1: there is NaN"):
        CLASS_COMBINERS[name](p, space="prob")


@every_class
def test_a_space_that_is_not_known_is_refused(name):
    with pytest.raises(DataError, match="unknown space 'probs'; did you mean 'prob'"):
        CLASS_COMBINERS[name](some_logits(), space="probs")


@every_class
def test_one_class_is_no_choice(name):
    with pytest.raises(DataError, match="a binary model's single logit is exclusive=False"):
        CLASS_COMBINERS[name](some_logits((5, 23, 1)))


@pytest.mark.parametrize("name", ["geometric_mean", "harmonic_mean", "minimum", "product"])
def test_rows_in_which_every_class_is_ruled_out_are_refused(name):
    p = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    with pytest.raises(DataError, match=r"every class has probability 0.*p\.clip"):
        COMBINERS[name](p, space="prob")


def test_a_class_that_one_member_rules_out_stays_ruled_out():
    p = np.array([[[0.5, 0.5, 0.0]], [[0.1, 0.5, 0.4]]])
    for name in ("geometric_mean", "harmonic_mean", "minimum", "product", "mean_logit"):
        answer = COMBINERS[name](p, space="prob")
        assert answer[0, 2] == 0
        close(answer.sum(), 1)


def power(p, r, w):
    """The renormalised power mean, as it is written, in float64."""
    mean = np.exp(np.tensordot(w, np.log(p), 1)) if r == 0 else np.tensordot(w, p**r, 1) ** (1 / r)
    return mean / mean.sum(-1, keepdims=True)


@pytest.mark.parametrize("r", [-3.0, -1.0, 0.0, 0.5, 1.0, 2.0])
def test_power_means_are_as_written(r):
    p, w = special.softmax(some_logits(), -1), np.array([1, 2, 3, 4, 5]) / 15
    close(combine.power_mean(p, exponent=r, weights=w, space="prob"), power(p, r, w))
    named = {
        -1.0: combine.harmonic_mean,
        0.0: combine.geometric_mean,
        1.0: combine.mean_probability,
    }
    if r in named:
        close(named[r](p, weights=w, space="prob"), power(p, r, w))
    with pytest.raises(DataError, match="use maximum or minimum"):
        combine.power_mean(p, exponent=np.inf, space="prob")


def test_rules_of_fixed_form_are_as_written():
    p = special.softmax(some_logits(), -1)
    for name, rule in {"maximum": p.max(0), "minimum": p.min(0), "product": p.prod(0)}.items():
        close(COMBINERS[name](p, space="prob"), rule / rule.sum(-1, keepdims=True))


def test_logarithms_do_not_underflow():
    p = np.log(np.tile([0.98, 0.01, 0.01], (64, 1, 1)).astype(np.float32))
    close(combine.geometric_mean(p, space="log_prob"), [[0.98, 0.01, 0.01]], 1e-6)
    far = torch.tensor([[[0.0, -300.0]], [[0.0, -300.0]]])
    assert combine.harmonic_mean(far).isfinite().all()


@pytest.mark.parametrize("name", CLASS_COMBINERS)
def test_compiles_to_one_graph_for_export(name):
    class Net(torch.nn.Module):
        def forward(self, stacked):
            return CLASS_COMBINERS[name](stacked)

    logits = torch.from_numpy(some_logits()).float()
    program = torch.export.export(Net(), (logits,), strict=False)
    torch.testing.assert_close(program.module()(logits), Net()(logits))

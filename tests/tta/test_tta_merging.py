"""Merging views: the combiners' own numbers, logarithms that do not underflow, places unseen."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.combine import CLASS_COMBINERS, COMBINERS
from polyfuse.errors import DataError, PolyfuseError
from polyfuse.tta import merge_views

MEANS = ("mean_probability", "mean_logit", "geometric_mean")


def logits(*shape, seed=0, scale=3.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def softmax(scores):
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def formula(name, scores, weights):
    """Return a mean in fp64; weights are `(view, ..., class)` shares."""
    p = softmax(scores)
    if name == "mean_probability":
        mean = (weights * p).sum(0)
    else:
        mean = np.exp((weights * (scores if name == "mean_logit" else np.log(p))).sum(0))
    return mean / mean.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", CLASS_COMBINERS)
def test_without_weights_it_is_the_combiner(name):
    scores = logits(5, 7, 3, 4)
    got, own = merge_views(scores, combiner=name), COMBINERS[name](scores)
    assert np.array_equal(got, own)
    tensor = merge_views(torch.from_numpy(scores), combiner=name)
    np.testing.assert_allclose(tensor.numpy(), own, rtol=1e-12)


@pytest.mark.parametrize("name", [*MEANS, "product", "power_mean", "harmonic_mean", "median"])
def test_the_logarithm_is_that_of_the_probabilities(name):
    scores = logits(5, 7, 4)
    log = merge_views(scores, combiner=name, returns="log_prob")
    np.testing.assert_allclose(np.exp(log), COMBINERS[name](scores), rtol=1e-12)
    np.testing.assert_allclose(np.exp(log).sum(-1), 1)


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("space", ["logit", "prob", "log_prob"])
def test_every_space_gives_the_same_answer(name, space):
    scores = np.log(softmax(logits(4, 6, 3)))
    given_as = {"logit": scores + 5, "prob": np.exp(scores), "log_prob": scores}[space]
    got = merge_views(given_as, combiner=name, space=space)
    np.testing.assert_allclose(got, merge_views(scores, combiner=name), rtol=1e-10)
    log = merge_views(given_as, combiner=name, space=space, returns="log_prob")
    np.testing.assert_allclose(np.exp(log), got, rtol=1e-10)


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from(MEANS), st.booleans(), st.booleans())
def test_weights_of_views_classes_and_places_are_the_formula(seed, name, classes, places):
    draw = np.random.default_rng(seed)
    scores = logits(4, 5, 6, 3, seed=seed)
    weights = draw.random((4, 3) if classes else 4)
    seen = draw.random((4, 1, 6)) * (draw.random((4, 1, 6)) > 0.3)
    seen[0] += 0.1
    shares = weights.reshape(4, 1, 1, -1) * np.ones((4, 5, 6, 3))
    if places:
        shares = shares * seen[..., None]
    shares /= shares.sum(0)
    wanted, seen = formula(name, scores, shares), seen if places else None
    got = merge_views(scores, weights, combiner=name, coverage=seen)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    log = merge_views(scores, weights, combiner=name, coverage=seen, returns="log_prob")
    np.testing.assert_allclose(log, np.log(wanted), rtol=1e-11)


@pytest.mark.parametrize("name", ["geometric_mean", "product", "mean_logit"])
def test_64_views_of_98_1_1_do_not_underflow(name):
    """In ttach's gmean 64 views give [.98, 0, 0]: the product of all, and then its root."""
    many = np.tile(np.float32([0.98, 0.01, 0.01]), (64, 1, 1))
    assert np.prod(many, 0, dtype=np.float32)[0, 1] == 0  # what happens there
    log = merge_views(many, combiner=name, space="prob", returns="log_prob")[0]
    wanted = np.log(many[0, 0].astype(float)) * (64 if name == "product" else 1)
    np.testing.assert_allclose(log - log[0], wanted - wanted[0], rtol=1e-6)
    if name != "product":
        got = merge_views(many, combiner=name, space="prob")
        np.testing.assert_allclose(got, many[0], rtol=1e-5)


def test_logarithms_that_no_float_can_be_made_of_stay_apart():
    scores = np.tile(np.float32([0.0, -300.0, -310.0]), (64, 1, 1))
    for name in MEANS:
        log = merge_views(scores, combiner=name, returns="log_prob")[0]
        np.testing.assert_allclose(log, [0, -300, -310], rtol=1e-6)


def test_the_sign_of_logits_is_kept():
    """In ttach's gmean the logits [2, -1, -3], twice, give [2, 1, 3]: another best class."""
    twice = np.tile([2.0, -1.0, -3.0], (2, 1, 1))
    assert np.sqrt(twice.prod(0))[0].argmax() == 2  # what happens there
    got = merge_views(twice, combiner="geometric_mean")
    np.testing.assert_allclose(got[0], softmax(twice[0, 0]), rtol=1e-12)


def test_a_root_of_negative_logits_is_no_nan_and_sums_to_1():
    """In ttach's tsharpen negative numbers give NaN, and nothing is renormalised."""
    scores = logits(3, 5, 4)
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.sqrt(scores).mean(0)).any()  # what happens there
    got = merge_views(scores, combiner="power_mean", exponent=0.5)
    wanted = np.sqrt(softmax(scores)).mean(0) ** 2
    np.testing.assert_allclose(got, wanted / wanted.sum(-1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "maximum", "hard_vote", "power_mean"])
def test_a_combiner_of_any_kind_asks_only_the_views_that_see_a_place(name):
    scores = logits(4, 3, 5, 6, 3)
    seen = np.random.default_rng(1).random((4, 1, 5, 6)) > 0.4
    seen[2] |= ~seen.any(0)
    got = merge_views(scores, combiner=name, coverage=seen.astype(float))
    for y, x in np.ndindex(5, 6):
        views = seen[:, 0, y, x]
        np.testing.assert_allclose(got[:, y, x], COMBINERS[name](scores[views][:, :, y, x]))
    tensor = merge_views(torch.from_numpy(scores), combiner=name, coverage=torch.from_numpy(seen))
    np.testing.assert_allclose(tensor.numpy(), got)


def test_votes_weigh_the_views_that_see_a_place():
    scores = logits(3, 2, 4, 5)
    seen = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 1]], [[1, 1, 1, 0]]], bool)
    weights = [1.0, 5.0, 1.0]
    got = merge_views(scores, weights, combiner="hard_vote", coverage=seen)
    for x in range(4):
        views = np.flatnonzero(seen[:, 0, x])
        own = COMBINERS["hard_vote"](scores[views][:, :, x], weights=np.array(weights)[views])
        assert np.array_equal(got[:, x], own)


def test_what_a_view_does_not_see_may_be_anything():
    scores, seen = logits(2, 3, 4, 2), np.ones((2, 1, 4))
    seen[1, 0, 2] = 0
    hidden = scores.copy()
    hidden[1, :, 2] = -np.inf
    np.testing.assert_array_equal(
        merge_views(scores, combiner="mean_logit", coverage=seen),
        merge_views(hidden, combiner="mean_logit", coverage=seen),
    )


@pytest.mark.parametrize("name", MEANS)
def test_labels_that_do_not_exclude_each_other(name):
    scores, seen = logits(3, 4, 5, 2), np.random.default_rng(0).random((3, 1, 5)) + 0.1
    pairs = np.stack([np.zeros_like(scores), scores], -1)
    shares = np.broadcast_to((seen / seen.sum(0))[..., None, None], pairs.shape)
    got = merge_views(scores, combiner=name, coverage=seen, exclusive=False)
    np.testing.assert_allclose(got, formula(name, pairs, shares)[..., 1], rtol=1e-9)
    alike = merge_views(scores, combiner=name, coverage=np.ones_like(seen), exclusive=False)
    np.testing.assert_allclose(alike, merge_views(scores, combiner=name, exclusive=False))


def test_numbers_are_averaged_as_numbers():
    values, seen = logits(3, 4, 5, 1), np.random.default_rng(0).random((3, 1, 5))
    got = merge_views(values, combiner="mean_value", coverage=seen, weights=[1, 2, 3])
    shares = seen[..., None] * np.reshape([1, 2, 3], (3, 1, 1, 1))
    np.testing.assert_allclose(got, (values * shares / shares.sum(0)).sum(0))
    plain = merge_views(torch.tensor([[1.0], [4.0]]), [1, 2], combiner="mean_value")
    assert plain.tolist() == [3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_numbers_are_added_wide_and_rounded_once(dtype):
    scores = torch.from_numpy(logits(8, 50, 4)).to(dtype)
    exact = torch.from_numpy(formula("mean_probability", scores.double().numpy(), np.ones(1) / 8))
    got = merge_views(scores, np.ones((8, 4)))
    assert got.dtype == dtype
    torch.testing.assert_close(got, exact.to(dtype), rtol=0, atol=torch.finfo(dtype).eps)


def test_your_own_combiner():
    def first(outputs, *, weights=None):
        return outputs[0] if weights is None else outputs[int(np.argmax(weights))]

    scores = logits(3, 4, 2)
    assert np.array_equal(merge_views(scores, combiner=first), scores[0])
    assert np.array_equal(merge_views(scores, [0, 1, 0], combiner=first), scores[1])


def test_gradients_flow_through_every_mean():
    scores = torch.from_numpy(logits(3, 4, 2)).requires_grad_()
    for name in MEANS:
        merge_views(scores, combiner=name, returns="log_prob")[:, 0].sum().backward()
        assert scores.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"combiner": "mean_prob"}, "did you mean 'mean_probability'"),
        ({"returns": "logit"}, "returns='logit' is not known"),
        ({"weights": [1, 2]}, "expected 3 weights"),
        ({"weights": np.ones((3, 3))}, "do not fit 3 views and 2 classes"),
        ({"weights": np.eye(3, 2), "combiner": "median"}, "are for means over classes"),
        ({"weights": [[0, 1]] * 3}, "class 0 has no view"),
        ({"coverage": np.ones((3, 5))}, "does not fit 3 outputs"),
        ({"coverage": np.zeros((3, 1, 4))}, "4 places are in no view"),
        ({"coverage": np.zeros((3, 1, 4)), "combiner": "median"}, "in no view"),
        ({"coverage": -np.ones((3, 1, 4))}, "0 or more"),
        ({"combiner": "hard_vote", "returns": "log_prob"}, "a vote decides classes"),
        ({"space": "prob"}, "as in logits"),
        ({"returns": "log_prob", "exponent": 2}, "mean_probability has no option 'exponent'"),
    ],
)
def test_what_does_not_fit_is_said(options, said):
    with pytest.raises(PolyfuseError, match=said):
        merge_views(logits(3, 5, 4, 2), **options)


def test_nan_is_said_with_its_view():
    scores = logits(3, 5, 2)
    scores[1, 2] = np.nan
    for returns in ("prob", "log_prob"):
        with pytest.raises(DataError, match="member 1 has NaN or infinity in row 2"):
            merge_views(scores, returns=returns)

"""Every buffer policy, and the variance of a mixture."""

import numpy as np
import pytest
import torch

from polyfuse.merge.buffers import POLICIES, Unequal, pooled_variance

EQUAL = [0.5, 0.5]
KINDS = [torch.int64, torch.int32, torch.uint8, torch.float32, torch.bfloat16]


def pair(dtype, first=(1, 2, 3), second=(3, 2, 7)):
    return [torch.tensor(values).to(dtype) for values in (first, second)]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("dtype", [*KINDS, torch.bool], ids=str)
def test_every_policy_keeps_dtype_and_shape(name, dtype):
    same = pair(dtype)[0]
    result = POLICIES[name]([same, same], EQUAL)
    assert (result.dtype, result.shape) == (dtype, same.shape)
    assert "Example:" in POLICIES[name].__doc__


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [2, 2, 5]),
        ("first", [1, 2, 3]),
        ("last", [3, 2, 7]),
        ("max", [3, 2, 7]),
        ("sum", [4, 4, 10]),
        ("recompute", [1, 2, 3]),
    ],
)
def test_what_a_policy_gives(name, expected, dtype):
    assert POLICIES[name](pair(dtype), EQUAL).tolist() == expected


def test_error_refuses_what_differs_and_takes_what_is_equal():
    with pytest.raises(Unequal):
        POLICIES["error"](pair(torch.int64), EQUAL)
    same = pair(torch.int64)[0]
    assert POLICIES["error"]([same, same.clone()], EQUAL) is same


def test_large_integers_are_not_averaged_through_fp32():
    large = 2**40 + 1
    both = [torch.tensor([large]), torch.tensor([large + 2])]
    assert POLICIES["mean"](both, EQUAL).tolist() == [large + 1]
    assert POLICIES["sum"](both, EQUAL).tolist() == [2 * large + 2]


def test_shares_weigh_the_mean():
    assert POLICIES["mean"](pair(torch.float32), [0.75, 0.25]).tolist() == [1.5, 2.0, 4.0]


def test_the_pooled_variance_is_that_of_all_samples_together():
    draw = np.random.default_rng(0)
    runs = [draw.normal(mean, scale, (500, 6)) for mean, scale in ((0, 1), (3, 2), (-1, 0.5))]
    variances = [torch.from_numpy(run.var(0)) for run in runs]
    means = [torch.from_numpy(run.mean(0)) for run in runs]
    together = torch.from_numpy(np.concatenate(runs).var(0))
    torch.testing.assert_close(pooled_variance(variances, means, [1 / 3] * 3), together)


def test_the_pooled_variance_does_not_cancel():
    # sum of squares minus square of the sum would lose all digits here.
    means = [torch.tensor([1e4]), torch.tensor([1e4])]
    variances = [torch.tensor([1e-3]), torch.tensor([1e-3])]
    result = pooled_variance(variances, means, EQUAL)
    torch.testing.assert_close(result, torch.tensor([1e-3]))

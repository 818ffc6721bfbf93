"""Every merge method: the contract, parity with the fp64 formula, and the same result in chunks."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.errors import PolyfuseError
from polyfuse.merge import METHODS
from polyfuse.merge.base import BLOCK, Linear, combine, measured
from polyfuse.merge.spherical import arc, dots

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NEEDED = {"weighted_mean": {"weights": [0.5, 2.0]}, "weighted_sum": {"weights": [0.5, 2.0]}}
every_method = pytest.mark.parametrize("name", METHODS)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def some(count, shape=(7, 5), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def call(name, tensors, **options):
    return METHODS[name].function(tensors, **{**NEEDED.get(name, {}), **options})


@every_method
def test_every_method_takes_tensors_and_keyword_options_and_is_explained(name):
    first, *options = inspect.signature(METHODS[name].function).parameters.values()
    assert first.name == "tensors"
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    assert "Example:" in METHODS[name].function.__doc__


@every_method
@every_float
def test_every_method_keeps_dtype_and_shape_and_leaves_its_inputs_alone(name, dtype):
    tensors = some(2, dtype=dtype)
    before = [t.clone() for t in tensors]
    result = call(name, tensors)
    assert (result.dtype, result.shape) == (dtype, tensors[0].shape)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    assert torch.equal(result, call(name, tensors))


@every_method
@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_every_method_takes_scalars_and_empty_tensors(name, shape):
    assert call(name, some(2, shape)).shape == shape


@every_method
def test_every_method_refuses_what_cannot_be_merged(name):
    two = some(2)
    with pytest.raises(PolyfuseError, match="one shape"):
        call(name, [two[0], two[1][:3]])
    with pytest.raises(PolyfuseError, match="floating tensors are needed"):
        call(name, [t.long() for t in two])
    with pytest.raises(PolyfuseError):
        call(name, [])


@every_method
def test_every_method_lets_nan_be_seen(name):
    a, b = some(2)
    a[3, 2] = math.nan
    assert call(name, [a, b])[3, 2].isnan()


@every_method
def test_every_method_gives_a_where_all_are_a(name):
    a = some(1)[0]
    expected = {"difference": 0 * a, "add": 2 * a, "weighted_sum": 2.5 * a}.get(name, a)
    torch.testing.assert_close(call(name, [a, a]), expected)


@every_method
def test_what_is_carried_in_two_passes_is_the_same_in_pieces(name):
    method = METHODS[name]
    if method.measure is None:
        assert method.apply is None
        return
    tensors = [t.double() for t in some(2, (3 * BLOCK + 77,))]
    whole = call(name, tensors)
    numbers = measured(tensors, method.measure)
    cut = 2 * BLOCK
    parts = [method.apply([t[s] for t in tensors], numbers) for s in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), whole)


# The formulas, in NumPy's fp64, rounded once ----------------------------------------------------


def rounded(values, dtype):
    return torch.from_numpy(np.asarray(values)).to(dtype)


def exact(tensors):
    return np.stack([t.double().numpy() for t in tensors])


@every_float
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_a_mean_of_2_to_the_k_is_the_fp64_sum_rounded_once(dtype, count):
    tensors = some(count, (64, 64), dtype)
    expected = rounded(exact(tensors).sum(0) / count, dtype)
    assert torch.equal(call("mean", tensors), expected)


@every_float
@pytest.mark.parametrize("count", [3, 5, 7])
def test_another_mean_is_the_fp64_sum_rounded_once_too(dtype, count):
    tensors = some(count, (64, 64), dtype)
    ours, expected = call("mean", tensors), rounded(exact(tensors).sum(0) / count, dtype)
    if dtype == torch.float64:  # the order of the sum decides the last bit
        torch.testing.assert_close(ours, expected, rtol=2**-51, atol=2**-51)
    else:
        assert torch.equal(ours, expected)


@every_float
def test_weighted_mean_and_sum(dtype):
    tensors, weights = some(3, dtype=dtype), [0.5, 0.3, -0.1]
    total = np.tensordot(weights, exact(tensors), 1)
    sums = call("weighted_sum", tensors, weights=weights)
    torch.testing.assert_close(sums, rounded(total, dtype))
    means = call("weighted_mean", tensors, weights=weights)
    torch.testing.assert_close(means, rounded(total / sum(weights), dtype))


def test_task_vectors():
    base, one, two = some(3, dtype=torch.float64)
    taus = [call("difference", [model, base]) for model in (one, two)]
    torch.testing.assert_close(call("add", [base, taus[0]]), one)
    assert torch.allclose(call("add", [base, *taus], scale=0.5), (one + two) / 2)


@pytest.mark.parametrize("count", range(1, 8))
def test_median_is_numpy_s(count):
    tensors = some(count, dtype=torch.float64)
    assert torch.equal(call("median", tensors), torch.from_numpy(np.median(exact(tensors), 0)))


@pytest.mark.parametrize("cut", [0, 0.1, 0.2, 0.25, 0.4, 0.49])
@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_trimmed_mean_is_scipy_s(count, cut):
    from scipy.stats import trim_mean

    tensors = some(count, dtype=torch.float64)
    expected = torch.from_numpy(np.asarray(trim_mean(exact(tensors), cut, axis=0)))
    torch.testing.assert_close(call("trimmed_mean", tensors, cut=cut), expected)


def test_a_hair_below_a_whole_model_drops_it():
    values = [torch.tensor([float(x)]) for x in (0, 1, 2, 3, 4, 5, 6, 7, 8, 90)]
    assert call("trimmed_mean", values, cut=0.3) == 4.5  # 0.3 * 10 is 3.0000000000000004 or less


@pytest.mark.parametrize("cut", [-0.1, 0.5, 1, math.nan])
def test_a_cut_out_of_range_is_refused(cut):
    with pytest.raises(PolyfuseError, match="from 0 to below"):
        call("trimmed_mean", some(3), cut=cut)


# SLERP ------------------------------------------------------------------------------------------


def slerp_formula(a, b, t):
    a, b = a.ravel(), b.ravel()
    cosine = np.dot(a / np.linalg.norm(a), b / np.linalg.norm(b))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


@every_float
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0, 1.2])
def test_slerp_is_the_formula(dtype, t):
    tensors = some(2, (40, 30), dtype)
    expected = rounded(slerp_formula(*exact(tensors), t), dtype).view(40, 30)
    torch.testing.assert_close(call("slerp", tensors, t=t), expected)


def test_slerp_of_unit_vectors_stays_on_the_sphere():
    a, b = (t / t.norm() for t in some(2, (100,), torch.float64))
    for t in (0.1, 0.5, 0.9):
        assert float(call("slerp", [a, b], t=t).norm()) == pytest.approx(1)


@pytest.mark.parametrize("other", [1.0, 3.0, -1.0])
def test_slerp_of_parallel_and_opposite_vectors_is_the_straight_line(other):
    a = some(1, (50,), torch.float64)[0]
    result = call("slerp", [a, other * a], t=0.25)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result, (0.75 + 0.25 * other) * a)


def test_slerp_of_a_zero_vector_takes_it_as_orthogonal():
    a = some(1, (50,), torch.float64)[0]
    result = call("slerp", [a, 0 * a], t=0.25)
    torch.testing.assert_close(result, math.sin(0.75 * math.pi / 2) * a)


def test_slerp_does_not_overflow_in_half_precision():
    # 60,000 squared is beyond fp16, and so is a sum of a million squares.
    a = torch.full((1 << 20,), 60000.0, dtype=torch.float16)
    b = torch.full((1 << 20,), 100.0, dtype=torch.float16)
    b[::2] = -100
    assert torch.isfinite(call("slerp", [a, b])).all()


def test_a_cosine_beyond_one_by_rounding_is_no_nan():
    assert arc(torch.tensor([1.0, 1.0, 1.0 + 1e-12]).double()) == Linear((0.5, 0.5))


# What all of them are made of -------------------------------------------------------------------


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=n, max_size=n),
            st.sampled_from(FLOATS),
        )
    )
)
def test_combine_is_close_to_the_fp64_sum(case):
    weights, dtype = case
    tensors = some(len(weights), (33,), dtype)
    ours = combine(tensors, Linear(tuple(weights), 3.0))
    torch.testing.assert_close(ours, rounded(np.tensordot(weights, exact(tensors), 1) / 3, dtype))


def test_a_sum_that_fp32_would_get_wrong():
    # In fp32 the small ones are lost beside the large one, and with them the side of the tie.
    tensors = [torch.tensor([x]).bfloat16() for x in (1.0, 2.0**-8, 2.0**-20, 2.0**-21)]
    wide = sum(t.float() for t in tensors[:2]) + 0  # exactly between two bf16 numbers
    assert wide.bfloat16() == 1
    total = call("weighted_sum", tensors, weights=[1, 1, 1, 1])
    assert total == torch.tensor(1 + 2.0**-7).bfloat16()


def test_bf16_sums_in_bf16_would_be_wrong_and_ours_are_not():
    tensors = some(4, (2048,), torch.bfloat16)
    naive = tensors[0].clone()
    for tensor in tensors[1:]:
        naive += tensor
    expected = rounded(exact(tensors).sum(0) / 4, torch.bfloat16)
    assert (naive / 4 != expected).float().mean() > 0.1
    assert torch.equal(call("mean", tensors), expected)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [0.1 + 0.2, -0.3]])
def test_weights_that_sum_to_zero_are_refused(weights):
    with pytest.raises(PolyfuseError, match=r"sum to zero.*--no-normalize"):
        call("weighted_mean", some(2), weights=weights)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("weighted_mean", "weights"),
        ("weighted_sum", "weights"),
        ("lerp", "t"),
        ("add", "scale"),
        ("slerp", "t"),
    ],
)
def test_options_that_are_not_finite_are_refused(name, option, bad):
    value = [1.0, bad] if option == "weights" else bad
    with pytest.raises(PolyfuseError, match="must be a finite number"):
        call(name, some(2), **{option: value})


@pytest.mark.parametrize(
    ("name", "count"), [("lerp", 3), ("slerp", 1), ("difference", 3), ("add", 1)]
)
def test_a_number_of_inputs_that_a_method_does_not_take_is_refused(name, count):
    with pytest.raises(PolyfuseError, match=rf"{name} takes .* got {count}"):
        call(name, some(count))


def test_numbers_over_a_tensor_do_not_depend_on_chunks():
    a, b = some(2, (5 * BLOCK + 3,), torch.float64)
    whole = measured([a, b], dots)
    torch.testing.assert_close(whole, torch.stack([a @ a, b @ b, a @ b]))
    parts = [dots([a[s : s + BLOCK], b[s : s + BLOCK]]) for s in range(0, len(a), BLOCK)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert torch.equal(whole, total)


def test_torch_s_own_running_mean_agrees():
    from torch.optim.swa_utils import AveragedModel

    nets = []
    for seed in range(4):
        torch.manual_seed(seed)
        nets.append(torch.nn.Linear(20, 10))
    averaged = AveragedModel(nets[0])
    for net in nets:
        averaged.update_parameters(net)
    ours = call("mean", [net.weight for net in nets])
    torch.testing.assert_close(ours, averaged.module.weight.detach())

"""SWAG: moments against NumPy in fp64, samples against their formula, scale and rank."""

import numpy as np
import pytest
import torch

from polyfuse.errors import TrainingError
from polyfuse.swag import moments, sample


def iterates(count, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "weight": torch.randn(3, 2, generator=draw).to(dtype),
            "bias": 100 + torch.randn(3, generator=draw).to(dtype),
        }
        for _ in range(count)
    ]


def draw(found, seed=0, **options):
    return sample(found, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("count", [2, 5, 13])
@pytest.mark.parametrize("rank", [2, 5])
def test_moments_are_those_of_numpy(count, rank):
    given = iterates(count)
    found = moments(iter(given), rank=rank)
    assert found.iterates == count
    assert len(found.deviations) == min(count, rank)
    for name in given[0]:
        values = np.stack([each[name].double().numpy() for each in given])
        np.testing.assert_allclose(found.mean[name], values.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.squares[name] / count, values.var(0), rtol=1e-10)
        means = np.stack([values[: i + 1].mean(0) for i in range(count)])
        columns = [each[name].numpy() for each in found.deviations]
        np.testing.assert_allclose(columns, (values - means)[-rank:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("count", "rank", "columns"), [(7, 4, 4), (3, 10, 3), (2, 2, 2)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.5}])
def test_a_sample_is_the_formula_of_the_paper(count, rank, columns, options):
    # A peer doubles the covariance, and divides by the rank that was asked for where fewer
    # deviations were collected.
    found = moments(iterates(count), rank=rank)
    z = torch.Generator().manual_seed(3)
    z2 = torch.randn(columns, generator=z, dtype=torch.float64)
    for name, value in draw(found, 3, **options).items():
        z1 = torch.randn(value.shape, generator=z, dtype=torch.float64)
        d = torch.stack([each[name] for each in found.deviations], -1)
        sigma = (found.squares[name] / count).sqrt()
        expected = found.mean[name] + sigma * z1 / 2**0.5 + d @ z2 / (2 * (columns - 1)) ** 0.5
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_the_scale_is_of_the_covariance():
    found = moments(iterates(7))
    apart = [
        (value - found.mean["bias"])
        for value in (draw(found, scale=scale)["bias"] for scale in (0.5, 2.0))
    ]
    torch.testing.assert_close(2 * apart[0], apart[1], rtol=1e-9, atol=1e-11)


def test_scale_0_and_identical_iterates_give_the_mean_exactly():
    found = moments(iterates(6))
    assert all(torch.equal(v, found.mean[name]) for name, v in draw(found, scale=0).items())
    one = iterates(1)[0]
    same = moments([one] * 6)
    assert all(torch.equal(v, one[name].double()) for name, v in draw(same, scale=4).items())


def test_low_precision_is_summed_in_double():
    given = iterates(9, dtype=torch.bfloat16)
    found = moments(given)
    values = np.stack([each["bias"].double().numpy() for each in given])
    np.testing.assert_allclose(found.mean["bias"], values.mean(0), rtol=1e-14)


@pytest.mark.parametrize(
    ("given", "rank", "fix"),
    [(iterates(4), 1, "rank=1"), (iterates(1), 5, "2 epochs or more"), ([], 5, "0 iterates")],
)
def test_what_has_no_covariance_is_refused(given, rank, fix):
    with pytest.raises(TrainingError, match=fix):
        moments(given, rank=rank)


@pytest.mark.parametrize("scale", [-0.1, float("nan")])
def test_a_negative_scale_is_refused(scale):
    with pytest.raises(TrainingError, match="0 or more"):
        draw(moments(iterates(3)), scale=scale)

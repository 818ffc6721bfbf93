"""SciPy's door: minima that are known, bounds, and a bound on what is left."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.solvers import gap, minimise, minimise_on_simplex


def projection(point):
    """The nearest point of the simplex, by sorting (Held, Wolfe and Crowder 1974)."""
    ordered = np.sort(point)[::-1]
    shifts = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    return np.maximum(point - shifts[np.flatnonzero(ordered > shifts).max()], 0)


@given(st.integers(1, 60), st.integers(0, 999), st.sampled_from([0.1, 1.0, 10.0]))
def test_the_nearest_point_of_the_simplex_is_found(count, seed, scale):
    target = scale * np.random.default_rng(seed).standard_normal(count)

    def far(w):
        return float((w - target) @ (w - target)), 2 * (w - target)

    found = minimise_on_simplex(far, np.full(count, 1 / count))
    assert np.isclose(found.sum(), 1)
    assert (found >= 0).all()
    assert np.allclose(found, projection(target), atol=1e-6)
    assert gap(far(found)[1], found) <= 1e-6 * max(1, scale)


def test_a_start_that_is_best_is_kept():
    start = np.array([1.0, 0.0])
    assert minimise_on_simplex(lambda w: (float(w[1]), np.array([0.0, 1.0])), start) is start


def test_bounds_hold():
    found = minimise(
        lambda x: (float(x @ x + x[0]), 2 * x + [1, 0]), np.ones(2), lower=[0.0, -np.inf]
    )
    assert np.allclose(found, 0, atol=1e-7)
    assert found[0] >= 0


def test_a_function_that_breaks_down_leaves_the_start():
    def broken(x):
        return (1.0, np.ones(2)) if x is start else (float("nan"), np.full(2, np.nan))

    start = np.zeros(2)
    assert minimise(broken, start) is start

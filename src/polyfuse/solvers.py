"""The one door to SciPy: smooth convex problems, free, bounded, or on the simplex."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ValueAndGradient = Callable[[Floats], tuple[float, Floats]]
_JOIN = 8  # coordinates that join at once


def minimise(
    function: ValueAndGradient,
    start: Floats,
    *,
    lower: Sequence[float] | None = None,
    iterations: int = 1000,
) -> Floats:
    """Minimise a smooth function by L-BFGS-B; the result is never worse than the start.

    Args:
        function: maps `(d,)` to a value and its `(d,)` gradient.
        start: `(d,)`.
        lower: bounds, -inf where there is none.
        iterations: at most.

    Example:
        >>> far = lambda x: (float((x - 2) @ (x - 2)), 2 * (x - 2))
        >>> minimise(far, np.zeros(2)).round(6).tolist()
        [2.0, 2.0]
    """
    from scipy.optimize import minimize

    bounds = None if lower is None else [(low, None) for low in lower]
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(function, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return _better(function, np.asarray(found, dtype=np.float64), start)


def minimise_on_simplex(
    function: ValueAndGradient, start: Floats, *, tolerance: float = 1e-8
) -> Floats:
    """Minimise a smooth convex function of weights that are not negative and sum to one.

    SLSQP on a few coordinates; those by which the function would still fall join, until none does.

    Args:
        function: maps `(m,)` to a value and its `(m,)` gradient.
        start: `(m,)` weights on the simplex; the result is never worse.
        tolerance: the gap at which to stop; see `gap`.

    Example:
        >>> target = np.array([1.0, 0.2, -1.0])
        >>> far = lambda w: (float((w - target) @ (w - target)), 2 * (w - target))
        >>> minimise_on_simplex(far, np.full(3, 1 / 3)).round(6).tolist()
        [0.9, 0.1, 0.0]
    """
    weights = start
    active = np.zeros(len(start), dtype=bool)
    for _ in range(len(start)):
        _, gradient = function(weights)
        if gap(gradient, weights) <= tolerance:
            break
        steep = np.argsort(gradient, kind="stable")[:_JOIN]
        if active[steep[gradient[steep] < gradient @ weights]].all():
            break  # nobody new would help: the rest is the solver's precision
        active |= (weights > 0) if active.any() else False
        active[steep] = True
        weights = _better(function, _on_face(function, active), weights)
    return weights


def gap(gradient: Floats, weights: Floats) -> float:
    """Bound how much a convex function could still fall on the simplex (Frank and Wolfe 1956).

    Example:
        >>> gap(np.array([1.0, 3.0]), np.array([0.5, 0.5]))
        1.0
    """
    return float(gradient @ weights - gradient.min())


def _on_face(function: ValueAndGradient, active: NDArray[np.bool_]) -> Floats:
    """Minimise over the active coordinates; the others are zero."""
    from scipy.optimize import minimize

    def inside(part: Floats) -> tuple[float, Floats]:
        whole = np.zeros(len(active))
        whole[active] = part
        value, gradient = function(whole)
        return value, gradient[active]

    count = int(active.sum())
    one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)}
    with warnings.catch_warnings():
        # It steps out of bounds by a rounding error, and says so.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = minimize(
            inside,
            np.full(count, 1 / count),
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * count,
            constraints=[one],
            options={"maxiter": 500, "ftol": 1e-14},
        ).x
    weights = np.zeros(len(active))
    weights[active] = np.maximum(np.nan_to_num(found), 0.0)
    share: Floats = weights / max(weights.sum(), float(np.finfo(float).tiny))
    return share


def _better(function: ValueAndGradient, found: Floats, start: Floats) -> Floats:
    """Return the better of two points; the start where what was found is NaN."""
    return found if function(found)[0] <= function(start)[0] else start

"""The one door to SciPy: smooth convex problems, free, bounded, on the simplex; MATLAB files."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def matlab_arrays(path: Path, names: Sequence[str], *, limit: int) -> dict[str, NDArray[Any]]:
    """Return arrays of a MATLAB 5 file, by name; nothing else in it is read.

    Args:
        path: of the file.
        names: of the arrays; those that are not there are not returned.
        limit: values of one array; a file that claims more is refused before memory is taken.

    Raises:
        ValueError: no such file, another version, a damaged one, or too many values.

    Example:
        >>> matlab_arrays(Path("/no/such.mat"), ["X"], limit=9)
        Traceback (most recent call last):
        ValueError: No such file or directory
    """
    from scipy.io import loadmat, whosmat

    try:
        with open(path, "rb") as file:
            for name, shape, _ in whosmat(file):
                if name in names and np.prod(shape, dtype=np.float64) > limit:
                    raise ValueError(f"{name} of shape {shape} is larger than {limit:,} values")
            file.seek(0)
            found = loadmat(file, variable_names=list(names))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except Exception as error:  # SciPy raises many kinds, zlib's among them, on damaged files
        raise ValueError(str(error) or type(error).__name__) from None
    return {name: found[name] for name in names if name in found}


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

"""What can be stored, by name: the class, what its fit found, and what that must be."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from polyfuse.calibration import CALIBRATORS, Beta, CalibratedPool, Isotonic, Temperature, Vector
from polyfuse.dynamic_selection import DynamicSelection
from polyfuse.fitted_json.checks import (
    Check,
    array,
    between,
    flag,
    number,
    tuple_of,
    weights,
    whole,
    words,
)
from polyfuse.greedy_selection import METRICS as GREEDY_METRICS
from polyfuse.greedy_selection import GreedySelection
from polyfuse.simplex import LOSSES, SimplexWeights
from polyfuse.stacking import Blender, Stacker
from polyfuse.thresholds import AVERAGES, METRICS, DecisionThresholds

_MOST = 1e50  # numbers beyond it would overflow in a product or a square


class Weights(NamedTuple):
    """Plain weights, `(member,)` or `(member, class)`, stored as they are."""

    weights_: Any


class Kind(NamedTuple):
    """One kind of fitted object.

    Attributes:
        make: its class.
        found: attributes that fit finds, and what they must be. None: the class brings `document()`
            and `from_document(document)` itself, which may take `trusted`.
        parameters: what parameters must be, beyond their types.
        faults: returns what does not fit together.
    """

    make: type
    found: Mapping[str, Check] | None = None
    parameters: Mapping[str, Check] = {}
    faults: Callable[[Any], Iterable[str]] = lambda fitted: ()


def _numbers(axes: int) -> Check:
    return array(axes, low=-_MOST, high=_MOST)


def _greedy(fitted: GreedySelection) -> Iterable[str]:
    count, used = len(fitted.weights_), fitted.counts_.sum()
    if len(fitted.counts_) != count or used < 1:
        yield "counts_ and weights_ are not of the same members"
    elif not np.array_equal(fitted.weights_, fitted.counts_ / used):
        yield "weights_ are not counts_ divided by their sum"
    if max(fitted.order_, default=0) >= count or fitted.best_single_ >= count:
        yield f"order_ or best_single_ name members beyond {count - 1}"


def _simplex(fitted: SimplexWeights) -> Iterable[str]:
    if (fitted.weights_.ndim == 2) != fitted.per_class:
        yield "weights_ (member, class) go with per_class=True"


def _pool(fitted: CalibratedPool) -> Iterable[str]:
    own = [one for one in fitted.calibrators_ if one is not None]
    if any(type(one) is not CALIBRATORS[fitted.method] for one in own):
        yield f"calibrators_ are not of method={fitted.method!r}"
    if not own or any(one.space != "prob" for one in own):
        yield "calibrators_ must be there, and be of probabilities"
    if not fitted.per_member and len(fitted.calibrators_) != 1:
        yield "without per_member there is one calibrator"
    if fitted.weights is not None:
        yield from _pool_weights(fitted)
    elif None in fitted.calibrators_:
        yield "a member without a calibrator needs a weight of zero"


def _pool_weights(fitted: CalibratedPool) -> Iterable[str]:
    asked = np.asarray(fitted.weights, np.float64)
    if asked.ndim not in (1, 2) or not ((asked >= 0) & (asked <= _MOST)).all() or not asked.any():
        yield "weights must be (member,) or (member, class), not negative, not all 0"
    elif fitted.per_member:
        silent = ~asked.reshape(len(asked), -1).any(1)
        if [one is None for one in fitted.calibrators_] != silent.tolist():
            yield "there is a calibrator for each member whose weight is not zero"


def _vector(fitted: Vector) -> Iterable[str]:
    if fitted.factors_.shape != fitted.offsets_.shape:
        yield "factors_ and offsets_ are not of the same classes"


def _beta(fitted: Beta) -> Iterable[str]:
    table = fitted.coefficients_
    if table.shape[1] != 3 or (table[:, :2] < 0).any():
        yield "coefficients_ must be a, b, c a problem, a and b not negative"


def _step(value: Any) -> str:
    """Check for one problem of isotonic calibration: two arrays, both rising, within [0, 1]."""
    if not isinstance(value, tuple) or len(value) != 2:
        return "a problem has two arrays"
    fault = next((f for f in map(array(1, low=0, high=1), value) if f), "")
    if fault:
        return fault
    x, y = value
    rising = len(x) == len(y) and (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    return "" if rising else "the arrays of a problem must be of one length, and rise"


def _thresholds(fitted: DecisionThresholds) -> Iterable[str]:
    if not fitted.several_ and (fitted.thresholds_ < 1e-305).any():
        yield "thresholds_ of classes must be above 0"


def _dynamic(fitted: DynamicSelection) -> Iterable[str]:
    yield from fitted.parameter_faults()
    rows, columns = fitted.points_.shape
    heads, members = fitted.right_.shape[1:]
    if fitted.own_.shape != fitted.right_.shape or len(fitted.right_) != rows:
        yield "points_, right_ and own_ are not of the same rows and members"
    if not fitted.shift_.shape == fitted.scale_.shape == (columns,):
        yield "shift_ and scale_ are not of the coordinates of points_"
    size = _product(fitted.shape_)
    if not fitted.shape_ or not size or size != heads * fitted.shape_[-1]:
        yield "shape_ is not (head, ..., class) of right_"
    if fitted.space == "predictions" and columns != members * size:
        yield "points_ are not the members' predictions side by side"
    if fitted.k > rows:
        yield f"k={fitted.k} neighbours do not fit {rows} rows"


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _calibrator(value: Any) -> str:
    known = value is None or type(value) in CALIBRATORS.values()
    return "" if known else f"a {type(value).__name__} is no calibrator"


_UNCOVERED = {"uncovered": words("error", "leave_out")}
_SPACE = {**_UNCOVERED, "space": words("prob", "logit")}

KINDS: dict[str, Kind] = {
    "weights": Kind(Weights, {"weights_": array(1, 2, low=0, high=_MOST)}),
    "greedy_selection": Kind(
        GreedySelection,
        {
            "weights_": weights(1),
            "counts_": array(1, dtype="int64", low=0, high=1 << 40),
            "order_": tuple_of(whole),
            "path_": tuple_of(number),
            "score_": number,
            "best_single_": whole,
        },
        {
            **_UNCOVERED,
            "metric": lambda value: "" if callable(value) else words(*GREEDY_METRICS)(value),
        },
        _greedy,
    ),
    "simplex_weights": Kind(
        SimplexWeights,
        {"weights_": weights(1, 2), "loss_": number, "gap_": number},
        {**_UNCOVERED, "loss": words(*LOSSES)},
        _simplex,
    ),
    "calibrated_pool": Kind(
        CalibratedPool,
        {"calibrators_": tuple_of(_calibrator, least=1)},
        {**_UNCOVERED, "method": words(*CALIBRATORS)},
        _pool,
    ),
    "temperature": Kind(Temperature, {"temperature_": between(1 / _MOST, _MOST)}, _SPACE),
    "vector": Kind(Vector, {"factors_": _numbers(1), "offsets_": _numbers(1)}, _SPACE, _vector),
    "beta": Kind(Beta, {"coefficients_": _numbers(2)}, _SPACE, _beta),
    "isotonic": Kind(Isotonic, {"steps_": tuple_of(_step, least=1)}, _SPACE),
    "decision_thresholds": Kind(
        DecisionThresholds,
        {"thresholds_": array(1, low=0, high=2), "score_": number, "several_": flag},
        {**_UNCOVERED, "metric": words(*METRICS), "average": words(*AVERAGES)},
        _thresholds,
    ),
    "dynamic_selection": Kind(
        DynamicSelection,
        {
            "points_": _numbers(2),
            "right_": array(3, dtype="bool"),
            "own_": array(3, low=0, high=1),
            "shape_": tuple_of(whole, least=1),
            "shift_": _numbers(1),
            "scale_": array(1, low=1 / _MOST, high=_MOST),
        },
        _UNCOVERED,
        _dynamic,
    ),
    "stacker": Kind(Stacker),
    "blender": Kind(Blender),
}

"""Make the rows of a scoreboard: every member, and every method fitted on validation.

What a fitted method says of validation is cross-fitted: each row of data by a fit without it. What
it says of test is by the fit on all of validation, which is also what is kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.calibration import CALIBRATORS, Calibrator
from polyfuse.combining.base import KINDS, Given, outward
from polyfuse.combining.calibrated import Calibrated
from polyfuse.combining.fits import say, way
from polyfuse.combining.judging import Row
from polyfuse.combining.methods import Method, Wish
from polyfuse.cross_fitting import cross_fitted
from polyfuse.errors import DataError

Array = NDArray[Any]
Progress = Callable[[str, float, float, str], None]
AGAIN = "calibrated"  # what is appended to the name of a row


def member_rows(given: Given) -> list[Row]:
    """Return a row for each member, as it came."""
    return [
        Row(
            name,
            "member",
            (i,),
            {s: _member(given, rows.said[i]) for s, rows in given.splits.items()},
            float(given.costs[i]),
        )
        for i, name in enumerate(given.names)
    ]


def _member(given: Given, said: Array) -> Array:
    return said.argmax(-1) if given.decided else outward(given.kind, said)


def method_rows(
    given: Given,
    methods: Mapping[str, Method],
    options: Mapping[str, Mapping[str, Any]],
    wish: Wish,
    *,
    ordered: bool = False,
    lenient: bool = False,
    calibrate: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[list[Row], list[str]]:
    """Return a row for each method, and why others could not be made.

    Args:
        given: the members' predictions and labels.
        methods: by name.
        options: of each method.
        wish: what a combination is made for.
        ordered: rows come in the order of time.
        lenient: leave out what refuses these members instead of raising: all were tried.
        calibrate: options of a calibration that every method is tried with, too.
        progress: called with (name, done, total, note).

    Raises:
        DataError: what a method refuses.
    """
    if calibrate is not None and not KINDS[given.kind].classes:
        raise DataError(
            f"a calibration is of probabilities, and the task {given.kind} has none; leave out "
            "calibrate (--calibrate)"
        )
    rows: list[Row] = []
    failed: list[str] = []
    for done, (name, method) in enumerate(methods.items()):
        if progress:
            progress("methods", done, len(methods), name)
        try:
            rows += _made(given, name, method, options[name], wish, ordered, calibrate)
        except DataError as error:
            if not lenient:
                raise DataError(f"{name}: {error}") from error
            failed.append(f"Not made: {name}: {str(error).partition('; ')[0]}")
    if progress:
        progress("methods", len(methods), len(methods), "")
    return rows, failed


def _made(
    given: Given,
    name: str,
    method: Method,
    options: Mapping[str, Any],
    wish: Wish,
    ordered: bool,
    calibrate: Mapping[str, Any] | None,
) -> list[Row]:
    def make() -> Any:
        return method.make(wish, **options)

    name = f"{name} (method)" if name in given.names else name
    rows = [_row(given, name, make, wish, method.fitted, ordered)]
    if calibrate is not None and rows[0].said["val"].dtype.kind == "f":
        again = _calibrated(make, method.fitted, wish, ordered, dict(calibrate))
        rows.append(_row(given, f"{name} {AGAIN}", again, wish, True, ordered))
    return rows


def _calibrated(
    make: Callable[[], Any], fitted: bool, wish: Wish, ordered: bool, calibrate: dict[str, Any]
) -> Callable[[], Any]:
    calibrator: Callable[..., Calibrator] = CALIBRATORS[calibrate.pop("method", "temperature")]
    cross = {"folds": wish.folds, "seed": wish.seed, "ordered": ordered} if fitted else None
    options = {"space": "prob", "uncovered": "leave_out", **calibrate}
    return lambda: Calibrated(make=make, calibrator=calibrator(**options), cross=cross)


def _row(
    given: Given,
    name: str,
    make: Callable[[], Any],
    wish: Wish,
    fitted: bool,
    ordered: bool,
) -> Row:
    val = given.val
    whole = make().fit(val.said, val.labels, **_known(given))
    if fitted:
        said = cross_fitted(
            make,
            val.said,
            val.labels,
            folds=wish.folds,
            groups=val.groups,
            ordered=ordered,
            seed=wish.seed,
            trained=given.trained,
            method=way(whole),
        )
    else:
        said = say(whole, val.said)
    by_split = {"val": said}
    if given.test is not None:
        by_split["test"] = say(whole, given.test.said)
    used = used_members(whole, len(given.names))
    return Row(
        name,
        "fusion",
        used,
        {split: _out(given, p) for split, p in by_split.items()},
        float(given.costs[list(used)].sum()),
        whole,
        fitted,
    )


def _known(given: Given) -> dict[str, Any]:
    return {} if given.trained is None else {"trained": given.trained}


def used_members(fitted: Any, count: int) -> tuple[int, ...]:
    """Return the members that a combination needs: all, unless it gives some no weight.

    Example:
        >>> from polyfuse.combining.fits import Weighted
        >>> one = Weighted.from_document({"mean": "value", "weights": [0.0, 1.0]})
        >>> used_members(one, 2)
        (1,)
    """
    weights = weights_of(fitted)
    if weights is None:
        return tuple(range(count))
    return tuple(np.flatnonzero(weights.reshape(count, -1).any(1)).tolist())


def weights_of(fitted: Any) -> NDArray[np.float64] | None:
    """Return a combination's weights, `(member,)` or `(member, class)`, if it has any."""
    inner = getattr(fitted, "combination_", fitted)
    options = getattr(inner, "options", {})
    weights = getattr(inner, "weights_", options.get("weights"))
    return None if weights is None else np.asarray(weights, np.float64)


def _out(given: Given, prediction: Array) -> Array:
    """Return a prediction as it goes out; of members that say classes, classes."""
    if given.decided and prediction.dtype.kind == "f" and not np.isnan(prediction).any():
        return np.asarray(prediction.argmax(-1))
    return outward(given.kind, prediction)

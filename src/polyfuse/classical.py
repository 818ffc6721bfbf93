"""The one door to scikit-learn: its bundled data, its splitters, its estimators; loaded late."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError

Rows = NDArray[np.int64]


def bundled_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return scikit-learn's 1,797 real handwritten digits.

    Returns:
        Images `(1797, 8, 8)` uint8 with values 0 to 16, and labels `(1797,)` int64 0 to 9
        (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998).

    Example:
        >>> images, labels = bundled_digits()
        >>> images.shape, int(images.max()), labels[:4].tolist()
        ((1797, 8, 8), 16, [0, 1, 2, 3])
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def bundled_diabetes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scikit-learn's 442 patients of a diabetes study.

    Returns:
        Measures `(442, 10)` as they were taken, and the progression of the disease `(442,)`, 25 to
        346 (Efron, Hastie, Johnstone, Tibshirani, Least Angle Regression, Annals of Statistics
        2004).

    Example:
        >>> measures, progression = bundled_diabetes()
        >>> measures.shape, progression[:3].tolist()
        ((442, 10), [151.0, 75.0, 141.0])
    """
    from sklearn.datasets import load_diabetes

    measures, progression = load_diabetes(return_X_y=True, scaled=False)
    return measures.astype(np.float64), progression.astype(np.float64)


def fold_rows(
    n: int,
    folds: int,
    *,
    seed: int,
    classes: NDArray[np.int64] | None = None,
    groups: Rows | None = None,
    ordered: bool = False,
    shuffled: bool = False,
) -> Iterator[tuple[Rows, Rows]]:
    """Yield (training rows, held-out rows) for each fold; groups are kept whole, classes balanced.

    Args:
        n: number of rows.
        folds: number of folds, 2 or more.
        seed: shuffles rows (where there are groups, the folds are balanced by group size).
        classes: `(n,)` classes to balance over folds; used where each class fills every fold.
        groups: `(n,)`; a group is never cut.
        ordered: rows come in the order of time: each block is held out from the rows before it,
            and the first of `folds + 1` blocks is never held out. Rows of a group that comes again
            in the held-out block are not trained on, and folds that have no rows left are dropped.
        shuffled: `seed` deals the groups, too, and classes are balanced as far as groups let them.

    Raises:
        DataError: more folds than rows, or than groups.

    Example:
        >>> [held.tolist() for _, held in fold_rows(4, 2, seed=0, groups=np.array([7, 7, 8, 8]))]
        [[2, 3], [0, 1]]
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    if ordered:
        yield from _ordered_rows(n, folds, groups)
        return
    units, count = ("groups", len(np.unique(groups))) if groups is not None else ("rows", n)
    if not 2 <= folds <= count:
        raise DataError(
            f"folds={folds} does not fit {count} {units}; "
            f"type a number of folds from 2 to {count}, or bring more data"
        )
    blank = np.zeros(n)
    if groups is not None and shuffled:
        dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        yield from dealt.split(blank, blank.astype(int) if classes is None else classes, groups)
    elif groups is not None:
        yield from GroupKFold(folds).split(blank, groups=groups)
    elif classes is not None and np.unique(classes, return_counts=True)[1].min() >= folds:
        yield from StratifiedKFold(folds, shuffle=True, random_state=seed).split(blank, classes)
    else:
        yield from KFold(folds, shuffle=True, random_state=seed).split(blank)


def _ordered_rows(n: int, folds: int, groups: Rows | None) -> Iterator[tuple[Rows, Rows]]:
    from sklearn.model_selection import TimeSeriesSplit

    if not 2 <= folds < n:
        raise DataError(
            f"folds={folds} does not fit {n} rows in the order of time; type a number of folds "
            f"from 2 to {n - 1}, or bring more data"
        )
    for earlier, held in TimeSeriesSplit(folds).split(np.zeros(n)):
        if groups is not None:
            earlier = earlier[~np.isin(groups[earlier], groups[held])]
        if len(earlier):
            yield earlier, held


def inner_slice(
    rows: Rows, fraction: float, *, seed: int, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Divide a member's own training rows into those it learns from and those that stop it.

    Args:
        rows: `(m,)` the member's training rows.
        fraction: share of rows (of groups, where there are any) that stop training.
        seed: chooses them.
        groups: `(n,)` groups of all rows; a group is never cut where there are two or more.

    Returns:
        Learning rows and stopping rows, both sorted, together exactly `rows`.

    Raises:
        DataError: fewer than two rows, or a fraction outside (0, 1).

    Example:
        >>> learn, stop = inner_slice(np.arange(10), 0.2, seed=0)
        >>> len(learn), len(stop)
        (8, 2)
    """
    if len(rows) < 2 or not 0 < fraction < 1:
        raise DataError(
            f"cannot set aside a fraction {fraction} of {len(rows)} training rows to stop on; "
            "bring at least 2 rows and a fraction between 0 and 1"
        )
    keys = rows if groups is None or len(np.unique(groups[rows])) < 2 else groups[rows]
    units = np.random.default_rng([seed, 1]).permutation(np.unique(keys))
    stopping = units[: min(max(1, round(fraction * len(units))), len(units) - 1)]
    mask = np.isin(keys, stopping)
    return np.sort(rows[~mask]), np.sort(rows[mask])


def nearest_rows(
    points: NDArray[np.float64],
) -> Callable[[NDArray[np.float64], int], NDArray[np.int64]]:
    """Return what finds the rows nearest to queries, in memory that does not grow with both.

    Args:
        points: `(row, coordinate)` finite.

    Returns:
        A function of queries `(query, coordinate)` and k that returns the numbers `(query, k)` of
        the nearest rows. Which of equally near ones is any of them.

    Example:
        >>> nearest_rows(np.array([[0.0], [1.0], [5.0]]))(np.array([[4.0]]), 2).tolist()
        [[2, 1]]
    """
    from sklearn.neighbors import NearestNeighbors

    known = NearestNeighbors(algorithm="brute").fit(points)

    def nearest(queries: NDArray[np.float64], k: int) -> NDArray[np.int64]:
        return np.asarray(known.kneighbors(queries, k, return_distance=False))

    return nearest


def isotonic_steps(
    scores: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit the rising function of a score that is nearest to the targets (pool adjacent violators).

    Args:
        scores: `(n,)`.
        targets: `(n,)` from 0 to 1.

    Returns:
        Ascending scores and the values there, `(k,)` each: between them the function is linear,
        and outside it is level, as `np.interp` has it.

    Example:
        >>> isotonic_steps(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, 0.0, 1.0]))
        (array([0.1, 0.2, 0.3, 0.4]), array([0. , 0.5, 0.5, 1. ]))
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, targets)
    return fitted.X_thresholds_, fitted.y_thresholds_


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    # Columns are many and say nearly the same; 0.1 beats scikit-learn's 1.0 on held-out digits.
    return LogisticRegression(C=0.1, max_iter=1000)


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV()


def _nonnegative() -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression(positive=True)


def _trees_of_classes() -> Any:
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(200, min_samples_leaf=5)


def _trees_of_numbers() -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(200, min_samples_leaf=5)


def _boosting_of_classes() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier()


def _boosting_of_numbers() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor()


# The first of each is what is taken where nothing is said.
META_ESTIMATORS: dict[str, dict[str, Callable[[], Any]]] = {
    "classes": {
        "logistic": _logistic,
        "trees": _trees_of_classes,
        "boosting": _boosting_of_classes,
    },
    "numbers": {
        "ridge": _ridge,
        "nonnegative": _nonnegative,
        "trees": _trees_of_numbers,
        "boosting": _boosting_of_numbers,
    },
}


def seeded_clone(estimator: Any, seed: int) -> Any:
    """Return an unfitted copy, with `seed` where it or a part of it has no random state of its own.

    Args:
        estimator: any with scikit-learn's conventions.
        seed: of every `random_state` that is None.

    Example:
        >>> seeded_clone(META_ESTIMATORS["numbers"]["trees"](), 3).random_state
        3
    """
    from sklearn.base import clone

    copy = clone(estimator)
    states = [name for name in copy.get_params() if name.split("__")[-1] == "random_state"]
    open_ones = {name: seed for name in states if copy.get_params()[name] is None}
    return copy.set_params(**open_ones) if open_ones else copy


def estimates(estimator: Any) -> str:
    """Return what an estimator predicts: "classes", "numbers" or "unknown".

    Example:
        >>> estimates(META_ESTIMATORS["numbers"]["ridge"]())
        'numbers'
    """
    from sklearn.base import is_classifier, is_regressor

    if is_classifier(estimator):
        return "classes"
    return "numbers" if is_regressor(estimator) else "unknown"


def classifier_tags() -> Any:
    """Return what scikit-learn wants to know of a classifier that takes numbers `(row, column)`."""
    from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

    return Tags(
        estimator_type="classifier",
        target_tags=TargetTags(required=True),
        classifier_tags=ClassifierTags(),
        input_tags=InputTags(),
    )

"""Blending: stacking on a hold-out part of the rows, which no member trained on."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.classical import inner_slice
from polyfuse.errors import DataError
from polyfuse.fitting import array_of, stacked
from polyfuse.leaks import refuse_trained
from polyfuse.stacking.rows import FeatureError, features_of, groups_of, is_plain, labels_of
from polyfuse.stacking.stacker import Stacker

Mask = NDArray[np.bool_]


@dataclass(kw_only=True, eq=False)
class Blender(Stacker):
    """A meta-model on members' predictions of a hold-out part, on which no member trained.

    Members keep all their predictions; those of other rows, where they trained, are not looked at.
    Choose the part before members train: train them on `~blender.holdout_rows(n)`.

    Args:
        holdout: share of the rows (of groups, where there are any; with `ordered` the last rows);
            or the rows, as numbers or `(n,)` booleans; or None: the rows that no member trained on,
            as `trained` tells.
        meta: this one and all others: see `Stacker`. `folds` that are pairs number the hold-out.

    Attributes:
        rows_: `(n,)` booleans, the rows of the hold-out that were fitted on.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 3, 90)
        >>> good = np.full((90, 3), 0.1) + 0.7 * np.eye(3)[labels]
        >>> blender = Blender(holdout=0.5)
        >>> train = ~blender.holdout_rows(90)  # members train on these
        >>> blender.fit([good, rng.dirichlet([1, 1, 1], 90)], labels, trained=[train, train])
        ... # doctest: +ELLIPSIS
        Blender(...)
        >>> int(blender.rows_.sum())
        45
    """

    holdout: Any = None

    def holdout_rows(self, count: int, *, groups: Any = None, trained: Any = None) -> Mask:
        """Return which rows are held out; the same as `fit` takes.

        Args:
            count: number of rows.
            groups: `(count,)`; a group lies whole in the part or out of it.
            trained: `(member, count)` booleans, where `holdout` is None.

        Returns:
            `(count,)` booleans.

        Raises:
            DataError: rows that are none, a group that is cut, or nothing held out.

        Example:
            >>> Blender(holdout=0.25, ordered=True).holdout_rows(4).tolist()
            [False, False, False, True]
        """
        known = groups_of(groups, count)
        if self.holdout is None:
            mask = _unseen(trained)
        elif isinstance(self.holdout, float):
            mask = self._share(self.holdout, count, known)
        else:
            mask = _named(self.holdout, count)
        if not mask.any():
            raise DataError("no row is held out: members trained on all of them, or groups do")
        if known is not None and np.isin(known[mask], known[~mask]).any():
            raise DataError(
                "the hold-out cuts groups: rows of one lie inside and outside; hold out whole ones"
            )
        return mask

    def fit(
        self,
        predictions: Any,
        labels: Any,
        *,
        inputs: Any = None,
        groups: Any = None,
        trained: Any = None,
    ) -> Self:
        """Fit on the hold-out part.

        Args:
            predictions: of all rows, see `Stacker.fit`.
            labels: `(sample, ...)` of all rows; so are `inputs`, `groups` and `trained`.
            inputs: for `passthrough`.
            groups: `(sample,)`.
            trained: `(member, sample)` booleans.

        Raises:
            DataError: rows of the hold-out that members trained on; see `Stacker.fit`.
        """
        plain = is_plain(predictions, self.target)
        array = features_of(predictions) if plain else stacked(predictions, 2)
        count = len(array) if plain else array.shape[1]
        truth = labels_of(labels)
        _check_lengths(count, {"labels": truth, "inputs": inputs})
        mask = self.holdout_rows(count, groups=groups, trained=trained)
        if plain and trained is not None:
            raise DataError(
                "trained= is of members, and plain features (sample, feature) have none"
            )
        own = None if trained is None else _held(array, trained, mask)
        super().fit(
            array[mask] if plain else array[:, mask],
            truth[mask],
            inputs=None if inputs is None else array_of(inputs)[mask],
            groups=None if groups is None else array_of(groups)[mask],
            trained=own,
        )
        rows = np.zeros(count, dtype=bool)
        rows[np.flatnonzero(mask)[self.rows_]] = True
        self.rows_ = rows
        return self

    def _share(self, share: float, count: int, groups: NDArray[Any] | None) -> Mask:
        mask = np.zeros(count, dtype=bool)
        if not self.ordered:
            mask[inner_slice(np.arange(count), share, seed=self.seed, groups=groups)[1]] = True
            return mask
        if not 0 < share < 1:
            raise DataError(f"holdout={share} must be a share between 0 and 1")
        mask[count - max(1, round(share * count)) :] = True
        if groups is not None:  # a group that began earlier belongs to the members
            mask &= ~np.isin(groups, groups[~mask])
        return mask


def _unseen(trained: Any) -> Mask:
    if trained is None:
        raise DataError(
            "which rows are held out is not known: holdout=0.2 chooses them before members train; "
            "or bring the rows, or trained=(member, sample) booleans of who trained on what"
        )
    return np.asarray(~array_of(trained).astype(bool).any(0))


def _named(rows: Any, count: int) -> Mask:
    """Return the rows that were named, by number or by booleans."""
    array = array_of(rows)
    mask = np.zeros(count, dtype=bool)
    if array.dtype == bool and array.shape == (count,):
        return array
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise DataError(
            f"holdout must be a share such as 0.2, row numbers, or {count} booleans; got "
            f"{array.dtype} of shape {array.shape}"
        )
    if array.min() < 0 or array.max() >= count:
        raise DataError(
            f"holdout has rows from {array.min()} to {array.max()} of {count} rows, numbered from 0"
        )
    mask[array] = True
    return mask


def _held(array: NDArray[Any], trained: Any, mask: Mask) -> NDArray[Any]:
    """Return who trained on the hold-out, after a look at the mask's shape."""
    whole = array_of(trained)
    refuse_trained(np.zeros(array.shape[:2], dtype=bool), whole, "this blending")
    return whole[:, mask]


def _check_lengths(count: int, given: dict[str, Any]) -> None:
    faults = [
        f"{name} of shape {np.shape(value)} do not fit predictions of {count} rows"
        for name, value in given.items()
        if value is not None and np.shape(value)[:1] != (count,)
    ]
    if faults:
        raise FeatureError("\n".join(faults))

"""Dynamic selection: for each row, the members that do well on held-out rows like it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.dynamic_selection.competence import COMPETENCES, DIVERSITIES, METHODS, Near, shares
from polyfuse.dynamic_selection.neighbours import DISTANCES, around, numbers_at_once
from polyfuse.errors import DataError
from polyfuse.fitting import Floats, array_of, check_scores, held_out, stacked
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import Parameters, one_of

SPACES = ("predictions", "features")
VOTES = ("soft", "hard")
_CHUNK = 1 << 22  # numbers that are worked on at once
_TIE = 1e-12  # shares of votes that differ by less are equal


@dataclass(kw_only=True, eq=False)
class DynamicSelection(Parameters):
    """Members chosen or weighed for each row by their competence on the nearest held-out rows.

    Args:
        method: "knora_e": those right on all of the largest neighbourhood on which any is;
            "knora_u": a vote for every near row that a member is right on; "des_knn": the most
            accurate ones, and of them the most diverse; "soft": all, weighed by local competence.
        k: number of neighbours.
        space: where rows are near: "predictions", all members' probabilities side by side (no
            answer, NaN, where a member has no say); or "features", inputs that you bring.
        distance: "euclidean", "cosine", or "hellinger" (between probabilities).
        standardise: divide each coordinate by its deviation over the fitting rows.
        votes: "soft" pools probabilities, "hard" counts each member's best class.
        accurate: of "des_knn": the share of members kept as the most accurate, rounded down.
        diverse: of "des_knn": the share of all members that is kept at the end, rounded up.
        diversity: of "des_knn": "double_fault" or "q".
        competence: of "soft": "accuracy" or "likelihood".
        power: of "soft": weights are the local competence to this power.
        uncovered: "error", or "leave_out" for fitting rows that some member has no say on.

    Attributes:
        points_: `(row, coordinate)` float64, the fitting rows as their distance is measured.
        right_: `(row, head, member)` booleans.
        own_: `(row, head, member)` probabilities of the true class.
        shape_: heads and classes of a row.
        shift_: `(coordinate,)`, and scale_: what standardising takes away and divides by.

    Example:
        >>> x = np.linspace(-1, 1, 40)
        >>> labels = np.tile([0, 1], 20)
        >>> sure, wrong = np.eye(2)[labels] * 0.8 + 0.1, np.eye(2)[1 - labels] * 0.8 + 0.1
        >>> left = np.where(x[:, None] < 0, sure, wrong)  # each member knows one half
        >>> right = np.where(x[:, None] < 0, wrong, sure)
        >>> fitted = DynamicSelection(k=3, space="features")
        >>> fitted = fitted.fit([left, right], labels, inputs=x[:, None])
        >>> chosen = fitted.predict([left, right], inputs=x[:, None])
        >>> float((chosen == labels).mean())
        1.0
    """

    method: str = "knora_e"
    k: int = 7
    space: str = "predictions"
    distance: str = "euclidean"
    standardise: bool = False
    votes: str = "soft"
    accurate: float = 0.5
    diverse: float = 0.3
    diversity: str = "double_fault"
    competence: str = "accuracy"
    power: float = 1.0
    uncovered: str = "error"
    points_: Floats = field(init=False, repr=False)
    right_: NDArray[np.bool_] = field(init=False, repr=False)
    own_: Floats = field(init=False, repr=False)
    shape_: tuple[int, ...] = field(init=False, repr=False)
    shift_: Floats = field(init=False, repr=False)
    scale_: Floats = field(init=False, repr=False)

    def fit(
        self, predictions: Any, labels: Any, *, inputs: Any = None, trained: Any = None
    ) -> Self:
        """Keep what each member got right on rows that no member trained on.

        Args:
            predictions: `(member, sample, ..., class)` probabilities, or a sequence of members.
            labels: `(sample, ...)` integers.
            inputs: `(sample, ...)` finite numbers, for `space="features"`.
            trained: `(member, sample)` booleans, see `leaks.refuse_trained`.

        Raises:
            DataError: what does not fit, all at once; fewer rows than neighbours.
        """
        faults = self.parameter_faults()
        if faults:
            raise DataError("\n".join(faults))
        refuse_trained(predictions, trained, "this selection")
        rows = held_out(predictions, labels, uncovered=self.uncovered)
        p = rows.normal().astype(np.float64)
        raw = self._coordinates(p, inputs, rows.covered)
        if self.k > len(raw):
            raise DataError(
                f"k={self.k} neighbours do not fit {len(raw)} rows; lower k, or bring more rows"
            )
        self.shift_, self.scale_ = _standard(raw, self.standardise)
        self.points_ = self._mapped(raw)
        truth = rows.labels[None, ..., None]
        own = np.take_along_axis(p, np.broadcast_to(truth, (*p.shape[:-1], 1)), -1)[..., 0]
        self.right_ = _members_last(p.argmax(-1) == rows.labels)
        self.own_ = _members_last(own)
        self.shape_ = tuple(p.shape[2:])
        return self

    def member_weights(self, predictions: Any, *, inputs: Any = None) -> Floats:
        """Return how much each member counts on each row.

        Args:
            predictions: of the same members.
            inputs: `(sample, ...)`, for `space="features"`.

        Returns:
            `(sample, ..., member)` float64, summing to one; NaN where a row's neighbours cannot be
            found.

        Raises:
            DataError: see `predict_proba`.
        """
        p = self._probabilities(predictions)
        return self._weights(p, inputs).reshape(*p.shape[1:-1], len(p))

    def predict_proba(self, predictions: Any, *, inputs: Any = None) -> Floats:
        """Return the probabilities, or shares of votes, of the members that count on each row.

        Args:
            predictions: `(member, sample, ..., class)` of the same members; NaN where a member has
                no say: in feature space the others take its weight.
            inputs: `(sample, ...)`, for `space="features"`.

        Returns:
            `(sample, ..., class)` float64.

        Raises:
            DataError: not fitted, other members, classes or inputs, or no probabilities.
        """
        p = self._probabilities(predictions)
        voted = _ballots(p) if self.votes == "hard" else p
        return _pooled(voted, self._weights(p, inputs))

    def predict(self, predictions: Any, *, inputs: Any = None) -> NDArray[np.int64]:
        """Return the classes; tied votes go to the larger pooled probability, then the lower label.

        Raises:
            DataError: see `predict_proba`; rows whose neighbours cannot be found.
        """
        p = self._probabilities(predictions)
        weights = self._weights(p, inputs)
        pool = _pooled(p, weights)
        if np.isnan(pool).any():
            raise DataError(
                f"{int(np.isnan(pool).reshape(len(pool), -1).any(1).sum())} rows have no class, "
                "since a member has no say on them; leave them out, or use predict_proba"
            )
        if self.votes == "hard":
            votes = _pooled(_ballots(p), weights)
            pool = np.where(votes >= votes.max(-1, keepdims=True) - _TIE, pool, -1)
        return np.asarray(pool.argmax(-1), dtype=np.int64)

    def parameter_faults(self) -> list[str]:
        """Return what is wrong with the parameters; nothing where all is well."""
        words = {
            "method": list(METHODS),
            "space": SPACES,
            "distance": list(DISTANCES),
            "votes": VOTES,
            "diversity": DIVERSITIES,
            "competence": COMPETENCES,
        }
        ranges = {
            f"k={self.k} must be at least 1": self.k >= 1,
            f"accurate={self.accurate} must be above 0 and at most 1": 0 < self.accurate <= 1,
            f"diverse={self.diverse} must be above 0 and at most 1": 0 < self.diverse <= 1,
            f"power={self.power} must be finite and not negative": 0 <= self.power < np.inf,
        }
        unknown = (_unknown(name, getattr(self, name), known) for name, known in words.items())
        return [
            *(fault for fault in unknown if fault),
            *(fault for fault, holds in ranges.items() if not holds),
        ]

    def _probabilities(self, predictions: Any) -> Floats:
        """Return `(member, sample, ..., class)` summing to one, checked against the fit."""
        right, shape = self.fitted("right_"), self.shape_
        array = stacked(predictions)
        if len(array) != right.shape[-1] or array.shape[2:] != shape:
            raise DataError(
                f"predictions {array.shape} do not fit what was fitted: {right.shape[-1]} members, "
                f"(sample, ..., class) ending in {shape}; bring the same members in the same order"
            )
        sums = np.stack([check_scores(member) for member in array])
        normal: Floats = array / sums[..., None]
        return normal

    def _coordinates(self, p: Floats, inputs: Any, rows: Any = slice(None)) -> Floats:
        """Return `(row, coordinate)` of predictions or inputs, before any scaling."""
        if self.space == "predictions":
            return np.swapaxes(p, 0, 1).reshape(p.shape[1], -1)
        array = None if inputs is None else array_of(inputs)
        expected = len(rows) if isinstance(rows, np.ndarray) else p.shape[1]
        if (
            array is None
            or array.ndim < 2
            or len(array) != expected
            or array.dtype.kind not in "iufb"
        ):
            got = "none" if array is None else f"{array.dtype} of shape {array.shape}"
            raise DataError(
                f'space="features" needs inputs= with {expected} rows of numbers, (sample, '
                f"feature), in the predictions' order; got {got}"
            )
        flat = array.reshape(expected, -1).astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(flat).all(1))
        if len(bad):
            raise DataError(
                f"{len(bad)} rows of inputs are not finite, row {bad[0]} the first; fill them in"
            )
        return np.asarray(flat[rows])

    def _mapped(self, raw: Floats) -> Floats:
        return DISTANCES[self.distance]((raw - self.shift_) / self.scale_)

    def _weights(self, p: Floats, inputs: Any) -> Floats:
        """Return `(sample, head, member)` weights, chunk by chunk."""
        raw = self._coordinates(p, inputs)
        if raw.shape[1] != self.points_.shape[1]:
            raise DataError(
                f"inputs of {raw.shape[1]} features do not fit {self.points_.shape[1]} fitted ones"
            )
        weights = np.full((len(raw), *self.right_.shape[1:]), np.nan)
        found, known = np.flatnonzero(~np.isnan(raw).any(1)), around(self.points_)
        for rows in self._chunks(found):
            nearest, distances = known.nearest(self._mapped(raw[rows]), self.k)
            near = Near(self.right_[nearest], self.own_[nearest], distances)
            weights[rows] = shares(METHODS[self.method](near, self))
        return weights

    def _chunks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        known, heads, members = self.right_.shape
        search = numbers_at_once(known, self.points_.shape[1], self.k)
        step = max(1, _CHUNK // max(search, heads * members * (self.k + members)))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _unknown(name: str, value: Any, known: Sequence[str]) -> str:
    """Return what `one_of` says of a word."""
    try:
        one_of(name, value, known)
    except DataError as error:
        return str(error)
    return ""


def _standard(raw: Floats, asked: bool) -> tuple[Floats, Floats]:
    if not asked:
        return np.zeros(raw.shape[1]), np.ones(raw.shape[1])
    deviation = raw.std(0)
    return raw.mean(0), np.where(deviation > 0, deviation, 1.0)


def _members_last(values: NDArray[Any]) -> NDArray[Any]:
    """Return `(member, row, ...)` as `(row, head, member)`."""
    return np.ascontiguousarray(np.moveaxis(values.reshape(*values.shape[:2], -1), 0, -1))


def _ballots(p: Floats) -> Floats:
    """Return 1 for each member's best class; NaN rows stay NaN."""
    cast = np.eye(p.shape[-1])[np.nan_to_num(p).argmax(-1)]
    return np.where(np.isnan(p), np.nan, cast)


def _pooled(p: Floats, weights: Floats) -> Floats:
    """Return `(sample, ..., class)` means of the members that have a say."""
    flat = p.reshape(*p.shape[:2], -1, p.shape[-1])
    said = np.asarray(~np.any(np.isnan(flat), axis=-1))
    own = np.moveaxis(weights, -1, 0) * said
    total = own.sum(0)
    # Where those that count have no say, the others speak with one voice each.
    own = np.where((total == 0) & said.any(0), said, own)
    mean = np.zeros(flat.shape[1:])
    for share, member in zip(own, flat, strict=True):
        mean += share[..., None] * np.nan_to_num(member)
    with np.errstate(invalid="ignore"):
        shared: Floats = mean / own.sum(0)[..., None]
    return shared.reshape(p.shape[1:])

"""Decision thresholds a class, fitted exactly: over sorted scores, not over a grid.

Several labels a row, or a single yes or no: a label is said where its probability is at least its
threshold. One class of several: the class with the largest `probability / threshold`, thresholds
summing to one, so that for two classes this is the same rule.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import Floats, Labels, array_of, held_out
from polyfuse.leaks import refuse_trained_rows
from polyfuse.parameters import Parameters, one_of

METRICS = ("f1", "balanced_accuracy")
AVERAGES = ("macro", "micro")
_SWEEPS = 100
_GAIN = 1e-12  # a smaller gain is a rounding error


class Cuts(NamedTuple):
    """What each number of positives among the highest scores gives, for one label.

    Attributes:
        thresholds: `(cut,)` such that a score of at least this is positive.
        hits: `(cut,)` true positives.
        said: `(cut,)` positives.
    """

    thresholds: Floats
    hits: Floats
    said: Floats


@dataclass(kw_only=True, eq=False)
class DecisionThresholds(Parameters):
    """Thresholds that maximise F1 or balanced accuracy on held-out rows.

    With labels `(n, label)` of 0 and 1, or `(n,)` beside probabilities `(n,)`, the optimum is
    exact: label by label for "macro", all at once for "micro" F1. With labels `(n,)` beside
    `(n, class)` it is found class by class, each step exact, until none helps: it is never worse
    than the largest probability, and no change of one class alone makes it better.

    Args:
        metric: "f1" or "balanced_accuracy" (the mean recall of positives and negatives, or of
            classes).
        average: "macro", the mean over labels or classes; or of F1 of labels "micro".
        uncovered: "error", or "leave_out" for NaN rows.

    Attributes:
        thresholds_: `(label,)` or `(class,)`; among equally good ones the nearest to 1/2.
        score_: on the fitting rows.

    Example:
        >>> p, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 1, 0, 1])
        >>> fitted = DecisionThresholds().fit(p, labels)
        >>> fitted.thresholds_.round(2).tolist(), round(fitted.score_, 2)
        ([0.15], 0.8)
    """

    metric: str = "f1"
    average: str = "macro"
    uncovered: str = "error"
    thresholds_: Floats = field(init=False, repr=False)
    score_: float = field(init=False, repr=False)
    several_: bool = field(init=False, repr=False)

    def fit(self, probabilities: Any, labels: Any, *, trained: Any = None) -> Self:
        """Fit on rows that no member trained on.

        Args:
            probabilities: `(n,)` or `(n, label)` from 0 to 1, or `(n, class)` summing to one.
            labels: `(n,)` or `(n, label)` of 0 and 1, or `(n,)` classes.
            trained: `(n,)` booleans, see `leaks.refuse_trained_rows`.

        Raises:
            DataError: what does not fit, all at once; a label that no row, or each row, has.
        """
        one_of("metric", self.metric, METRICS)
        one_of("average", self.average, AVERAGES)
        p, truth = array_of(probabilities), array_of(labels)
        refuse_trained_rows(p, trained, "these thresholds")
        self.several_ = p.ndim == 1 or truth.ndim == 2
        if self.average == "micro" and not (self.several_ and self.metric == "f1"):
            raise DataError('average="micro" is for F1 of several labels: use average="macro"')
        if self.several_:
            scores, said = _labels(p, truth, self.uncovered)
            self._fit_labels(scores, said)
        else:
            rows = held_out(p[None], truth, uncovered=self.uncovered)
            self._fit_classes(rows.normal()[0].astype(np.float64), rows.labels)
        return self

    def predict(self, probabilities: Any) -> Labels:
        """Return 0 or 1 a label `(n,)` or `(n, label)`, or the class `(n,)`; int64.

        Raises:
            DataError: not fitted, or another number of labels.
        """
        thresholds, p = self.fitted("thresholds_"), array_of(probabilities)
        columns = 1 if p.ndim == 1 else p.shape[-1]
        if columns != len(thresholds):
            raise DataError(f"{columns} columns do not fit {len(thresholds)} thresholds")
        if self.several_:
            said = p >= (thresholds[0] if p.ndim == 1 else thresholds)
            return np.asarray(said, dtype=np.int64)
        return np.asarray((p / thresholds).argmax(-1))

    def _fit_labels(self, p: Floats, truth: Labels) -> None:
        cuts = [_cuts(p[:, k], truth[:, k]) for k in range(p.shape[1])]
        positive = truth.sum(0).astype(np.float64)
        if self.average == "micro":
            best, self.score_ = _micro(cuts, positive.sum())
        else:
            _check_both(truth, positive, self.metric)
            values = [
                _label_value(c, count, len(p), self.metric)
                for c, count in zip(cuts, positive, strict=True)
            ]
            best = [_nearest(v, c) for v, c in zip(values, cuts, strict=True)]
            self.score_ = float(np.mean([v[i] for v, i in zip(values, best, strict=True)]))
        self.thresholds_ = np.array([c.thresholds[i] for c, i in zip(cuts, best, strict=True)])

    def _fit_classes(self, p: Floats, truth: Labels) -> None:
        factors = np.ones(p.shape[1])
        best = _class_score(p, factors, truth, self.metric)
        for _ in range(_SWEEPS):
            before = best
            for k in range(p.shape[1]):
                trial = factors.copy()
                trial[k] = _best_factor(p, factors, truth, k, self.metric)
                score = _class_score(p, trial, truth, self.metric)
                if score > best + _GAIN:
                    factors, best = trial, score
            if best == before:
                break
        self.thresholds_ = (1 / factors) / (1 / factors).sum()
        self.score_ = best


def _labels(p: NDArray[Any], truth: NDArray[Any], uncovered: str) -> tuple[Floats, Labels]:
    """Check probabilities and labels of 0 and 1, and return both as `(row, label)`."""
    one_of("uncovered", uncovered, ["error", "leave_out"])
    faults = []
    if p.shape != truth.shape or p.ndim not in (1, 2) or not p.size:
        faults.append(
            f"labels of shape {truth.shape} do not fit probabilities of {p.shape}; expected (n,) "
            "or (n, label) for both, or (n, class) probabilities with (n,) classes"
        )
    if truth.dtype.kind not in "iub" or not np.isin(truth, (0, 1)).all():
        faults.append("labels must be 0 and 1, integers: (n, label) says which of them a row has")
    floating = p if p.dtype.kind == "f" else np.zeros(p.shape)
    gone = np.asarray(np.any(np.isnan(floating.reshape(len(p), -1)), axis=1))
    if p.dtype.kind != "f" or not (np.isnan(p) | ((p >= 0) & (p <= 1))).all():
        faults.append(
            "expected probabilities from 0 to 1; these look like logits: 1 / (1 + exp(-z))"
        )
    if gone.any() and (uncovered == "error" or gone.all()):
        faults.append(
            f"{int(gone.sum())} of {len(p)} rows have NaN; bring their predictions, or leave these "
            'rows out: uncovered="leave_out"'
        )
    if faults:
        raise DataError("\n".join(faults))
    rows = ~gone
    columns = p.reshape(len(p), -1)[rows].astype(np.float64)
    return columns, truth.reshape(len(p), -1)[rows].astype(np.int64)


def _check_both(truth: Labels, positive: Floats, metric: str) -> None:
    """Refuse a label of which one kind is missing, where the score of it says nothing."""
    none = positive == 0
    bad = none if metric == "f1" else none | (positive == len(truth))
    if bad.any():
        raise DataError(
            f"labels {', '.join(map(str, np.flatnonzero(bad).tolist()))} are the same in all "
            f"{len(truth)} rows, so no threshold can be fitted; leave these labels out, or bring "
            "rows that differ"
        )


def _cuts(p: Floats, truth: Labels) -> Cuts:
    """Return every cut between different scores, from none positive to all."""
    order = np.argsort(-p, kind="stable")
    scores, hits = p[order], np.cumsum(truth[order])
    ends = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))
    lowest = scores[ends]
    below = np.append(lowest[1:], lowest[-1])
    middle = below + (lowest - below) / 2
    # Between neighbouring floats there is no middle.
    inner = np.where(middle > below, middle, lowest)
    return Cuts(
        np.append(np.nextafter(scores[0], np.inf), inner),
        np.append(0, hits[ends]).astype(np.float64),
        np.append(0, ends + 1).astype(np.float64),
    )


def _label_value(cuts: Cuts, positive: float, rows: int, metric: str) -> Floats:
    if metric == "f1":
        return 2 * cuts.hits / (cuts.said + positive)
    negative = rows - positive
    right = negative - (cuts.said - cuts.hits)
    return (cuts.hits / positive + right / negative) / 2


def _nearest(values: Floats, cuts: Cuts) -> int:
    """Return the best cut; among equals the one whose threshold is nearest to 1/2."""
    best = np.flatnonzero(values >= values.max() - _GAIN)
    return int(best[np.abs(cuts.thresholds[best] - 0.5).argmin()])


def _micro(cuts: list[Cuts], positive: float) -> tuple[list[int], float]:
    """Maximise the ratio 2 TP / (said + positive) over all labels at once (Dinkelbach 1967).

    Raises:
        DataError: no label is true in any row.
    """
    if not positive:
        raise DataError("no row has any label, so no threshold can be fitted; bring rows that do")
    ratio = 0.0
    while True:
        best = [_nearest(2 * c.hits - ratio * c.said, c) for c in cuts]
        hits = sum(c.hits[i] for c, i in zip(cuts, best, strict=True))
        said = sum(c.said[i] for c, i in zip(cuts, best, strict=True))
        found = float(2 * hits / (said + positive))
        if found <= ratio + _GAIN:
            return best, found
        ratio = found


def _values(hits: Floats, said: Floats, there: Floats, metric: str) -> Floats:
    """Return each class's F1 or recall, 0 where it is undefined."""
    top, bottom = (2 * hits, said + there) if metric == "f1" else (hits, there)
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 0.0)


def _scored(there: Floats, metric: str) -> int:
    """Return the number of classes that the mean is over."""
    return len(there) if metric == "f1" else int((there > 0).sum())


def _class_score(p: Floats, factors: Floats, truth: Labels, metric: str) -> float:
    said = (p * factors).argmax(-1)
    count = len(factors)
    there = np.bincount(truth, minlength=count).astype(np.float64)
    hits = np.bincount(truth[said == truth], minlength=count).astype(np.float64)
    values = _values(hits, np.bincount(said, minlength=count).astype(np.float64), there, metric)
    return float(values.sum()) / _scored(there, metric)


def _best_factor(p: Floats, factors: Floats, truth: Labels, k: int, metric: str) -> float:
    """Return the factor of class k that is best while the others stay.

    Rows turn to class k in the order of the factor that they need. Each turn changes the value of
    class k, and of the class that the row is taken from.
    """
    others = p * factors
    others[:, k] = -1.0
    rival = others.argmax(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        need = others[np.arange(len(p)), rival] / p[:, k]
    order = np.argsort(need, kind="stable")
    order = order[np.isfinite(need[order])]
    need = need[order]
    if not len(need):
        return float(factors[k])
    gains = _rival_changes(rival, truth, order, len(factors), metric)
    there = np.bincount(truth, minlength=len(factors)).astype(np.float64)
    hits = np.append(0, np.cumsum(truth[order] == k)).astype(np.float64)
    own = _values(hits, np.arange(len(hits), dtype=np.float64), there[k], metric)
    values = own + np.append(0.0, np.cumsum(gains))
    middles = np.append(need[0] / 2, (need + np.append(need[1:], 2 * need[-1] + 1e-300)) / 2)
    real = np.append(True, np.append(need[1:] > need[:-1], True))
    cut = int(np.where(real, values, -np.inf).argmax())
    return max(float(middles[cut]), 1e-300)


def _rival_changes(rival: Labels, truth: Labels, order: Labels, count: int, metric: str) -> Floats:
    """Return what the class that a row is taken from gains when it goes, `(turn,)`."""
    there = np.bincount(truth, minlength=count).astype(np.float64)
    said = np.bincount(rival, minlength=count).astype(np.float64)
    hits = np.bincount(rival[rival == truth], minlength=count).astype(np.float64)
    source, right = rival[order], (rival == truth)[order].astype(np.float64)
    grouped = np.argsort(source, kind="stable")
    c, r = source[grouped], right[grouped]
    start = np.flatnonzero(np.append(True, c[1:] != c[:-1]))
    length = np.diff(np.append(start, len(c)))
    gone = np.arange(len(c)) - np.repeat(start, length)  # rows this class has lost before
    total = np.cumsum(r)
    lost = total - r - np.repeat((total - r)[start], length)  # right ones among them
    before = _values(hits[c] - lost, said[c] - gone, there[c], metric)
    after = _values(hits[c] - lost - r, said[c] - gone - 1, there[c], metric)
    gains = np.empty(len(c))
    gains[grouped] = after - before
    return gains

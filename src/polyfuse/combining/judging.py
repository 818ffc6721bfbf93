"""Judge rows: scores with intervals, differences from the best member, a winner if there is one.

Rows are chosen on validation, where what was fitted is judged by predictions of fits that did not
see the row (cross-fitted). On test nothing is chosen: there each row is compared with the one that
validation chose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.combining.base import Metric, Rows
from polyfuse.errors import DataError
from polyfuse.metrics import NEEDS_PROBABILITIES, Score, percentiles, replicate_scores
from polyfuse.significance import Pair, Verdict, compare_pairs, declare_winner, seen_from

Array = NDArray[Any]
Every = Mapping[str, Mapping[str, Score | None]]  # row name -> metric -> score


@dataclass(frozen=True)
class Row:
    """One row of a scoreboard before it is scored.

    Attributes:
        name: of the row.
        kind: "member" or "fusion".
        members: indices of those that have a say.
        said: by split, `(row, ...)` as it goes out; NaN where no fit may predict.
        cost: of all that have a say.
        fitted: what predicts, fitted on all of validation; None for a member.
        cross: what it says of validation is cross-fitted.
    """

    name: str
    kind: str
    members: tuple[int, ...]
    said: Mapping[str, Array]
    cost: float
    fitted: Any = None
    cross: bool = False


@dataclass(frozen=True)
class Judge:
    """How rows are judged.

    Attributes:
        metrics: by name, the one that decides first.
        lower_is_better: of the one that decides.
        replicates: of the bootstrap.
        seed: of the bootstrap.
    """

    metrics: Mapping[str, Metric]
    lower_is_better: bool
    replicates: int = 2000
    seed: int = 0

    @property
    def metric(self) -> str:
        """The name of the metric that decides."""
        return next(iter(self.metrics))

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return -1 if self.lower_is_better else 1


@dataclass(frozen=True)
class Judged:
    """What one split says of all rows.

    Attributes:
        scores: by row, the contents of its split on the scoreboard.
        values: by row, the metric that decides; rows that it cannot score are not in.
        best_member: that all rows are compared with.
        verdict: the best row against all others.
        rows: how many rows of data were scored on.
    """

    scores: Mapping[str, dict[str, Any]]
    values: Mapping[str, float]
    best_member: str
    verdict: Verdict
    rows: int


def judge(
    rows: Sequence[Row], split: str, data: Rows, how: Judge, chosen: tuple[str, str] | None = None
) -> Judged:
    """Score all rows on one split, and compare them.

    Args:
        rows: of the scoreboard, members first.
        split: "val" or "test".
        data: its labels and groups.
        how: metrics, replicates and seed.
        chosen: the best member and the best row, as another split has chosen them; None: this one
            chooses, and corrects for it.

    Raises:
        DataError: fewer than two rows can be scored, or a score is undefined.
    """
    assert data.labels is not None
    covered = _covered(rows, split)
    groups = None if data.groups is None else data.groups[covered]
    labels = data.labels[covered]
    every = {
        row.name: {
            name: _score(name, metric, row.said[split][covered], labels)
            for name, metric in how.metrics.items()
        }
        for row in rows
    }
    deciding = {n: s for n, scores in every.items() if (s := scores[how.metric]) is not None}
    drawn = _drawn(every, replicates=how.replicates, seed=how.seed, groups=groups)
    settings: dict[str, Any] = {
        "drawn": {name: drawn[name, how.metric] for name in deciding},
        "groups": groups,
        "lower_is_better": how.lower_is_better,
    }
    reference = chosen[0] if chosen else _best_member(rows, deciding, how)
    against = {p.a: p for p in compare_pairs(deciding, reference=reference, **settings)}
    if chosen:
        verdict = _confirmed(chosen[1], compare_pairs(deciding, reference=chosen[1], **settings))
    else:
        verdict = declare_winner(deciding, **settings)
    scores = _intervals(every, drawn)
    for name, own in scores.items():
        own["difference"] = _difference(name, reference, against.get(name))
    values = {name: score.value for name, score in deciding.items()}
    return Judged(scores, values, reference, verdict, len(labels))


def _best_member(rows: Sequence[Row], deciding: Mapping[str, Score], how: Judge) -> str:
    names = [row.name for row in rows if row.kind == "member" and row.name in deciding]
    if not names:
        raise DataError(
            f"no member can be scored by {how.metric}, which needs probabilities; choose another: "
            "metric='accuracy'"
        )
    return max(names, key=lambda name: how.sign * deciding[name].value)


def _covered(rows: Sequence[Row], split: str) -> NDArray[np.bool_]:
    """Return the rows of data that every row of the scoreboard has a say on."""
    covered = np.ones(len(rows[0].said[split]), bool)
    for row in rows:
        said = row.said[split]
        if said.dtype.kind == "f":
            covered &= ~np.isnan(said.reshape(len(said), -1)).any(1)
    if not covered.any():
        raise DataError("no row of data is predicted by every combination; bring more rows")
    return covered


def _score(name: str, metric: Metric, prediction: Array, labels: Array) -> Score | None:
    votes = prediction.dtype.kind != "f"
    return None if votes and name in NEEDS_PROBABILITIES else metric(prediction, labels)


def _drawn(every: Every, **draws: Any) -> dict[tuple[str, str], Array]:
    """Return each score, named by its row and metric, in each replicate; all drawn at once."""
    known = {(row, name): s for row, own in every.items() for name, s in own.items() if s}
    columns = replicate_scores(list(known.values()), **draws).T
    return dict(zip(known, columns, strict=True))


def _intervals(every: Every, drawn: Mapping[tuple[str, str], Array]) -> dict[str, dict[str, Any]]:
    """Return all scores with their intervals; None where a row has none."""
    return {
        row: {
            name: _plain(percentiles(score.value, drawn[row, name])._asdict()) if score else None
            for name, score in own.items()
        }
        for row, own in every.items()
    }


def _difference(name: str, reference: str, pair: Pair | None) -> dict[str, Any] | None:
    if name == reference:
        return {"value": 0.0, "low": 0.0, "high": 0.0, "better": False, "p": None}
    if pair is None:
        return None
    return {
        **_plain(pair.difference._asdict()),
        "better": pair.better == name,
        "p": pair.corrected,
    }


def _plain(interval: Mapping[str, float]) -> dict[str, Any]:
    """Return an interval as JSON has it, whose numbers are finite."""
    return {key: value if np.isfinite(value) else None for key, value in interval.items()}


def _confirmed(best: str, pairs: Sequence[Pair]) -> Verdict:
    """Say whether a row that other data chose is better than each other row here."""
    turned = tuple(seen_from(best, pair) for pair in pairs)
    level = (best, *(pair.b for pair in turned if pair.better != best))
    return Verdict(best, best if len(level) == 1 else None, level, turned)

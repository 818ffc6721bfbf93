"""The scoreboard of a combination, in the form that all scoreboards have, and which row to use."""

from collections.abc import Sequence
from typing import Any

from polyfuse.advice import advised
from polyfuse.combining.base import Given
from polyfuse.combining.judging import Judge, Judged, Row, judge
from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.scoreboard import SCHEMA, Scoreboard

_SHOWN = 4


def scoreboard_of(
    given: Given, rows: Sequence[Row], how: Judge, notes: Sequence[str], *, folds: int
) -> Scoreboard:
    """Judge all rows on validation, and on test where its labels are known.

    Args:
        given: what they were made of.
        rows: members first.
        how: metrics, replicates and seed.
        notes: what a reader must know.
        folds: of cross-fitting.

    Raises:
        DataError: rows that cannot be judged.
    """
    val = judge(rows, "val", given.val, how)
    plain = [_facts(row, given) for row in rows]
    lower = how.lower_is_better
    advice = advised(val.verdict, plain, val.values, how.metric, lower_is_better=lower)
    splits = {"val": val}
    if given.test is not None and given.test.labels is not None:
        chosen = (val.best_member, val.verdict.best)
        splits["test"] = judge(rows, "test", given.test, how, chosen)
    said = [f"Recommended: {advice.recommended}."] * (advice.recommended == val.verdict.best)
    said += [_said(split, judged) for split, judged in splits.items()]
    if val.rows < len(given.val):
        said.append(f"Scored on {val.rows} of {len(given.val)} rows: no fold predicts the others.")
    fitted = [row.name for row in rows if row.fitted is not None and row.cross]
    if fitted:
        said.append(
            f"Cross-fitted in {folds} folds on validation: {printable(', '.join(fitted), 400)}."
        )
    return Scoreboard(
        {
            "schema": SCHEMA,
            "task": given.kind,
            "members": len(given.names),
            "expected": len(given.names),
            "metric": how.metric,
            "metrics": list(how.metrics),
            "interval": {"level": 0.95, "replicates": how.replicates, "seed": how.seed},
            "best": val.verdict.best,
            "best_member": val.best_member,
            "winner": val.verdict.winner,
            "level": list(val.verdict.level),
            "recommended": advice.recommended,
            "out_of_fold": None,
            "notes": [*said, *notes],
            "rows": [
                facts
                | {split: judged.scores[facts["name"]] for split, judged in splits.items()}
                | ({"passed_over": why} if (why := advice.passed_over.get(facts["name"])) else {})
                for facts in plain
            ],
        }
    )


def _facts(row: Row, given: Given) -> dict[str, Any]:
    """Return what a row is, and what it costs."""
    return {
        "name": row.name,
        "kind": row.kind,
        "members": list(row.members),
        "models": len(row.members),
        **({"cost": row.cost} if given.priced else {}),
        "cross_fitted": row.cross,
    }


def _said(split: str, judged: Judged) -> str:
    """Say whether there is a winner."""
    best, winner, level, pairs = judged.verdict
    where = {"val": "validation", "test": "test"}[split]
    count = len(pairs) if split == "test" else (len(pairs) + 1) * len(pairs) // 2
    corrected = f"corrected for {count} comparisons (Holm)"
    if winner:
        return f"Winner on {where}: {winner}, better than each other row, {corrected}."
    if split == "test":
        return f"On test {best} {_not_told(level)}, {corrected}."
    return f"No winner on validation: {best} scores best, but {_not_told(level)}, {corrected}."


def _not_told(level: Sequence[str]) -> str:
    others = level[1:]
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"is not told from {', '.join(others[:_SHOWN])}{more}"


def used_row(board: Scoreboard, rows: Sequence[Row], use: str | None, several: bool) -> str:
    """Return the row whose predictions are kept.

    Args:
        board: the scoreboard.
        rows: of it.
        use: asked for by name.
        several: methods were tried, so the recommended row is kept; else the one that was.

    Raises:
        DataError: there is no such row.
    """
    names = [row.name for row in rows]
    if use is None:
        return board.recommended if several else names[-1]
    if use not in names:
        raise DataError(
            f"there is no row '{printable(use)}' to use{did_you_mean(use, names)}; there are "
            f"{printable(', '.join(names))}"
        )
    return use

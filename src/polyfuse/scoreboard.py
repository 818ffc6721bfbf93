"""The scoreboard: what `leaderboard.json` holds, as text, CSV, markdown, HTML or a DataFrame."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfuse import durable, tables
from polyfuse.errors import RunError, did_you_mean
from polyfuse.metrics import FOR_NUMBERS, LOWER_IS_BETTER, METRICS

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
SPLITS = ("val", "test")
_TITLES = {
    "val": "Validation (choices are made here)",
    "test": "Test (nothing is chosen here)",
}
_SHORT = {
    "string_accuracy": "whole string",
    "character_accuracy": "chars",
    "nll": "NLL",
    "rmse": "RMSE",
    "mae": "MAE",
    "crps": "CRPS",
    "brier": "Brier",
    "f1": "F1",
}


@dataclass(frozen=True)
class Scoreboard:
    """Members and fusions with their scores on validation and on test, never mixed.

    Attributes:
        document: the contents of `leaderboard.json`.

    Example:
        >>> Scoreboard({"best": "mean_probability"}).best
        'mean_probability'
    """

    document: Mapping[str, Any]

    @property
    def best(self) -> str:
        """The row with the best validation score; among equals the one that runs fewer models."""
        return str(self.document["best"])

    @property
    def recommended(self) -> str:
        """The cheapest row that validation does not tell from the best; see `passed_over`."""
        return str(self.document.get("recommended", self.best))  # 0.1 wrote none

    @property
    def passed_over(self) -> Mapping[str, str]:
        """By the name of each row that is not recommended, why it is not."""
        return {row["name"]: row["passed_over"] for row in self.rows if row.get("passed_over")}

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One mapping a member or fusion."""
        rows: Sequence[Mapping[str, Any]] = self.document["rows"]
        return rows

    def row(self, name: str) -> Mapping[str, Any]:
        """Return the row of this name.

        Raises:
            RunError: there is none; the nearest name is suggested.
        """
        for row in self.rows:
            if row["name"] == name:
                return row
        names = [row["name"] for row in self.rows]
        raise RunError(
            f"no row '{name}' on the scoreboard{did_you_mean(name, names)}; "
            f"it has: {', '.join(names)}"
        )

    def splits(self) -> list[str]:
        """Return the splits that are scored: val, and test where its labels are known."""
        return [split for split in SPLITS if split in self.rows[0]]

    def table(self, split: str) -> tables.Table:
        """Return the scores of one split as text cells."""
        metric = self.document["metric"]
        shown = [m for m in self.document["metrics"] if m != metric]
        columns = ["", *(_SHORT.get(m, m) for m in (metric, *shown))]
        columns += ["vs best member", *["out of fold"] * self._tells_out_of_fold(split)]
        columns += self._costs()
        rows = [self._cells(row, split, metric, shown) for row in self.rows]
        bold = frozenset(i for i, row in enumerate(self.rows) if row["name"] == self.best)
        return tables.Table(_TITLES[split], columns, rows, bold)

    def every_table(self) -> list[tables.Table]:
        """Return the scores of each split, and what each step bought where there are steps."""
        steps = self.steps()
        return [*map(self.table, self.splits()), *([] if steps is None else [steps])]

    def steps(self) -> tables.Table | None:
        """Return what each step of a decoding bought; None where there is none."""
        told = self.document.get("steps")
        return _steps(told, self.splits(), self.document["metric"]) if told else None

    def summary(self) -> list[str]:
        """Return what the tables say, in sentences."""
        return _sentences(self.document)

    def to_csv(self) -> str:
        """Return all numbers as CSV, a line a row and split."""
        return tables.comma_separated(*self._flat())

    def to_markdown(self) -> str:
        """Return tables and summary as markdown."""
        parts = [f"### {table.title}\n\n{tables.markdown(table)}" for table in self.every_table()]
        return "\n\n".join([*parts, *self.summary()]) + "\n"

    def to_pandas(self) -> "pandas.DataFrame":
        """Return all numbers as a pandas DataFrame, a line a row and split."""
        return tables.data_frame(*self._flat())

    def __str__(self) -> str:
        """Return the markdown form."""
        return self.to_markdown()

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{line}</p>" for line in map(html.escape, self.summary()))
        return "".join(map(tables.hypertext, self.every_table())) + said

    def _cells(
        self, row: Mapping[str, Any], split: str, metric: str, shown: Sequence[str]
    ) -> list[str]:
        scores = row[split]
        others = [_number(scores[m], m) for m in shown]
        gain = spread(scores["difference"], metric, signed=True)
        if row["name"] == self.document["best_member"]:
            gain = "the best member"
        cost = [_COSTS[name](row.get(name)) for name in self._costs().values()]
        if self._tells_out_of_fold(split):
            told = (row.get("out_of_fold") or {}).get(metric)
            cost.insert(0, _number(None if told is None else {"value": told}, metric))
        return [row["name"], spread(scores[metric], metric), *others, gain, *cost]

    def _tells_out_of_fold(self, split: str) -> bool:
        """Tell whether some members have a score on rows that they did not see and others none."""
        told = {bool(row["out_of_fold"]) for row in self.rows if "out_of_fold" in row}
        return split == "val" and len(told) > 1

    def _costs(self) -> Mapping[str, str]:
        """Return the columns that say what a row costs, and their keys."""
        measured = {"params": "parameters", "ms/img": "milliseconds"}
        counted = {"models": "models", "cost": "cost"}
        known = self.rows[0].keys()
        if "parameters" in known:
            return measured
        return {column: key for column, key in counted.items() if key in known}

    def _flat(self) -> tuple[list[str], list[list[Any]]]:
        metrics = [*self.document["metrics"], "difference"]
        columns = ["name", "kind", "members", "split"]
        columns += [f"{m}{end}" for m in metrics for end in ("", "_low", "_high")]
        columns += ["p", "better", "parameters", "milliseconds", "passed_over"]
        lines: list[list[Any]] = []
        for split in self.splits():
            for row in self.rows:
                scores = [row[split][m] or {} for m in metrics]
                numbers = [s.get(key) for s in scores for key in ("value", "low", "high")]
                head = [row["name"], row["kind"], len(row["members"]), split]
                gain = row[split]["difference"] or {}
                told = [gain.get("p"), gain.get("better")]
                told += [row.get(key) for key in ("parameters", "milliseconds", "passed_over")]
                lines.append([*head, *numbers, *told])
        return columns, lines


def read_scoreboard(path: str | Path) -> Scoreboard:
    """Read the scoreboard of a RUN folder.

    Raises:
        RunError: there is none, or it is damaged.

    Example:
        >>> read_scoreboard("/no/such/run")
        Traceback (most recent call last):
        polyfuse.errors.RunError: cannot read '/no/such/run/leaderboard.json': No such ...
    """
    try:
        document = durable.read_json(Path(path) / "leaderboard.json")
    except RunError as error:
        raise RunError(f"{error}; run the same recipe again to build it") from None
    board = Scoreboard(document)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or not _whole(board):
        raise RunError(
            f"'{path}/leaderboard.json' is no scoreboard of schema {SCHEMA}; "
            "run the same recipe again to rebuild it"
        )
    return board


def _whole(board: Scoreboard) -> bool:
    """Tell whether a document from a file has all that a scoreboard shows."""
    try:
        str(board), board.to_csv(), board.row(board.best)
        return all({"kind", "members"} <= row.keys() for row in board.rows)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration, RunError):
        return False


def _steps(told: Sequence[Mapping[str, Any]], splits: Sequence[str], metric: str) -> tables.Table:
    """Return a line a step: its strength, its gain on each split, and how many answers changed."""
    columns = ["", "strength", *(f"gain, {split}" for split in splits), "changed"]
    rows = [
        [
            _rung(step["name"], step["before"]),
            "-" if step["strength"] is None else f"{step['strength']:g}",
            *(spread(step[split], metric, signed=True) for split in splits),
            f"{step[splits[-1]]['changed']:,}",
        ]
        for step in told
    ]
    bold = frozenset(i for i, step in enumerate(told) if step[splits[-1]]["better"])
    title = f"What each step bought, over the one before ({_SHORT.get(metric, metric)})"
    return tables.Table(title, columns, rows, bold)


def _rung(name: str, before: str) -> str:
    """Return what a step adds to the row before; its name where that row is no part of it."""
    added = name.removeprefix(f"{before}, ")
    return name if added == name else f"+ {added}"


def _sentences(document: Mapping[str, Any]) -> list[str]:
    metric, best = document["metric"], document["best"]
    row = next(r for r in document["rows"] if r["name"] == best)
    lines = []
    if document["members"] < document["expected"]:
        lines.append(
            f"Unfinished: {document['members']} of {document['expected']} members; "
            "run the same command again to go on."
        )
    if best == document["best_member"]:
        lines.append(f"Best on validation: {best}, a single member; no fusion was better.")
    else:
        lines.append(f"Best on validation: {best}. {_verdict(row, document)}")
    if (use := document.get("recommended", best)) != best:
        lines.append(_advice(use, row, document))
    cheap = _best_soup(document)
    if cheap is not None and cheap["name"] != best:
        lines.append(f"Best soup: {cheap['name']}. {_verdict(cheap, document)}")
    lines += document.get("notes", [])  # 0.1 wrote none
    oof = document["out_of_fold"]
    if oof and "together" in oof:
        lines.append(
            f"Together, the members that did not see a row score {spread(oof['together'], metric)} "
            "on training rows: out of bag, or the mean over repeats and models."
        )
    if oof and "test" in oof:
        apart = (
            oof["train"]["low"] > oof["test"]["high"] or oof["train"]["high"] < oof["test"]["low"]
        )
        lines.append(
            f"Honest folds: a member scores {spread(oof['train'], metric)} on training rows that "
            f"it did not see, and {spread(oof['test'], metric)} on test rows; "
            + ("the intervals do not meet: look for a leak." if apart else "the intervals agree.")
        )
    return lines


def _verdict(row: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Say what a row is worth on test, and what it costs."""
    if "test" not in row:
        return "The test labels are unknown."
    gain = row["test"]["difference"]
    verdict = "better" if gain["better"] else "not shown to be better"
    return (
        f"On test it is {verdict} than the best single member ({document['best_member']}): "
        f"{spread(gain, document['metric'], signed=True)}{_points(document['metric'])}, "
        f"at {row.get('models', len(row['members']))} times the inference cost."
    )


def _advice(use: str, best: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Say which row to use where the best is not told from a cheaper one."""
    row = next(r for r in document["rows"] if r["name"] == use)
    known = [key for key in ("cost", "parameters") if row.get(key) and best.get(key)]
    parts = [r[known[0]] if known else r.get("models", len(r["members"])) for r in (best, row)]
    return (
        f"Recommended: {use}. Validation does not tell it from {best['name']}, which costs "
        f"{parts[0] / parts[1]:.3g} times as much."
    )


def _best_soup(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the soup that is best on validation, if it is better there than any member."""
    sign = -1 if document["metric"] in LOWER_IS_BETTER else 1
    soups = [row for row in document["rows"] if row["kind"] == "soup"]
    gains = [(sign * row["val"]["difference"]["value"], row) for row in soups]
    better = [(gain, row) for gain, row in gains if gain > 0]
    return max(better, key=lambda pair: pair[0])[1] if better else None


def _number(score: Mapping[str, float] | None, metric: str) -> str:
    if score is None or score["value"] is None:
        return "-"
    return _written(score["value"], metric, 2 if metric in LOWER_IS_BETTER else 1)


def _written(number: float, metric: str, digits: int, sign: str = "") -> str:
    """Return a number as its metric is read: shares in points, the user's own as they are."""
    if metric in FOR_NUMBERS or metric not in METRICS:
        return f"{number + 0.0:{sign}.4g}"
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    scale = 1 if metric in LOWER_IS_BETTER else 100
    return f"{round(scale * number, digits) + 0.0:{sign}.{digits}f}"


def spread(score: Mapping[str, float] | None, metric: str, *, signed: bool = False) -> str:
    """Return a score or a difference with its interval: in points where the metric is a share.

    Example:
        >>> spread({"value": 0.025, "low": -0.001, "high": 0.05}, "accuracy", signed=True)
        '+2.5 [-0.1, +5.0]'
    """
    if score is None or None in (score["value"], score["low"], score["high"]):
        return "-"
    digits, sign = 3 if metric in LOWER_IS_BETTER else 1, "+" if signed else ""
    value, low, high = (_written(score[k], metric, digits, sign) for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _points(metric: str) -> str:
    return " points" if metric in METRICS and metric not in LOWER_IS_BETTER else ""


def _count(number: int | None) -> str:
    if number is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _milliseconds(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


_COSTS: Mapping[str, Callable[[Any], str]] = {
    "parameters": _count,
    "milliseconds": _milliseconds,
    "models": str,
    "cost": lambda number: f"{number:.4g}",
}

"""Which row to use: the cheapest of those that are not told apart from the best, and why."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from polyfuse.combining.judging import Judge, Judged, Row
from polyfuse.scoreboard import spread
from polyfuse.significance import Pair


class Advice(NamedTuple):
    """What is recommended, and why nothing else is.

    Attributes:
        name: of the recommended row.
        because: why it is.
        passed_over: by row, why it is not.
    """

    name: str
    because: str
    passed_over: Mapping[str, str]


def recommend(rows: Sequence[Row], judged: Judged, how: Judge) -> Advice:
    """Recommend the cheapest row among those that are not told apart from the best.

    Of equally cheap ones the best score decides, then the order of the rows.

    Args:
        rows: of the scoreboard.
        judged: on the split that chooses.
        how: the metric that decides.
    """
    cost = {row.name: row.cost for row in rows}
    level = [name for name in cost if name in judged.verdict.level]
    name = min(level, key=lambda n: (cost[n], -how.sign * judged.values[n]))
    against = {pair.b: pair for pair in judged.verdict.pairs}
    passed = {
        row.name: _passed_over(row.name, name, judged, cost, against.get(row.name), how)
        for row in rows
        if row.name != name
    }
    return Advice(name, _because(name, judged, cost), passed)


def _because(name: str, judged: Judged, cost: Mapping[str, float]) -> str:
    best, winner, level, _ = judged.verdict
    if name == winner:
        return "it is better than every other row"
    if name == best:
        return f"it scores best, and none of the {len(level) - 1} rows that are as good is cheaper"
    return f"it is not told apart from the best ({best}), which costs {_times(cost, best, name)}"


def _passed_over(
    row: str,
    chosen: str,
    judged: Judged,
    cost: Mapping[str, float],
    pair: Pair | None,
    how: Judge,
) -> str:
    best = judged.verdict.best
    if row not in judged.values:
        return f"not scored: {how.metric} needs probabilities, and this decides"
    if row not in judged.verdict.level:
        assert pair is not None
        value, *ends = (how.sign * number for number in pair.difference)
        gap = {"value": value, "low": min(ends), "high": max(ends)}
        return f"worse than {best} by {spread(gap, how.metric)}"
    if cost[row] > cost[chosen]:
        return f"as good, but costs {_times(cost, row, chosen)}"
    return "as good and as cheap, with a " + (
        "higher loss" if how.lower_is_better else "lower score"
    )


def _times(cost: Mapping[str, float], row: str, chosen: str) -> str:
    if not cost[chosen]:
        return f"{cost[row]:.3g} where it costs nothing"
    return f"{cost[row] / cost[chosen]:.3g} times as much"

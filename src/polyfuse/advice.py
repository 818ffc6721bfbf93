"""Which row of a scoreboard to use: the cheapest that validation does not tell from the best."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.metrics import LOWER_IS_BETTER, Score
from polyfuse.scoreboard import spread
from polyfuse.significance import LEVEL, Pair, Verdict, declare_winner


class Advice(NamedTuple):
    """What is recommended, and why nothing else is.

    Attributes:
        recommended: name of the row.
        passed_over: by the name of every other row, why it is not.
    """

    recommended: str
    passed_over: Mapping[str, str]


def advise(
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Score],
    metric: str,
    *,
    best: str,
    replicates: int = 2000,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> Advice:
    """Recommend the cheapest of the rows that are not told apart from the best.

    A row is told from the best where the paired interval excludes zero and p, times the number of
    the other rows, is at most 0.05: so the row that is really best is passed over for a worse score
    once in twenty times at most, whichever it is (Gupta 1965; to declare a winner takes more, see
    `declare_winner`). Cost is the number of parameters that
    run; of models, where a row's parameters are unknown. Measured times do not decide: the same
    members must get the same advice again. Of equally cheap rows the best score decides.

    Args:
        rows: of the scoreboard: `name`, `models`, `parameters`.
        scores: by row, on validation; the same samples.
        metric: its name.
        best: the row that scores best.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        groups: `(n,)` group of each sample.

    Example:
        >>> from polyfuse.metrics import Terms
        >>> row = {"name": "member 0", "models": 1, "parameters": 7}
        >>> scores = {"member 0": Terms(np.ones(3), np.ones(3))}
        >>> advise([row], scores, "accuracy", best="member 0").recommended
        'member 0'
    """
    if len(scores) < 2:
        return Advice(best, {})
    first = {best: scores[best], **scores}  # of equal scores the first is the best
    verdict = declare_winner(
        first,
        lower_is_better=metric in LOWER_IS_BETTER,
        replicates=replicates,
        seed=seed,
        groups=groups,
    )
    return advised(verdict, rows, {name: score.value for name, score in scores.items()}, metric)


def advised(
    verdict: Verdict,
    rows: Sequence[Mapping[str, Any]],
    values: Mapping[str, float],
    metric: str,
    *,
    lower_is_better: bool | None = None,
) -> Advice:
    """Recommend as `advise` does, where the best row was compared with the others already.

    Args:
        verdict: of `declare_winner`.
        rows: of the scoreboard: `name`, `models`, and `cost` or `parameters` where they are known.
        values: by row, its score; rows that cannot be scored are not in.
        metric: its name.
        lower_is_better: of a metric that is not in `METRICS`.

    Example:
        >>> rows = [{"name": "a", "models": 3}, {"name": "b", "models": 1}]
        >>> advised(Verdict("a", None, ("a", "b"), ()), rows, {"a": 0.9, "b": 0.8}, "accuracy")[0]
        'b'
    """
    lower = metric in LOWER_IS_BETTER if lower_is_better is None else lower_is_better
    told = _told(verdict)
    level = [verdict.best, *(n for n in values if n != verdict.best and n not in told)]
    cost = _costs(rows, level)
    sign = 1 if lower else -1
    chosen = min(level, key=lambda name: (cost[name], sign * values[name]))
    passed = {
        name: _why(name, chosen, cost, told.get(name), metric)
        if name in values
        else f"not scored: {metric} needs probabilities, and these are decided classes"
        for name in cost
        if name != chosen
    }
    return Advice(chosen, passed)


def _told(verdict: Verdict) -> dict[str, Pair]:
    """Return the rows that are told from the best, p corrected for the comparisons with it."""
    count = len(verdict.pairs)
    pairs = [pair._replace(corrected=min(1.0, count * pair.p)) for pair in verdict.pairs]
    apart = (pair for pair in pairs if pair.difference.low > 0 or pair.difference.high < 0)
    return {pair.b: pair for pair in apart if pair.corrected <= LEVEL}


def _costs(rows: Sequence[Mapping[str, Any]], level: Sequence[str]) -> dict[str, float]:
    """Return what each row costs, where all that come into question tell it; else its models."""
    among = [row for row in rows if row["name"] in level]
    keys = [k for k in ("cost", "parameters") if all(row.get(k) is not None for row in among)]
    key = [*keys, "models"][0]
    return {row["name"]: row[key] or 0 for row in rows}


def _why(name: str, chosen: str, cost: Mapping[str, float], pair: Pair | None, metric: str) -> str:
    """Say why a row is passed over."""
    if pair is not None:
        value, low, high = pair.difference
        turned = {"value": -value, "low": -high, "high": -low}
        gap = spread(turned, metric, signed=True)
        return f"worse than {pair.a} on validation: {gap}, p = {pair.corrected:.2g}"
    if cost[name] > cost[chosen]:
        times = f"{cost[name] / cost[chosen]:.3g} times" if cost[chosen] else "more than"
        return f"not told from the best, but costs {times} as much as {chosen}"
    return f"costs as much as {chosen}, which scores better, or as well and comes first"

"""Greedy ensemble selection (Caruana et al. 2004): add, with replacement, what helps the mean most.

After the first round a round costs no more than adding each member once (see `running_losses`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError, printable
from polyfuse.fitting import (
    Floats,
    HeldOut,
    Labels,
    error_products,
    held_out,
    held_out_values,
    mean_of_numbers,
    pooled,
)
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import Parameters, one_of
from polyfuse.running_losses import Called, Errors, Members, Nll, Objective, Squares

METRICS = ("nll", "brier", "accuracy", "mse")
TIES = ("first", "nll", "random")
_COARSE = 1e-4  # smaller losses are not rounded
_SAME = 1e-12  # losses that differ by less, relatively, are equal


class Path(NamedTuple):
    """What one search added: members in order, and what was minimised after each."""

    order: Members
    losses: list[float]


@dataclass(kw_only=True, eq=False)
class GreedySelection(Parameters):
    """Weights of members by greedy selection with replacement on held-out rows.

    Each round adds the member whose inclusion in the running mean gives the least loss. Losses
    within 1e-12 of each other are ties: a member that is already in goes first, then `ties`
    decides.

    Args:
        rounds: how many times a member is added, those of the start included.
        metric: "nll", "brier", "accuracy", "mse", or a function of (mean prediction, labels) that
            returns a number, or an object with a `value`.
        higher_is_better: of a function; known of a name.
        start: begin with this many best members; "best" takes as many as score best together.
        keep_best: cut the search back to where its loss was least first.
        bags: repeat on this many random bags of members, and add up how often each was added.
        bag_fraction: share of the members in a bag.
        penalty: loss that a unit of cost is worth; a member's cost counts once.
        budget: the most that the members together may cost.
        ties: "first" takes the first of them, "nll" the least NLL, "random" draws.
        decimals: losses are rounded to so many after the first round, unless they are below 1e-4,
            so that a gain by rounding errors is none; None compares them as they are.
        seed: draws bags and ties.
        uncovered: "error", or "leave_out" for rows that some member has no say on.

    Attributes:
        weights_: `(member,)` float64, counts divided by their sum.
        counts_: how often each member was added.
        order_: members in the order they were added; empty where there are bags.
        path_: the loss (rounded, with the penalty) after each of them.
        score_: of the weighted mean on the fitting rows, in the metric's own direction.
        best_single_: the member that is best alone, among those within the budget. With
            `keep_best` the loss is never worse than this member's (with bags it takes their place
            where it is better).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 3, 90)
        >>> good = np.full((90, 3), 0.1) + 0.7 * np.eye(3)[labels]
        >>> chosen = GreedySelection(rounds=5).fit([good, rng.dirichlet([1, 1, 1], 90)], labels)
        >>> chosen.weights_.tolist(), chosen.order_
        ([1.0, 0.0], (0,))
    """

    rounds: int = 25
    metric: str | Callable[..., Any] = "nll"
    higher_is_better: bool = True
    start: int | str = 0
    keep_best: bool = True
    bags: int = 0
    bag_fraction: float = 0.5
    penalty: float = 0.0
    budget: float | None = None
    ties: str = "first"
    decimals: int | None = 6
    seed: int = 0
    uncovered: str = "error"
    weights_: Floats = field(init=False, repr=False)
    counts_: Labels = field(init=False, repr=False)
    order_: tuple[int, ...] = field(init=False, repr=False)
    path_: tuple[float, ...] = field(init=False, repr=False)
    score_: float = field(init=False, repr=False)
    best_single_: int = field(init=False, repr=False)

    def fit(self, predictions: Any, labels: Any, costs: Any = None, *, trained: Any = None) -> Self:
        """Select on rows that no member trained on.

        Args:
            predictions: `(member, sample, ..., class)` probabilities, or a sequence of members;
                for "mse" `(member, sample, ...)` numbers.
            labels: `(sample, ...)` integers, or numbers.
            costs: `(member,)` parameters, milliseconds, ...: what `penalty` and `budget` count.
            trained: `(member, sample)` booleans, see `leaks.refuse_trained`.

        Raises:
            DataError: what does not fit, all at once; a budget below the cheapest member.
        """
        _check(self)
        refuse_trained(predictions, trained, "this selection")
        check = held_out_values if self.metric == "mse" else held_out
        rows = check(predictions, labels, uncovered=self.uncovered)
        search = _Search(self, rows, _costs(self, costs, len(rows.predictions)))
        self.best_single_ = search.single()
        path = search.bagged() if self.bags else search.climb(search.within_budget())
        self.order_ = () if self.bags else tuple(path.order)
        self.path_ = tuple(path.losses)
        self.counts_ = np.bincount(path.order, minlength=len(rows.predictions))
        self.weights_ = self.counts_ / self.counts_.sum()
        self.score_ = search.score(path.order)
        return self

    def predict_proba(self, predictions: Any) -> Floats:
        """Return the weighted mean probabilities, `(sample, ..., class)` float64.

        Args:
            predictions: of the same members; NaN where a member has no say (see `fitting.pooled`).

        Raises:
            DataError: not fitted, fitted on numbers, other members, or no probabilities.
        """
        counts = self.fitted("counts_")
        if self.metric == "mse":
            raise DataError('metric="mse" fits numbers, which are no probabilities: call predict()')
        # Counts, not weights: sums of whole numbers keep equal classes equal.
        return pooled(predictions, counts.astype(np.float64))

    def predict(self, predictions: Any) -> NDArray[Any]:
        """Return the classes, or for "mse" the weighted mean.

        Raises:
            DataError: see `predict_proba`.
        """
        if self.metric != "mse":
            return np.asarray(self.predict_proba(predictions).argmax(-1))
        return mean_of_numbers(predictions, self.fitted("weights_"))


class _Search:
    """One selection: its objective, costs, and random draws."""

    def __init__(self, asked: GreedySelection, rows: HeldOut, costs: Floats) -> None:
        self.asked, self.rows, self.costs = asked, rows, costs
        self.objective = _objective(asked, rows)
        self.draw = np.random.RandomState(asked.seed)
        tied = asked.ties == "nll"
        self.second: Objective | None = Nll(rows.gathered()) if tied else None

    def within_budget(self) -> Members:
        """Return the members that may be added first.

        Raises:
            DataError: none is cheap enough.
        """
        budget = np.inf if self.asked.budget is None else self.asked.budget
        cheap = np.flatnonzero(self.costs <= budget).tolist()
        if not cheap:
            raise DataError(
                f"budget={budget} is less than the cheapest member costs ({self.costs.min()}); "
                "raise it"
            )
        return cheap

    def single(self) -> int:
        """Return the member that is best alone, the first among equals."""
        among = self.within_budget()
        return among[int(np.argmin(self._alone(among)))]

    def score(self, order: Members) -> float:
        """Return the score of the mean of these, in the metric's own direction."""
        loss = self.objective.of(self._counted(order))
        return 1 - loss if self.asked.metric == "accuracy" else _sign(self.asked) * loss

    def climb(self, among: Members) -> Path:
        """Search among these members."""
        begin = self._begin(among)
        self._reset()
        path, decimals = Path([], []), None
        for number in range(1 if len(among) == 1 else self.asked.rounds):
            used = set(path.order)
            open_to = begin[number : number + 1] or self._affordable(among, used)
            losses = self._charged(self.objective.losses(open_to), open_to, used)
            place = self._pick(_rounded(losses, decimals), open_to, used)
            if number == 0 and abs(losses[place]) > _COARSE:
                decimals = self.asked.decimals
            path.order.append(open_to[place])
            path.losses.append(float(_rounded(losses, decimals)[place]))
            self._add(open_to[place])
        return _best_prefix(path) if self.asked.keep_best else path

    def bagged(self) -> Path:
        """Search each bag and join what they added, or take the best single member if better."""
        among, order = self.within_budget(), Members()
        size = max(1, round(self.asked.bag_fraction * len(among)))
        for _ in range(self.asked.bags):
            bag = np.sort(self.draw.choice(among, size, replace=False)).tolist()
            order += self.climb(bag).order
        single = [self.single()]
        if self.asked.keep_best and self._total(single) < self._total(order):
            order = single
        return Path(order, [self._total(order)])

    def _begin(self, among: Members) -> Members:
        """Return the members to start with, the best first."""
        if self.asked.start == 0:
            return []
        own = self._alone(among)
        afforded = Members()
        for member in (among[i] for i in np.argsort(own, kind="stable")):
            afforded += self._affordable([member], set(afforded))
        if self.asked.start != "best":
            return afforded[: int(self.asked.start)]
        totals = []
        for place, member in enumerate(afforded):
            before = set(afforded[:place])
            totals.append(self._charged(self.objective.losses([member]), [member], before)[0])
            self._add(member)
        return afforded[: int(np.argmin(totals)) + 1]

    def _alone(self, among: Members) -> Floats:
        self._reset()
        return self._charged(self.objective.losses(among), among, set())

    def _affordable(self, among: Members, used: set[int]) -> Members:
        if self.asked.budget is None:
            return among
        left = self.asked.budget - self.costs[sorted(used)].sum()
        return [member for member in among if member in used or self.costs[member] <= left]

    def _charged(self, losses: Floats, among: Members, used: set[int]) -> Floats:
        """Return losses with the penalty for what the members cost together."""
        _finite(losses, among)
        if not self.asked.penalty:
            return losses
        spent = self.costs[sorted(used)].sum()
        new = np.array([0.0 if member in used else self.costs[member] for member in among])
        charged: Floats = losses + self.asked.penalty * (spent + new)
        return charged

    def _pick(self, losses: Floats, among: Members, used: set[int]) -> int:
        """Return the place of the best, ties broken."""
        least = losses.min()
        places = np.flatnonzero(np.abs(losses - least) <= _SAME * abs(least))
        known = [place for place in places if among[place] in used]
        places = np.array(known) if known and len(places) > 1 else places
        if len(places) > 1 and self.second is not None:
            nll = self.second.losses([among[place] for place in places])
            places = places[np.abs(nll - nll.min()) <= _SAME * abs(nll.min())]
        return int(self.draw.choice(places) if self.asked.ties == "random" else places[0])

    def _total(self, order: Members) -> float:
        charge = self.asked.penalty * float(self.costs[sorted(set(order))].sum())
        return self.objective.of(self._counted(order)) + charge

    def _counted(self, order: Members) -> Floats:
        return np.bincount(order, minlength=len(self.costs)).astype(np.float64)

    def _reset(self) -> None:
        for objective in (self.objective, self.second):
            if objective is not None:
                objective.reset()

    def _add(self, member: int) -> None:
        for objective in (self.objective, self.second):
            if objective is not None:
                objective.add(member)


def _best_prefix(path: Path) -> Path:
    cut = int(np.argmin(path.losses)) + 1
    return Path(path.order[:cut], path.losses[:cut])


def _rounded(losses: Floats, decimals: int | None) -> Floats:
    return losses if decimals is None else losses.round(decimals)


def _sign(asked: GreedySelection) -> float:
    """Return -1 where the score is a function and more of it is better, else 1."""
    return -1.0 if callable(asked.metric) and asked.higher_is_better else 1.0


def _objective(asked: GreedySelection, rows: HeldOut) -> Objective:
    if asked.metric == "nll":
        return Nll(rows.gathered())
    if asked.metric == "accuracy":
        return Errors(*rows.flat())
    count = len(rows.predictions)
    if asked.metric == "mse":
        values, targets = rows.predictions.reshape(count, -1), rows.labels.reshape(-1)
        return Squares(error_products(values, targets) / len(targets))
    if asked.metric == "brier":
        p, labels = rows.flat()
        truth = np.eye(p.shape[-1], dtype=p.dtype)[labels].reshape(-1)
        return Squares(error_products(p.reshape(count, -1), truth) / len(labels))
    metric, sign = asked.metric, _sign(asked)
    assert callable(metric)

    def score(mean: NDArray[Any]) -> float:
        said = metric(mean, rows.labels)
        return sign * float(getattr(said, "value", said))

    return Called(rows.normal(), score)


def _costs(asked: GreedySelection, costs: Any, count: int) -> Floats:
    if costs is None:
        if asked.penalty or asked.budget is not None:
            raise DataError("penalty and budget count costs: fit(predictions, labels, costs=[...])")
        return np.zeros(count)
    array = np.asarray(costs, dtype=np.float64)
    if array.shape != (count,) or not (np.isfinite(array) & (array >= 0)).all():
        raise DataError(
            f"costs must be {count} finite numbers, none negative, one a member; got "
            f"{printable(array.tolist())}"
        )
    return array


def _finite(losses: Floats, among: Members) -> None:
    for loss, member in zip(losses, among, strict=True):
        if not np.isfinite(loss):
            raise DataError(
                f"the metric is {loss} with member {member} added; nothing can be compared with "
                "it: return a finite number"
            )


def _check(asked: GreedySelection) -> None:
    if not callable(asked.metric):
        one_of("metric", asked.metric, METRICS)
    one_of("ties", asked.ties, TIES)
    start = asked.start
    rules = {
        f"rounds={asked.rounds} must be at least 1": asked.rounds >= 1,
        f'start={printable(repr(start))} must be a number of members, or "best"': start == "best"
        or (isinstance(start, int) and start >= 0),
        f"bags={asked.bags} must be at least 0": asked.bags >= 0,
        f"bag_fraction={asked.bag_fraction} must be above 0 and at most 1": 0
        < asked.bag_fraction
        <= 1,
        f"penalty={asked.penalty} must be finite and not negative": 0 <= asked.penalty < np.inf,
        "bags and budget do not go together, since the bags' members add up: use penalty": not (
            asked.bags and asked.budget is not None
        ),
        'ties="nll" needs classes, and metric="mse" has none: use ties="first"': not (
            asked.ties == "nll" and asked.metric == "mse"
        ),
    }
    faults = [fault for fault, holds in rules.items() if not holds]
    if faults:
        raise DataError("\n".join(faults))

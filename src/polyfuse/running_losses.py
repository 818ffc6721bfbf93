"""Losses of a running mean of members: what each would be with one more member added.

Sums make this cheap: NLL needs the probability of the true class alone; Brier and squared error the
inner products of the members' errors; accuracy only the rows that one more member can still decide.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from polyfuse.fitting import TINY, Floats, Labels

Members = list[int]
_PRODUCT = 8  # probabilities of 1e-38 that are multiplied before one logarithm, within float64
_NEAR = 1e-3  # a lead that rounding errors could turn


class Objective(Protocol):
    """A loss of the mean of the members added so far."""

    def reset(self) -> None:
        """Forget the members."""

    def losses(self, among: Members) -> Floats:
        """Return the loss with each of these added."""

    def add(self, member: int) -> None:
        """Add a member."""

    def of(self, counts: Floats) -> float:
        """Return the loss of the mean of members that are counted `(member,)` times."""


class RunningSum:
    """What all running sums share."""

    def __init__(self, members: NDArray[Any]) -> None:
        """Take what the members said."""
        self.members = members
        self.sum = np.zeros_like(members[0])
        self.size = 0

    def reset(self) -> None:
        """Forget the members."""
        self.sum = np.zeros_like(self.sum)
        self.size = 0

    def add(self, member: int) -> None:
        """Add a member."""
        self.sum += self.members[member]
        self.size += 1

    def mean(self, counts: Floats) -> NDArray[Any]:
        """Return the mean of members that are counted `(member,)` times."""
        used = np.flatnonzero(counts)
        total = sum(self.members[member] * counts[member] for member in used)
        return np.asarray(total / counts.sum())


class Nll(RunningSum):
    """NLL from `(member, row)` probabilities of the true class."""

    def losses(self, among: Members) -> Floats:
        """Return the loss with each of these added."""
        size, mixed = self.size + 1, np.empty_like(self.sum)
        whole = len(mixed) // _PRODUCT * _PRODUCT
        found = np.empty(len(among))
        for place, member in enumerate(among):
            np.maximum(np.add(self.sum, self.members[member], out=mixed), TINY * size, out=mixed)
            products = np.multiply.reduce(mixed[:whole].reshape(_PRODUCT, -1))
            found[place] = np.log(products).sum() + np.log(mixed[whole:]).sum()
        losses: Floats = np.log(size) - found / len(mixed)
        return losses

    def of(self, counts: Floats) -> float:
        """Return the loss of the mean of members counted so."""
        return -float(np.log(np.maximum(self.mean(counts), TINY)).mean())


class Errors(RunningSum):
    """Share of wrong classes, from `(member, row, class)` probabilities.

    Most rows are decided by bounds. A member adds to the lead of the true class no less than it is
    ahead of the member's own strongest rival, and no more than ahead of the running sum's.
    """

    def __init__(self, members: NDArray[Any], labels: Labels) -> None:
        """Take what the members said."""
        super().__init__(members)
        self.labels, self.index = labels, np.arange(len(labels))
        self.own = members[:, self.index, labels]
        self.least = np.stack([self._rivals(member)[1] for member in members])
        self.most = np.zeros_like(self.least)
        self.rival = np.full(len(labels), -1)
        self._follow()

    def reset(self) -> None:
        """Forget the members."""
        if self.size:
            super().reset()
            self._follow()

    def add(self, member: int) -> None:
        """Add a member."""
        super().add(member)
        self._follow()

    def losses(self, among: Members) -> Floats:
        """Return the loss with each of these added."""
        found = np.empty(len(among))
        for place, member in enumerate(among):
            sure = self.lead + self.least[member] > _NEAR
            open_rows = np.flatnonzero((self.lead + self.most[member] >= -_NEAR) & ~sure)
            mixed = self.members[member].take(open_rows, axis=0)
            mixed += self.sum.take(open_rows, axis=0)
            right = np.count_nonzero(mixed.argmax(-1) == self.labels[open_rows])
            found[place] = right + np.count_nonzero(sure)
        return 1 - found / len(self.labels)

    def of(self, counts: Floats) -> float:
        """Return the loss of the mean of members counted so."""
        return 1 - float((self.mean(counts).argmax(-1) == self.labels).mean())

    def _follow(self) -> None:
        """Renew the lead, and where another class has become the rival, what bounds it."""
        rival, self.lead = self._rivals(self.sum)
        new = np.flatnonzero(rival != self.rival)
        self.most[:, new] = self.own[:, new] - self.members[:, new, rival[new]]
        self.rival = rival

    def _rivals(self, scores: NDArray[Any]) -> tuple[Labels, NDArray[Any]]:
        """Return the strongest class but the true one, and how far the true one is ahead of it."""
        others = scores.copy()
        others[self.index, self.labels] = -np.inf
        rival = others.argmax(-1)
        return rival, scores[self.index, self.labels] - others[self.index, rival]


class Squares:
    """Squared error of the mean, from the inner products of the members' errors."""

    def __init__(self, gram: Floats) -> None:
        """Take what the members said."""
        self.gram, self.own = gram, gram.diagonal()
        self.reset()

    def reset(self) -> None:
        """Forget the members."""
        self.cross, self.square, self.size = np.zeros(len(self.gram)), 0.0, 0

    def losses(self, among: Members) -> Floats:
        """Return the loss with each of these added."""
        found = (self.square + 2 * self.cross[among] + self.own[among]) / (self.size + 1) ** 2
        return np.maximum(found, 0.0)

    def add(self, member: int) -> None:
        """Add a member."""
        self.square += 2 * self.cross[member] + self.own[member]
        self.cross += self.gram[member]
        self.size += 1

    def of(self, counts: Floats) -> float:
        """Return the loss of the mean of members counted so."""
        weights = counts / counts.sum()
        return max(0.0, float(weights @ self.gram @ weights))


class Called(RunningSum):
    """Any function of the mean prediction and the labels, in the rows' own shape."""

    def __init__(self, members: NDArray[Any], score: Callable[[NDArray[Any]], float]) -> None:
        """Take what the members said."""
        super().__init__(members)
        self.score = score

    def losses(self, among: Members) -> Floats:
        """Return the loss with each of these added."""
        means = ((self.sum + self.members[member]) / (self.size + 1) for member in among)
        return np.array([self.score(mean) for mean in means])

    def of(self, counts: Floats) -> float:
        """Return the loss of the mean of members counted so."""
        return self.score(self.mean(counts))

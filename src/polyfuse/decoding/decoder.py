"""Steps of decoding one upon the other, each with a strength that is fitted on labelled rows."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.cross_fitting import cross_fitted
from polyfuse.decoding.base import Evidence, Floats, Labels, Reading, Step
from polyfuse.errors import DataError
from polyfuse.sequences import decode


class Decoder:
    """Steps one upon the other; fitted as `polyfuse.cross_fitting.cross_fitted` has it.

    Args:
        steps: in order.
        blank: the class that means "no character".
        sources: of what is known of the lengths, in the order of the second axis of `inputs`.
        strengths: one a step, where they are fitted already.

    Example:
        >>> from polyfuse.decoding import Lengths
        >>> heads = np.log([[[[0.6, 0.4], [0.3, 0.7]]]])
        >>> decoder = Decoder([Lengths("joint_length", None)], blank=1)
        >>> decoder.fit(heads, np.array([[0, 1]])).strengths
        [0.0]
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        blank: int,
        sources: Sequence[str] = (),
        strengths: Sequence[float] = (),
    ) -> None:
        """Keep the steps."""
        self.steps, self.blank = list(steps), blank
        self.sources, self.strengths = list(sources), list(strengths)

    @property
    def heard(self) -> list[str]:
        """The sources that a step of a strength above 0 listens to."""
        pairs = zip(self.steps, self.strengths, strict=True)
        facts = [step.facts().get("source") for step, strength in pairs if strength]
        return [source for source in self.sources if source in facts]

    def fit(self, predictions: Floats, labels: Labels, *, inputs: Floats | None = None) -> Self:
        """Choose the strength of each step upon those before it.

        Args:
            predictions: `(1, n, positions, classes)` log-probabilities of the pooled heads.
            labels: `(n, positions)`.
            inputs: `(n, source, positions + 1)` log-probabilities of the lengths.
        """
        reading, evidence = Reading(predictions[0], self.blank), self._evidence(inputs)
        truth, self.strengths = decode(labels, blank=self.blank), []
        for step in self.steps:
            strength = _chosen(step, reading, evidence, truth)
            self.strengths.append(strength)
            reading = step.apply(reading, strength, evidence) if strength else reading
        return self

    def predict(self, predictions: Floats, *, inputs: Floats | None = None) -> Labels:
        """Return the strings after each step, `(n, step, positions)` int64."""
        reading, evidence = Reading(predictions[0], self.blank), self._evidence(inputs)
        said = [reading.strings()]
        for step, strength in zip(self.steps, self.strengths, strict=True):
            if strength:
                reading = step.apply(reading, strength, evidence)
            said.append(reading.strings() if strength else said[-1])
        return np.stack(said[1:], 1)

    def _evidence(self, inputs: Floats | None) -> Evidence:
        if inputs is None:
            return {}
        return {source: inputs[:, place] for place, source in enumerate(self.sources)}


class Decoded(NamedTuple):
    """Steps that are fitted.

    Attributes:
        decoder: fitted on all rows.
        strings: `(n, step, positions)`, each row as read by a fit that did not see it.
    """

    decoder: Decoder
    strings: Labels


def fit_decoder(
    decoder: Decoder,
    heads: Floats,
    labels: Labels,
    *,
    inputs: Floats,
    groups: NDArray[np.int64] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Decoded:
    """Fit steps on labelled rows, and read each of these by a fit without it.

    Args:
        decoder: fitted in place.
        heads: `(n, positions, classes)` log-probabilities.
        labels: `(n, positions)`.
        inputs: `(n, source, positions + 1)`.
        groups: `(n,)`; a group is never cut.
        folds: of cross-fitting; as many as there are rows or groups, where those are fewer.
        seed: shuffles rows into folds.

    Raises:
        DataError: labels of another shape, or fewer than two rows or groups.

    Example:
        >>> from polyfuse.decoding import Lengths
        >>> heads = np.log(np.tile([[[0.6, 0.4], [0.3, 0.7]]], (4, 1, 1)))
        >>> decoder = Decoder([Lengths("joint_length", None)], blank=1)
        >>> labels, inputs = np.tile([[0, 1]], (4, 1)), np.zeros((4, 0, 3))
        >>> fit_decoder(decoder, heads, labels, inputs=inputs).strings.shape
        (4, 1, 2)
    """
    if heads.shape[:2] != labels.shape:
        raise DataError(
            f"heads of shape {heads.shape} do not fit labels of shape {labels.shape}; bring one "
            "label a head"
        )
    units = len(labels) if groups is None else len(np.unique(groups))
    said = cross_fitted(
        lambda: Decoder(decoder.steps, blank=decoder.blank, sources=decoder.sources),
        heads[None],
        labels,
        folds=min(folds, units),
        groups=groups,
        seed=seed,
        inputs=inputs,
        method="predict",
    )
    return Decoded(decoder.fit(heads[None], labels, inputs=inputs), said.astype(np.int64))


def _chosen(step: Step, reading: Reading, evidence: Evidence, truth: Labels) -> float:
    """Return a step's strength: of those that set most strings right, the weakest.

    Noise sets some right and spoils others, by the fall of coins, of which n differ from heads by
    the square root of n as a rule: a strength is not taken before it gains twice as much.
    """
    rivals = [_right(rival, truth) for rival in step.rivals(reading)]
    best, gain = 0.0, -1 if step.rule else 0
    for strength in step.grid[1:]:
        after = _right(step.apply(reading, strength, evidence), truth)
        gains = [_gain(before, after, told=step.rule) for before in rivals]
        if min(gains) > gain:
            best, gain = strength, min(gains)
    return best


def _gain(before: NDArray[np.bool_], after: NDArray[np.bool_], *, told: bool) -> int:
    """Return how many strings more are right; no more than 0 where that may be by chance."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    sure = told or (won - lost) ** 2 > 4 * (won + lost)
    return won - lost if sure else min(won - lost, 0)


def _right(reading: Reading, truth: Labels) -> NDArray[np.bool_]:
    return np.asarray((reading.strings() == truth).all(-1))

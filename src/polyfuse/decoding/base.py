"""How strings are read off pooled heads, and what a step of decoding is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from polyfuse.sequences import DIGITS, decode, forbid, joint_decode, lexicon

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Evidence = Mapping[str, Floats]  # by source, (n, positions + 1) log-probabilities of the lengths


@dataclass(frozen=True)
class Reading:
    """How strings are read off pooled heads.

    Attributes:
        heads: `(n, positions, classes)` log-probabilities.
        blank: the class that means "no character".
        lengths: `(n, positions + 1)` what speaks for each length, in nats; None: a string ends at
            the first blank.
        words: `(words, positions)` a lexicon, or None.
        favour: what a word scores more than another string, in nats.
        patterns: that no string matches, as `polyfuse.sequences.forbid` takes them.
        alphabet: its character c is what class c is written as.

    Example:
        >>> heads = np.log([[[0.6, 0.4], [0.3, 0.7]]])
        >>> Reading(heads, blank=1).strings().tolist()
        [[0, 1]]
    """

    heads: Floats
    blank: int
    lengths: Floats | None = None
    words: Labels | None = None
    favour: float = 0.0
    patterns: tuple[str, ...] = ()
    alphabet: str = DIGITS

    def strings(self) -> Labels:
        """Return the strings, `(n, positions)`, blank from their end on."""
        read = self._free()
        if self.words is not None:
            read = lexicon(
                read,
                self.heads,
                self.words,
                blank=self.blank,
                strength=self.favour,
                lengths=self.lengths,
            )
        if not self.patterns:
            return read
        return forbid(
            read,
            self.heads,
            self.patterns,
            blank=self.blank,
            alphabet=self.alphabet,
            lengths=self.lengths,
        )

    def hearing(self, evidence: Floats) -> "Reading":
        """Return the same where more speaks for the lengths, in nats."""
        lengths = np.zeros(1) if self.lengths is None else self.lengths
        shape = (len(self.heads), self.heads.shape[1] + 1)
        return replace(self, lengths=np.broadcast_to(lengths + evidence, shape))

    def jointly(self) -> "Reading":
        """Return the same with the length decided jointly, by the heads alone if by nothing yet."""
        return self.hearing(np.zeros(1))

    def _free(self) -> Labels:
        if self.lengths is None:
            return decode(self.heads, blank=self.blank)
        return joint_decode(self.heads, self.lengths, blank=self.blank)


class Step(Protocol):
    """One step of decoding: it changes how strings are read."""

    @property
    def name(self) -> str: ...  # noqa: D102  # of the step, as a recipe has it

    @property
    def grid(self) -> tuple[float, ...]:
        """Strengths to choose from; the first one is 0, which leaves the step out."""
        ...

    @property
    def rule(self) -> bool:
        """Whether it is the user's word, kept unless it does harm."""
        ...

    def rivals(self, reading: Reading) -> list[Reading]:
        """Return the readings that it must be better than: without it, and perhaps more."""
        ...

    def apply(self, reading: Reading, strength: float, evidence: Evidence) -> Reading:
        """Return how strings are read with this strength, above 0."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what it is made of, as JSON has it."""
        ...

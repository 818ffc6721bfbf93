"""The steps of decoding: lengths, priors of training labels, a lexicon, forbidden patterns."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyfuse.decoding.base import Evidence, Floats, Labels, Reading
from polyfuse.sequences import DIGITS, STRENGTHS, apply_prior

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
FAVOURS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 1000.0)  # nats; with the last one nothing else is left
SWITCH = (0.0, 1.0)
JOINT = "joint_length"


@dataclass(frozen=True)
class Lengths:
    """Joint decoding of characters and length (Goodfellow et al. 2013), the length weighted.

    Attributes:
        name: of the step.
        source: of what is known of the length; None: the character heads alone decide.

    Example:
        >>> Lengths("joint_length", None).grid
        (0.0, 1.0)
    """

    name: str
    source: str | None
    rule: bool = False

    @property
    def grid(self) -> tuple[float, ...]:
        """Weights of the length against the characters; of the heads alone there is none."""
        return SWITCH if self.source is None else WEIGHTS

    def rivals(self, reading: Reading) -> list[Reading]:
        """Return the reading without it; of another run, also joint decoding by the heads alone."""
        return [reading] if self.name == JOINT else [reading, reading.jointly()]

    def apply(self, reading: Reading, strength: float, evidence: Evidence) -> Reading:
        """Return the reading that hears what is known of the length, too."""
        said = np.zeros(1) if self.source is None else strength * evidence[self.source]
        return reading.hearing(said)

    def facts(self) -> dict[str, Any]:
        """Return the source."""
        return {"source": self.source}


@dataclass(frozen=True)
class PositionPrior:
    """What is frequent at each position among the training labels, as a Bayesian prior.

    Attributes:
        log_prior: `(positions, classes)`.

    Example:
        >>> PositionPrior(np.zeros((2, 3))).name
        'position_prior'
    """

    log_prior: Floats
    name: str = "position_prior"
    grid: tuple[float, ...] = STRENGTHS
    rule: bool = False

    def rivals(self, reading: Reading) -> list[Reading]:
        """Return the reading without it."""
        return [reading]

    def apply(self, reading: Reading, strength: float, evidence: Evidence) -> Reading:
        """Return the reading whose heads know the prior."""
        return replace(reading, heads=apply_prior(reading.heads, self.log_prior, strength))

    def facts(self) -> dict[str, Any]:
        """Return the prior."""
        return {"log_prior": self.log_prior.tolist()}


@dataclass(frozen=True)
class LengthPrior:
    """How frequent each length is among the training labels; the length is decided jointly.

    Attributes:
        log_prior: `(positions + 1,)`.

    Example:
        >>> LengthPrior(np.zeros(3)).name
        'length_prior'
    """

    log_prior: Floats
    name: str = "length_prior"
    grid: tuple[float, ...] = STRENGTHS
    rule: bool = False

    def rivals(self, reading: Reading) -> list[Reading]:
        """Return the reading without it, and joint decoding: that gain is not the prior's."""
        return [reading, reading.jointly()]

    def apply(self, reading: Reading, strength: float, evidence: Evidence) -> Reading:
        """Return the reading that hears the prior, too."""
        return reading.hearing(strength * self.log_prior)

    def facts(self) -> dict[str, Any]:
        """Return the prior."""
        return {"log_prior": self.log_prior.tolist()}


@dataclass(frozen=True)
class Lexicon:
    """Words that strings are likely to be.

    Attributes:
        words: `(words, positions)`.

    Example:
        >>> Lexicon(np.array([[1, 2]])).grid[:2]
        (0.0, 0.5)
    """

    words: Labels
    name: str = "lexicon"
    grid: tuple[float, ...] = FAVOURS
    rule: bool = False

    def rivals(self, reading: Reading) -> list[Reading]:
        """Return the reading without it."""
        return [reading]

    def apply(self, reading: Reading, strength: float, evidence: Evidence) -> Reading:
        """Return the reading that favours these words."""
        return replace(reading, words=self.words, favour=strength)

    def facts(self) -> dict[str, Any]:
        """Return the words."""
        return {"words": self.words.tolist()}


@dataclass(frozen=True)
class Forbid:
    """Patterns that no string matches, such as a leading zero: a rule, not a guess.

    Attributes:
        patterns: as `polyfuse.sequences.forbid` takes them.
        alphabet: its character c is what class c is written as.

    Example:
        >>> Forbid(("0?*",)).rule
        True
    """

    patterns: tuple[str, ...]
    alphabet: str = DIGITS
    name: str = "forbid"
    grid: tuple[float, ...] = SWITCH
    rule: bool = True

    def rivals(self, reading: Reading) -> list[Reading]:
        """Return the reading without it."""
        return [reading]

    def apply(self, reading: Reading, strength: float, evidence: Evidence) -> Reading:
        """Return the reading without such strings."""
        return replace(reading, patterns=self.patterns, alphabet=self.alphabet)

    def facts(self) -> dict[str, Any]:
        """Return the patterns."""
        return {"patterns": list(self.patterns), "alphabet": self.alphabet}

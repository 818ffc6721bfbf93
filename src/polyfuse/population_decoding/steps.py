"""The steps of a decoding, made of what a population and the user's files know."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polyfuse import durable
from polyfuse.decoding import Forbid, LengthPrior, Lengths, Lexicon, PositionPrior, Step
from polyfuse.errors import DataError, printable
from polyfuse.population import Population
from polyfuse.population_decoding.base import Pooled
from polyfuse.population_lengths import HEAD, MODEL
from polyfuse.sequences import DIGITS, Labels, decode, encode, length_prior, position_prior

LARGEST = 1 << 22  # bytes of a lexicon


def step_of(population: Population, name: str, options: Mapping[str, Any], val: Pooled) -> Step:
    """Return a step, of what is known without the labels that it is fitted on.

    Args:
        population: whose training labels priors are estimated on.
        name: of the step.
        options: of it, as a recipe has them.
        val: what the members say of validation.

    Raises:
        DataError: the labels of train are unknown; a lexicon that does not fit.
        RunError: no such lexicon.

    Example:
        >>> step_of.__name__
        'step_of'
    """
    return _STEPS[name](population, options, val)


def read_lexicon(path: str | Path, *, positions: int, blank: int, alphabet: str = DIGITS) -> Labels:
    """Read a lexicon: UTF-8 text, one string a line.

    Args:
        path: of the file.
        positions: the longest length.
        blank: the class that means "no character".
        alphabet: its character c becomes class c.

    Returns:
        `(word, positions)` int64 labels, each word once.

    Raises:
        DataError: no text, no words, characters that are not in the alphabet, strings too long.
        RunError: no such file, or more than 4 MiB of it.

    Example:
        >>> read_lexicon("/no/such/words.txt", positions=4, blank=10)
        Traceback (most recent call last):
        polyfuse.errors.RunError: cannot read '/no/such/words.txt': No such file or directory
    """
    raw = durable.read_bytes(Path(path), limit=LARGEST)
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{printable(path)}' is not UTF-8 text ({error.reason})") from None
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise DataError(f"'{printable(path)}' has no words; write one string a line")
    try:
        return encode(words, positions=positions, blank=blank, alphabet=alphabet)
    except DataError as error:
        raise DataError(f"'{printable(path)}': {error}") from None


def _labels(population: Population) -> Labels:
    """Return the training labels, each blank from its end on."""
    labels = population.labels("train")
    if labels is None:
        raise DataError("the labels of train are unknown, and a prior is estimated on them")
    return decode(labels, blank=population.index["blank"])


def _position_prior(population: Population, options: Mapping[str, Any], said: Pooled) -> Step:
    classes = said.heads.shape[2]
    return PositionPrior(position_prior(_labels(population), classes=classes, **options))


def _length_prior(population: Population, options: Mapping[str, Any], said: Pooled) -> Step:
    blank = population.index["blank"]
    return LengthPrior(length_prior(_labels(population), blank=blank, **options))


def _lexicon(population: Population, options: Mapping[str, Any], said: Pooled) -> Step:
    blank, alphabet = population.index["blank"], population.alphabet
    positions = said.heads.shape[1]
    words = read_lexicon(options["path"], positions=positions, blank=blank, alphabet=alphabet)
    return Lexicon(words)


def _forbid(population: Population, options: Mapping[str, Any], said: Pooled) -> Step:
    return Forbid(tuple(options["patterns"]), population.alphabet)


_STEPS: dict[str, Callable[[Population, Mapping[str, Any], Pooled], Step]] = {
    "joint_length": lambda _, __, said: Lengths(
        "joint_length", HEAD if HEAD in said.known else None
    ),
    "length_model": lambda _, __, said: Lengths("length_model", MODEL),
    "position_prior": _position_prior,
    "length_prior": _length_prior,
    "lexicon": _lexicon,
    "forbid": _forbid,
}

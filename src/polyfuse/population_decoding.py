"""Decode a population's strings step by step, each step a fusion that stands on the one before.

The first step stands on the mean probability of the members, with averaged weights and with views
where that is asked for. Steps are fitted on validation, never on test; on validation, each row is
read by a fit that did not see it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyfuse import durable
from polyfuse.decoding import (
    Decoder,
    Forbid,
    LengthPrior,
    Lengths,
    Lexicon,
    PositionPrior,
    Step,
    decoder_from,
    document_of,
    fit_decoder,
)
from polyfuse.errors import DataError, printable
from polyfuse.inference import Heads
from polyfuse.members import with_average
from polyfuse.population import FITTED, Population, write_fusion
from polyfuse.population_lengths import HEAD, MODEL, Floats, LengthRun, logarithm, pooled
from polyfuse.population_views import (
    chosen_views,
    lengths_with_views,
    stack_with_views,
    with_views,
)
from polyfuse.sequences import DIGITS, decode, encode, length_prior, position_prior
from polyfuse.tasks import CLASSES, mean_of

MEAN = "mean_probability"
LARGEST = 1 << 24  # bytes of a lexicon
SPLITS = ("val", "test")


class Asked(NamedTuple):
    """What a decoding is to be made of.

    Attributes:
        steps: (name, options) of each, in order.
        average: whose weights the members have; their own where None.
        tta: whether views are merged first.
    """

    steps: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    average: str | None = None
    tta: bool = False

    @property
    def above(self) -> list[str]:
        """The rows that the first step stands on, the last one directly."""
        names = [MEAN, *([with_average(MEAN, self.average)] if self.average else [])]
        return [*names, with_views(names[-1])] if self.tta else names

    @property
    def rows(self) -> list[str]:
        """The rows that are made."""
        return [row_name(name) for name, _ in self.steps]


class Pooled(NamedTuple):
    """What the members say of rows, together.

    Attributes:
        heads: `(n, positions, classes)` log-probabilities.
        known: by source, `(n, positions + 1)` log-probabilities of the lengths.
    """

    heads: Floats
    known: Mapping[str, Floats]

    def inputs(self, sources: Sequence[str]) -> Floats:
        """Return what is known of the lengths as a decoder takes it, `(n, source, lengths)`."""
        rows, positions, _ = self.heads.shape
        found = np.zeros((rows, len(sources), positions + 1))  # 0 of what is not known
        for place, source in enumerate(sources):
            found[:, place] = self.known.get(source, 0)
        return found


def row_name(step: str) -> str:
    """Return what the row of a step is called.

    Example:
        >>> row_name("joint_length")
        '+ joint_length'
    """
    return f"+ {step}"


def make_decoding(population: Population, asked: Asked, *, seed: int = 0) -> None:
    """Fit the steps and keep the row of each in `fusions/+ STEP/`.

    Args:
        population: all its members are trained.
        asked: what is to be made.
        seed: deals rows into folds.

    Raises:
        DataError: labels that are no strings or unknown, a lexicon or length run that does not fit.
        RunError: no average or views are kept, or another run is damaged.

    Example:
        >>> make_decoding.__name__
        'make_decoding'
    """
    labels, blank = population.labels("val"), population.index["blank"]
    if blank is None or labels is None:
        raise DataError("decoding needs strings, with a blank class, and the labels of val")
    runs = {name: LengthRun(o["run"]) for name, o in asked.steps if name == MODEL}
    said = {split: _pooled(population, asked, runs, split) for split in SPLITS}
    steps = [_STEPS[name](population, options, said["val"]) for name, options in asked.steps]
    decoder = Decoder(steps, blank=blank, sources=list(said["val"].known))
    inputs = {split: said[split].inputs(decoder.sources) for split in SPLITS}
    found = fit_decoder(
        decoder,
        said["val"].heads,
        labels,
        inputs=inputs["val"],
        groups=population.groups("val"),
        seed=seed,
    )
    test = decoder.predict(said["test"].heads[None], inputs=inputs["test"])
    prints = {name: run.population.fingerprint() for name, run in runs.items()}
    chosen = chosen_views(population) if asked.tta else None
    views = {"views": len(chosen.kept)} if chosen else {}
    for place, name in enumerate(asked.rows):
        answers = {"val": found.strings[:, place], "test": test[:, place]}
        facts = {
            "place": place,
            "above": asked.above,
            "strength": decoder.strengths[place],
            "runs": prints,
        }
        write_fusion(
            population,
            name,
            [member.index for member in speakers(population, asked.average, tta=asked.tta).members],
            answers,
            fit=document_of(decoder, place + 1),
            facts={"kind": FITTED, "average": asked.average, **views, "decoding": facts},
        )


def speakers(population: Population, average: str | None, *, tta: bool) -> Population:
    """Return the members that are fused; those that were added have no averages and no views.

    Example:
        >>> speakers(Population(Path("RUN"), ()), None, tta=False).members
        ()
    """
    if average is not None:
        return population.averaged(average).for_fusions
    return (population.trained_here if tta else population).for_fusions


def decoded(population: Population, name: str, said: Pooled) -> Any:
    """Return how the row of a step reads new rows.

    Args:
        population: that keeps it.
        name: of the row.
        said: what the members say of the new rows.

    Returns:
        `(n, positions)` int64.

    Raises:
        RunError: there is no such row, or it is damaged.

    Example:
        >>> decoded.__name__
        'decoded'
    """
    decoder = decoder_from(population.fit(name))
    known = {source: said.known[source] for source in decoder.heard}
    inputs = Pooled(said.heads, known).inputs(decoder.sources)
    return decoder.predict(said.heads[None], inputs=inputs)[:, -1]


def is_decoded(population: Population, name: str) -> bool:
    """Tell whether a fusion that is kept is a step of a decoding.

    Example:
        >>> is_decoded.__name__
        'is_decoded'
    """
    return "decoding" in population.fusion(name)


def length_run_of(population: Population, name: str) -> str | None:
    """Return the fingerprint of the run by which the row of a step knows lengths, if it does.

    Example:
        >>> length_run_of.__name__
        'length_run_of'
    """
    decoder = decoder_from(population.fit(name))
    runs: Mapping[str, str] = population.fusion(name)["decoding"]["runs"]
    return runs[MODEL] if MODEL in decoder.heard else None


def positions_of(population: Population) -> int:
    """Return the length of the longest string that members can say.

    Example:
        >>> positions_of.__name__
        'positions_of'
    """
    return int(population.members[0].predictions("val").shape[1])


def pooled_heads(said: list[Heads], length_run: Floats | None) -> Pooled:
    """Return what members say together.

    Args:
        said: of each member.
        length_run: what a run of its own says of the lengths, `(n, positions + 1)`
            log-probabilities, or None.

    Example:
        >>> pooled_heads([Heads(np.zeros((1, 2, 3), np.float32), None)], None).heads.shape
        (1, 2, 3)
    """
    told = [heads.lengths for heads in said if heads.lengths is not None]
    known = {HEAD: pooled(np.stack(told))} if told else {}
    known |= {} if length_run is None else {MODEL: length_run}
    outputs = np.stack([heads.characters for heads in said])
    return Pooled(logarithm(mean_of(CLASSES, outputs)), known)


def read_lexicon(path: str | Path, *, positions: int, alphabet: str = DIGITS) -> Any:
    """Read a lexicon: UTF-8 text, one string a line.

    Args:
        path: of the file.
        positions: the longest length.
        alphabet: its character c becomes class c.

    Returns:
        `(word, positions)` int64 labels, each word once.

    Raises:
        DataError: no text, no words, characters that are not in the alphabet, strings too long.
        RunError: no such file, or more than 16 MiB of it.

    Example:
        >>> read_lexicon("/no/such/words.txt", positions=4)
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
        return encode(words, positions=positions, alphabet=alphabet)
    except DataError as error:
        raise DataError(f"'{printable(path)}': {error}") from None


def _pooled(
    population: Population, asked: Asked, runs: Mapping[str, LengthRun], split: str
) -> Pooled:
    """Return what the members say of a split, and what a run of its own says of its lengths."""
    members = speakers(population, asked.average, tta=asked.tta)
    outputs = stack_with_views(members, split) if asked.tta else members.stack(split)
    heard = lengths_with_views(members, split) if asked.tta else members.lengths(split)
    known = {} if heard is None else {HEAD: pooled(heard)}
    for name, run in runs.items():
        labels, names = population.labels(split), population.names(split)
        if fault := run.faults(split, names, labels, population.index["blank"]):
            raise DataError(f"'{printable(run.path)}' is a run of other rows: {fault}")
        known[name] = run.said(split, names, outputs.shape[2])
    return Pooled(logarithm(mean_of(CLASSES, outputs)), known)


def alphabet_of(population: Population) -> str:
    """Return the alphabet that strings of a population are written in.

    Example:
        >>> alphabet_of.__name__
        'alphabet_of'
    """
    return str(population.index.get("alphabet", DIGITS))


def _labels(population: Population) -> Any:
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
    positions = said.heads.shape[1]
    alphabet = alphabet_of(population)
    return Lexicon(read_lexicon(options["path"], positions=positions, alphabet=alphabet))


def _forbid(population: Population, options: Mapping[str, Any], said: Pooled) -> Step:
    return Forbid(tuple(options["patterns"]), alphabet_of(population))


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

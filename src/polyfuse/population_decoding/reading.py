"""Read new rows as a step of a decoding does."""

from collections.abc import Mapping, Sequence

import numpy as np

from polyfuse.decoding import decoder_from
from polyfuse.errors import RunError, printable
from polyfuse.inference import Heads
from polyfuse.population import Population
from polyfuse.population_decoding.base import Pooled
from polyfuse.population_lengths import HEAD, MODEL, Floats, logarithm, pooled
from polyfuse.sequences import Labels
from polyfuse.tasks import CLASSES, mean_of


def decoded(population: Population, name: str, said: Pooled) -> Labels:
    """Return how the row of a step reads new rows.

    Args:
        population: that keeps it.
        name: of the row.
        said: what the members say of the new rows.

    Returns:
        `(n, positions)` int64.

    Raises:
        RunError: there is no such row, it is damaged, or knows lengths by what is not there.

    Example:
        >>> decoded.__name__
        'decoded'
    """
    decoder = decoder_from(population.fit(name))
    if missing := [source for source in decoder.heard if source not in said.known]:
        raise RunError(
            f"'{printable(name)}' knows lengths by {printable(', '.join(missing))}, and these "
            "models say nothing of it; name the recipe that its members were trained with"
        )
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
    return runs.get(MODEL, "") if MODEL in decoder.heard else None


def positions_of(population: Population) -> int:
    """Return the length of the longest string that members can say.

    Example:
        >>> positions_of.__name__
        'positions_of'
    """
    return int(population.members[0].predictions("val").shape[1])


def pooled_heads(said: Sequence[Heads], length_run: Floats | None) -> Pooled:
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

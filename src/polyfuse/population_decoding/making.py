"""Fit the steps of a decoding and keep each as a fusion that stands on the one before."""

from collections.abc import Mapping
from typing import Any

from polyfuse.decoding import Decoder, document_of, fit_decoder
from polyfuse.errors import DataError, printable
from polyfuse.population import FITTED, Population, write_fusion
from polyfuse.population_decoding.base import Asked, Pooled
from polyfuse.population_decoding.steps import step_of
from polyfuse.population_lengths import HEAD, MODEL, LengthRun, logarithm, pooled
from polyfuse.population_views import chosen_views, lengths_with_views, stack_with_views
from polyfuse.tasks import CLASSES, mean_of

SPLITS = ("val", "test")


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
    labels = population.labels("val")
    if population.index["blank"] is None or labels is None:
        raise DataError("decoding needs strings, with a blank class, and the labels of val")
    runs = {name: LengthRun(options["run"]) for name, options in asked.steps if name == MODEL}
    said = {split: _pooled(population, asked, runs, split) for split in SPLITS}
    decoder = _decoder(population, asked, said["val"])
    inputs = {split: said[split].inputs(decoder.sources) for split in SPLITS}
    outside = fit_decoder(
        decoder,
        said["val"].heads,
        labels,
        inputs=inputs["val"],
        groups=population.groups("val"),
        seed=seed,
    ).strings
    read = decoder.predict(said["test"].heads[None], inputs=inputs["test"])
    facts = _facts(population, asked, runs)
    for place in range(len(asked.steps)):
        answers = {"val": outside[:, place], "test": read[:, place]}
        _keep(population, asked, place, answers, decoder, facts)


def _decoder(population: Population, asked: Asked, val: Pooled) -> Decoder:
    """Return the steps, not fitted yet."""
    steps = [step_of(population, name, options, val) for name, options in asked.steps]
    return Decoder(steps, blank=population.index["blank"], sources=list(val.known))


def _facts(population: Population, asked: Asked, runs: Mapping[str, LengthRun]) -> dict[str, Any]:
    """Return what the record of each step says: weights, views, what it stands on."""
    chosen = chosen_views(population) if asked.tta else None
    prints = {name: run.population.fingerprint() for name, run in runs.items()}
    return {
        "kind": FITTED,
        "average": asked.average,
        **({"views": len(chosen.kept)} if chosen else {}),
        "decoding": {"above": asked.above, "runs": prints},
    }


def _keep(
    population: Population,
    asked: Asked,
    place: int,
    answers: Mapping[str, Any],
    decoder: Decoder,
    facts: Mapping[str, Any],
) -> None:
    """Keep one step with all those before it."""
    own = {"place": place, "strength": decoder.strengths[place], **facts["decoding"]}
    members = speakers(population, asked.average, tta=asked.tta).members
    write_fusion(
        population,
        asked.rows[place],
        [member.index for member in members],
        answers,
        fit=document_of(decoder, place + 1),
        facts={**facts, "decoding": own},
    )


def speakers(population: Population, average: str | None, *, tta: bool) -> Population:
    """Return the members that are fused; those that were added have no averages and no views.

    Example:
        >>> from pathlib import Path
        >>> speakers(Population(Path("RUN"), ()), None, tta=False).members
        ()
    """
    if average is not None:
        return population.averaged(average).for_fusions
    return (population.trained_here if tta else population).for_fusions


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

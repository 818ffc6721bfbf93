"""What each step of a ladder of rows bought: its gain over the step before, on each split."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from polyfuse.errors import RunError, printable
from polyfuse.metrics import Score, replicate_scores
from polyfuse.population import Population
from polyfuse.row_scores import Scores, deciding
from polyfuse.sequences import decode
from polyfuse.significance import LEVEL, Pair, compare_pairs, holm

Facts = Mapping[str, Any]


def steps_of(population: Population) -> list[Facts]:
    """Return the records of the decoding that was fitted on the members of now, first step first.

    Raises:
        RunError: a record that is damaged.

    Example:
        >>> steps_of.__name__
        'steps_of'
    """
    kept = [population.fusion(name) for name, now in population.fits.items() if now]
    steps = [record for record in kept if "decoding" in record]
    for record in steps:
        if not _is_step(record["decoding"]):
            raise RunError(
                f"'{printable(population.path)}/fusions/{printable(record.get('name'))}' is no "
                "record of a decoding; delete the folder and run the same command again"
            )
    return sorted(steps, key=lambda record: int(record["decoding"]["place"]))


def _is_step(facts: Any) -> bool:
    """Tell whether a document from a file says which step of a decoding a fusion is."""
    if not isinstance(facts, dict) or not isinstance(facts.get("above"), list):
        return False
    above, runs = facts["above"], facts.get("runs")
    return (
        type(facts.get("place")) is int
        and isinstance(facts.get("strength"), int | float)
        and bool(above)
        and all(isinstance(name, str) for name in above)
        and isinstance(runs, dict)
        and all(isinstance(value, str) for value in runs.values())
    )


def ladder_of(steps: Sequence[Facts]) -> list[str]:
    """Return the names of all rungs: the rows that the first step stands on, and the steps.

    Example:
        >>> ladder_of([{"name": "+ forbid", "decoding": {"above": ["mean_probability"]}}])
        ['mean_probability', '+ forbid']
    """
    if not steps:
        return []
    return [*steps[0]["decoding"]["above"], *(step["name"] for step in steps)]


def climbed(
    population: Population,
    steps: Sequence[Facts],
    scored: Mapping[str, Scores],
    said: Mapping[str, Mapping[str, NDArray[Any]]],
    document: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Compare each rung with the one before; the first with the best member.

    The rungs of a split are corrected together (Holm), as the rows of a scoreboard are.

    Args:
        population: whose rows they are.
        steps: of its decoding, see `steps_of`.
        scored: by split, the rows' scores.
        said: by row and split, what it answers.
        document: `interval`, `metric` and `best_member` of the scoreboard.

    Returns:
        A rung each: `name`, `before`, `strength` (None of those that are not fitted here), and by
        split the gain with its interval, `p` and `better`, and how many answers `changed`.

    Example:
        >>> climbed.__name__
        'climbed'
    """
    rungs = [name for name in ladder_of(steps) if name in said]
    if not rungs:
        return []
    pairs = list(zip([document["best_member"], *rungs], rungs, strict=False))
    strengths = {step["name"]: step["decoding"]["strength"] for step in steps}
    told = [
        {"name": after, "before": before, "strength": strengths.get(after)}
        for before, after in pairs
    ]
    for split, scores in scored.items():
        if scores:
            found = _compared(
                population, split, pairs, deciding(scores, document["metric"]), document
            )
            for entry, pair in zip(told, found, strict=True):
                before, after = (said[entry[key]][split] for key in ("before", "name"))
                entry[split] = pair | {"changed": _changed(before, after, population)}
    return told


def notes_of(steps: Sequence[Facts]) -> list[str]:
    """Return what a reader must know of a decoding, a sentence each.

    Example:
        >>> notes_of([])
        []
    """
    if not steps:
        return []
    first = steps[0]["decoding"]
    told = ", ".join(f"{s['name']} (strength {s['decoding']['strength']:g})" for s in steps)
    idle = [s["name"] for s in steps if not s["decoding"]["strength"]]
    notes = [
        f"Decoding: {printable(told, 500)}; each stands on the rows above it, the first on "
        f"{printable(first['above'][-1])}. Strengths are fitted on validation, which is scored by "
        "fits that did not see the row. corrections.csv lists what they changed in the test split."
    ]
    if idle:
        notes.append(
            f"Strength 0 changes nothing: validation does not show that {', '.join(idle)} helps."
        )
    return notes


def _compared(
    population: Population,
    split: str,
    pairs: Sequence[tuple[str, str]],
    scores: Mapping[str, Score],
    document: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return each pair's gain; all are scored on the same replicates."""
    _, replicates, seed = document["interval"].values()
    draws = {"replicates": replicates, "seed": seed, "groups": population.groups(split)}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    every = replicate_scores([scores[name] for name in names], **draws)
    drawn = dict(zip(names, every.T, strict=True))
    found: list[Pair] = []
    for before, after in pairs:
        rows = {after: scores[after], before: scores[before]}
        found += compare_pairs(rows, reference=before, drawn=drawn, **draws)
    corrected = holm([pair.p for pair in found])
    return [_told(pair, p) for pair, p in zip(found, corrected, strict=True)]


def _told(pair: Pair, p: float) -> dict[str, Any]:
    gain = pair.difference
    return {**gain._asdict(), "p": p, "better": bool(gain.low > 0 and p <= LEVEL)}


def _changed(before: NDArray[Any], after: NDArray[Any], population: Population) -> int:
    blank = population.index["blank"]
    read = [decode(each, blank=blank) for each in (before, after)]
    return int((read[0] != read[1]).any(1).sum())

"""Every fusion of one population on one scoreboard: score, interval, gain, cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.advice import advise
from polyfuse.boosted import boosted
from polyfuse.errors import DataError, RunError, did_you_mean, printable
from polyfuse.ladder import climbed, ladder_of, notes_of, steps_of
from polyfuse.members import Member, with_average
from polyfuse.metrics import Score
from polyfuse.out_of_fold import score_out_of_fold
from polyfuse.population import FITTED, Population, write_fusion
from polyfuse.population_views import chosen_views, stack_with_views, with_views
from polyfuse.row_scores import Scores, all_metrics, choose, deciding, judge, score_rows
from polyfuse.scoreboard import SCHEMA, SPLITS, Scoreboard
from polyfuse.tasks import FUSIONS as FUSIONS
from polyfuse.tasks import default_fusions, fusions_for, mean_of


class Fused(NamedTuple):
    """One row of a scoreboard before it is scored.

    Attributes:
        kind: "member"; "fusion" of predictions; "fitted", one that was fitted on held-out rows; or
            "soup", which is one model.
        name: of the row.
        members: their indices.
        predictions: by split.
        average: whose weights its members have; their own where None.
        views: of each input that its members are asked about; the input alone where None.
    """

    kind: str
    name: str
    members: tuple[int, ...]
    predictions: Mapping[str, NDArray[Any]]
    average: str | None = None
    views: int | None = None


def compare_fusions(
    population: Population,
    *,
    fusions: Mapping[str, Callable[..., Any]] | Sequence[str] | None = None,
    soups: Sequence[str] = (),
    expected: int | None = None,
    milliseconds: Mapping[int, float] | None = None,
    metrics: Sequence[str] = (),
    replicates: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Scoreboard:
    """Score every member and every fusion; keep fusions and leaderboard in the RUN folder.

    The best row, and the best single member that all others are compared with, are chosen on
    validation. A difference counts as better only where its paired 95 % interval excludes zero and
    its p is at most 0.05: exact by McNemar where samples are right or wrong, else by the bootstrap,
    and corrected by Holm for all rows that are compared with that member on the split. Recommended
    is the cheapest row that validation does not tell from the best (`advice`).

    Fusions that `combine_population` has fitted on the members of now are rows, too; the steps of
    a decoding come last, in their order, and are also compared each with the one before.

    Where averages were tracked, each adds a row for the member that is best with it on validation,
    and one for each fusion of all members with it; where views were chosen, one for each fusion of
    all members with their views merged. Then `cost` is the parameters that run, views counted.

    Args:
        population: members with their predictions.
        fusions: combiners by name, or names out of `FUSIONS`; by default the means and the
            votes that fit the task. Those out of `FUSIONS` read outputs as the task has them; any
            other function gets `(member, row, ...)` as it is.
        soups: names of soups of these members that the folder keeps.
        expected: members of the finished population, where some are still missing.
        milliseconds: time of one member's forward pass a sample, by member index.
        metrics: names out of `MORE_METRICS` that are shown beside those of the task.
        replicates: of the bootstrap; where rows have groups, whole groups are drawn.
        seed: of the bootstrap.
        notes: what else its reader must know, a sentence each.

    Returns:
        The scoreboard; its document is in `leaderboard.json`.

    Raises:
        RunError: no members, or no such soup of them.
        DataError: predictions and labels that do not fit, a fusion or metric that is unknown or
            does not fit the task, a fusion of boosting of members that have no weights.

    Example:
        >>> compare_fusions(Population.open("/no/such/run"))
        Traceback (most recent call last):
        polyfuse.errors.RunError: there is no RUN folder '/no/such/run'; make one: polyfuse demo
    """
    blank, task = population.index["blank"], population.task
    chosen, judged = _chosen(fusions, task, blank), all_metrics(blank, metrics, task)
    single, together = _fused(population, chosen)
    averaged = [
        entry
        for name in population.averages
        for entry in _averaged(population.averaged(name), chosen, judged)
    ]
    viewed = _viewed(population, chosen)
    for entry in together + averaged + viewed:
        if entry.kind == "fusion":
            write_fusion(population, *entry[1:4])
    steps = steps_of(population)
    fits = [name for name, now in population.fits.items() if now]
    last = [name for name in ladder_of(steps) if name in fits]
    made = [_soup(population, name) for name in soups]
    made += [_fitted(population, name) for name in fits if name not in last]
    fused = (
        single + together + made + averaged + viewed + [_fitted(population, name) for name in last]
    )
    rows = _priced([_row(population, entry, milliseconds or {}) for entry in fused])
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "population": population.fingerprint(),
        "members": len(population.members),
        "expected": expected or len(population.members),
        "metric": next(iter(judged)),
        "metrics": list(judged),
        "interval": {"level": 0.95, "replicates": replicates, "seed": seed},
    }
    scored = {split: _score(population, split, fused, judged) for split in SPLITS}
    document |= _choices(rows, scored["val"], document["metric"])
    for split, scores in scored.items():
        if scores:
            judge(population, split, rows, scores, document)
    document["recommended"] = _recommend(population, rows, scored["val"], document)
    document["out_of_fold"] = score_out_of_fold(
        population, judged, scored["test"], replicates=replicates, seed=seed
    )
    said = {entry.name: entry.predictions for entry in fused}
    if climb := climbed(population, steps, scored, said, document):
        document["steps"] = climb
    document["notes"] = [*_notes(population, soups), *_of_views(population)]
    document["notes"] += [*notes_of(steps), *notes]
    document["rows"] = rows
    durable.write_json(population.path / "leaderboard.json", document)
    return Scoreboard(document)


def _chosen(
    fusions: Mapping[str, Callable[..., Any]] | Sequence[str] | None, task: str, blank: int | None
) -> Mapping[str, Callable[..., Any]]:
    if isinstance(fusions, Mapping):
        return fusions_for(task, fusions)
    if fusions is None:
        fusions = default_fusions(task, blank)
    for name in fusions:
        if name not in FUSIONS:
            raise DataError(
                f"unknown fusion '{name}'{did_you_mean(name, FUSIONS)}; known: {', '.join(FUSIONS)}"
            )
    return fusions_for(task, {name: FUSIONS[name] for name in fusions})


def _fused(
    population: Population,
    fusions: Mapping[str, Callable[..., Any]],
    read: Callable[[Population, str], NDArray[Any]] = Population.stack,
) -> tuple[list[Fused], list[Fused]]:
    """Return what each member and each fusion says; the members' files are read once."""
    stacks, task = {split: read(population, split) for split in SPLITS}, population.task
    fused = population.for_fusions.members
    average = population.members[0].average
    single = [
        Fused(
            "member",
            member.name,
            (member.index,),
            {split: mean_of(task, stack[i : i + 1]) for split, stack in stacks.items()},
            average,
        )
        for i, member in enumerate(population.members)
    ]
    together = []
    for name, given in fusions.items():
        fusion, heard = boosted(name, given, fused)
        # A user's function may write into what it is given; a list of places makes a copy for each.
        indices = tuple(member.index for member in heard)
        places = [i for i, member in enumerate(population.members) if member.index in indices]
        said = {s: np.asarray(fusion(stack[places])) for s, stack in stacks.items()}
        together.append(Fused("fusion", with_average(name, average), indices, said, average))
    return single, together


def _averaged(
    population: Population,
    fusions: Mapping[str, Callable[..., Any]],
    metrics: Mapping[str, Callable[..., Score]],
) -> list[Fused]:
    """Return what the members with one average say: the one best on validation, and each fusion."""
    single, together = _fused(population, fusions)
    rows = [_row(population, entry, {}) for entry in single]
    best = choose(rows, _score(population, "val", single, metrics), next(iter(metrics)))
    return [entry for entry in single if entry.name == best] + together


def _viewed(population: Population, fusions: Mapping[str, Callable[..., Any]]) -> list[Fused]:
    """Return what each fusion says of the members with their views merged, if any were chosen."""
    chosen = chosen_views(population)
    if chosen is None:
        return []
    own = population.trained_here
    own = own if chosen.average is None else population.averaged(chosen.average)
    _, together = _fused(own, fusions, stack_with_views)
    views = len(chosen.kept)
    return [entry._replace(name=with_views(entry.name), views=views) for entry in together]


def _soup(population: Population, name: str) -> Fused:
    """Return what a soup that is kept in the folder says."""
    record = population.fusion(name)
    own = population.trained_here  # those that were added do not change what it was made of
    if record.get("kind") != "soup" or record["inputs"] != own.fingerprint():
        raise RunError(
            f"'{population.path}/fusions/{printable(name)}' is no soup of the members that are "
            "there now; run the recipe again to make it"
        )
    said = {split: population.said(name, split) for split in SPLITS}
    return Fused("soup", name, tuple(record["members"]), said)


def _fitted(population: Population, name: str) -> Fused:
    """Return what a fusion that was fitted on the members of now says."""
    said = {split: population.said(name, split) for split in SPLITS}
    record = population.fusion(name)
    facts = record.get("average"), record.get("views")
    return Fused(FITTED, name, tuple(record["members"]), said, *facts)


def _notes(population: Population, soups: Sequence[str]) -> list[str]:
    """Return what a reader of the scoreboard must know, a sentence each."""
    warned: dict[str, list[str]] = {}
    for name in soups:
        for warning in population.fusion(name)["warnings"]:
            warned.setdefault(warning, []).append(name)
    notes = [f"{', '.join(names)}: {warning}" for warning, names in warned.items()]
    fits = {name: now for name, now in population.fits.items() if _by_combine(population, name)}
    if fitted := [printable(name) for name, now in fits.items() if now]:
        notes.append(
            f"Made by polyfuse combine: {', '.join(fitted)}. What was fitted is scored on "
            "validation by fits that did not see the row."
        )
    steps = [name for name, now in population.fits.items() if not now and name not in fits]
    if steps:
        notes.append(
            f"Left out, because members have come or gone since: {printable(', '.join(steps))}; "
            "run the same recipe again."
        )
    if stale := [printable(name) for name, now in fits.items() if not now]:
        notes.append(
            f"Left out, because members have come or gone since: {', '.join(stale)}; fit again "
            "with polyfuse combine."
        )
    added = [member for member in population.members if member.added]
    lacking = [printable(member.name) for member in added if not member.has_weights]
    if lacking:
        notes.append(
            f"Without weights: {', '.join(lacking)}. What they are part of is known by its "
            "predictions alone and reads no new data."
        )
    if added and (soups or population.averages):
        notes.append(
            "Soups and averaged weights are of the members that this run has trained: "
            f"{', '.join(printable(member.name) for member in added)} came from elsewhere."
        )
    if ended := [member for member in population.members if "diverged" in member.record]:
        told = [f"{m.name} (epoch {printable(m.record['diverged'])})" for m in ended]
        notes.append(
            f"Diverged: {', '.join(told)}. The loss became NaN or infinite there; the weights are "
            "the best from before, and averages that had not begun are missing."
        )
    if any("start" in member.record for member in population.members):
        notes.append(
            "No out-of-fold scores: the members started from weights that may have learned from "
            "rows that a fold holds out."
        )
    return notes + _pruned(population)


def _of_views(population: Population) -> list[str]:
    """Say which views the guard has kept, and which it has not, with figures."""
    chosen = chosen_views(population)
    return [f"Views (tta). {' '.join(chosen.report)}"] if chosen else []


def _by_combine(population: Population, name: str) -> bool:
    """Tell whether `polyfuse combine`, or a recipe's `combine`, has fitted a fusion."""
    return "method" in population.fusion(name)


def _pruned(population: Population) -> list[str]:
    """Say which members were left out of fusions by a choice that validation has made."""
    names = [member.name for member in population.members if member.record.get("pruned")]
    if not names:
        return []
    return [
        f"Left out of fusions by greedy selection on validation: {', '.join(names)}. The scores of "
        "fusions on validation have seen this choice; those on test have not."
    ]


def _row(population: Population, fused: Fused, milliseconds: Mapping[int, float]) -> dict[str, Any]:
    """Return what a row is and costs; a soup costs as much as one of its members."""
    run = fused.members[:1] if fused.kind == "soup" else fused.members
    found = {member.index: member for member in population.members}
    times = [milliseconds.get(index, found[index].milliseconds) for index in run]
    return {
        "name": fused.name,
        "kind": fused.kind,
        "members": list(fused.members),
        "models": len(run),
        "parameters": _sum([found[index].parameters for index in run]),
        "milliseconds": _sum([t if t is None else t * (fused.views or 1) for t in times]),
        **({"average": fused.average} if fused.average else {}),
        **({"views": fused.views} if fused.views else {}),
        **_held_out(found[fused.members[0]] if fused.kind == "member" else None),
    }


def _priced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put into each row what it costs: parameters that run, once a view, where there are views."""
    if any("views" in row for row in rows):
        for row in rows:
            once = row["parameters"]
            row["cost"] = None if once is None else once * row.get("views", 1)
    return rows


def _held_out(member: Member | None) -> dict[str, Any]:
    """Return the scores of a member that was trained here on rows that it did not see."""
    if member is None or member.added or member.average:
        return {}
    return {"out_of_fold": member.record.get("scores", {}).get("out_of_fold")}


def _sum(numbers: Sequence[float | None]) -> float | None:
    """Return a sum; None where a part of it is unknown."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _score(
    population: Population,
    split: str,
    fused: Sequence[Fused],
    metrics: Mapping[str, Callable[..., Score]],
) -> Scores:
    said = {entry.name: entry.predictions[split] for entry in fused}
    return score_rows(said, population.labels(split), metrics)


def _choices(rows: Sequence[Mapping[str, Any]], val: Scores, metric: str) -> dict[str, str]:
    """Choose the best row, and the best single member, on validation."""
    single = [row for row in rows if row["kind"] == "member" and "average" not in row]
    return {"best": choose(rows, val, metric), "best_member": choose(single, val, metric)}


def _recommend(
    population: Population,
    rows: Sequence[dict[str, Any]],
    val: Scores,
    document: Mapping[str, Any],
) -> str:
    """Return the row to use, and put into each other row why it is passed over."""
    metric, (_, replicates, seed) = document["metric"], document["interval"].values()
    advice = advise(
        rows,
        deciding(val, metric),
        metric,
        best=document["best"],
        replicates=replicates,
        seed=seed,
        groups=population.groups("val"),
    )
    for row in rows:
        row["passed_over"] = advice.passed_over.get(row["name"])
    return advice.recommended

"""Every fusion of one population on one scoreboard: score, interval, gain, cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable
from polyfuse.combine import CLASS_COMBINERS, mean_probability
from polyfuse.errors import DataError, RunError, did_you_mean, printable
from polyfuse.members import with_average
from polyfuse.metrics import (
    LOWER_IS_BETTER,
    NEEDS_PROBABILITIES,
    Terms,
    bootstrap_counts,
    interval,
    metrics_for,
    paired_interval,
)
from polyfuse.population import Population, write_fusion
from polyfuse.scoreboard import SCHEMA, SPLITS, Scoreboard
from polyfuse.sequences import SEQUENCE_COMBINERS

FUSIONS: dict[str, Callable[..., Any]] = {**CLASS_COMBINERS, **SEQUENCE_COMBINERS}


class Fused(NamedTuple):
    """One row of a scoreboard before it is scored.

    Attributes:
        kind: "member"; "fusion" of predictions; or "soup", which is one model.
        name: of the row.
        members: their indices.
        predictions: by split.
        average: whose weights its members have; their own where None.
    """

    kind: str
    name: str
    members: tuple[int, ...]
    predictions: Mapping[str, NDArray[Any]]
    average: str | None = None


def compare_fusions(
    population: Population,
    *,
    fusions: Mapping[str, Callable[..., Any]] | Sequence[str] | None = None,
    soups: Sequence[str] = (),
    expected: int | None = None,
    milliseconds: Mapping[int, float] | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> Scoreboard:
    """Score every member and every fusion; keep fusions and leaderboard in the RUN folder.

    The best row, and the best single member that all others are compared with, are chosen on
    validation. A difference counts as better only where its paired 95 % interval excludes zero.
    Where averages were tracked, each adds a row for the member that is best with it on validation,
    and one for each fusion of all members with it.

    Args:
        population: members with their predictions.
        fusions: combiners by name, or names out of `FUSIONS`; by default the means and the
            votes that fit the task.
        soups: names of soups of these members that the folder keeps.
        expected: members of the finished population, where some are still missing.
        milliseconds: time of one member's forward pass a sample, by member index.
        replicates: of the bootstrap; where rows have groups, whole groups are drawn.
        seed: of the bootstrap.

    Returns:
        The scoreboard; its document is in `leaderboard.json`.

    Raises:
        RunError: no members, or no such soup of them.
        DataError: predictions and labels that do not fit, an unknown fusion.

    Example:
        >>> compare_fusions(Population.open("/no/such/run"))
        Traceback (most recent call last):
        polyfuse.errors.RunError: there is no RUN folder '/no/such/run'; make one: polyfuse demo
    """
    blank = population.index["blank"]
    chosen, metrics = _chosen(fusions, blank), metrics_for(blank)
    single, together = _fused(population, chosen)
    averaged = [
        entry
        for name in population.averages
        for entry in _averaged(population.averaged(name), chosen, metrics)
    ]
    for entry in together + averaged:
        if entry.kind == "fusion":
            write_fusion(population, *entry[1:4])
    fused = single + together + [_soup(population, name) for name in soups] + averaged
    rows = [_row(population, entry, milliseconds or {}) for entry in fused]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "population": population.fingerprint(),
        "members": len(population.members),
        "expected": expected or len(population.members),
        "metric": next(iter(metrics)),
        "metrics": list(metrics),
        "interval": {"level": 0.95, "replicates": replicates, "seed": seed},
    }
    scored = {split: _score(population, split, fused, metrics) for split in SPLITS}
    document |= _choices(rows, scored["val"], document["metric"])
    for split, terms in scored.items():
        if terms:
            counts = _counts(population, split, replicates, seed)
            reference = terms[document["best_member"]]
            for row in rows:
                row[split] = _scores(terms[row["name"]], reference, counts, document["metric"])
    document["out_of_fold"] = _out_of_fold(population, metrics, scored, replicates, seed)
    document["notes"] = _notes(population, soups)
    document["rows"] = rows
    durable.write_json(population.path / "leaderboard.json", document)
    return Scoreboard(document)


AllTerms = Mapping[str, Mapping[str, Terms | None]]  # row name -> metric -> terms


def _chosen(
    fusions: Mapping[str, Callable[..., Any]] | Sequence[str] | None, blank: int | None
) -> Mapping[str, Callable[..., Any]]:
    if isinstance(fusions, Mapping):
        return fusions
    if fusions is None:
        fusions = ["mean_probability", "mean_logit"]
        fusions += ["hard_vote"] if blank is None else list(SEQUENCE_COMBINERS)
    for name in fusions:
        if name not in FUSIONS:
            raise DataError(
                f"unknown fusion '{name}'{did_you_mean(name, FUSIONS)}; known: {', '.join(FUSIONS)}"
            )
    return {name: FUSIONS[name] for name in fusions}


def _fused(
    population: Population, fusions: Mapping[str, Callable[..., Any]]
) -> tuple[list[Fused], list[Fused]]:
    """Return what each member and each fusion says; the members' files are read once."""
    stacks = {split: population.stack(split) for split in SPLITS}
    indices = tuple(member.index for member in population.members)
    average = population.members[0].average
    single = [
        Fused(
            "member",
            member.name,
            (member.index,),
            {split: mean_probability(stack[i : i + 1]) for split, stack in stacks.items()},
            average,
        )
        for i, member in enumerate(population.members)
    ]
    # A user's function may write into what it is given, so each gets its own copy.
    together = [
        Fused(
            "fusion",
            with_average(name, average),
            indices,
            {s: np.asarray(f(stack.copy())) for s, stack in stacks.items()},
            average,
        )
        for name, f in fusions.items()
    ]
    return single, together


def _averaged(
    population: Population,
    fusions: Mapping[str, Callable[..., Any]],
    metrics: Mapping[str, Callable[..., Terms]],
) -> list[Fused]:
    """Return what the members with one average say: the one best on validation, and each fusion."""
    single, together = _fused(population, fusions)
    rows = [_row(population, entry, {}) for entry in single]
    best = _choose(rows, _score(population, "val", single, metrics), next(iter(metrics)))
    return [entry for entry in single if entry.name == best] + together


def _soup(population: Population, name: str) -> Fused:
    """Return what a soup that is kept in the folder says."""
    record = population.fusion(name)
    if record.get("kind") != "soup" or record["inputs"] != population.fingerprint():
        raise RunError(
            f"'{population.path}/fusions/{printable(name)}' is no soup of the members that are "
            "there now; run the recipe again to make it"
        )
    said = {split: np.exp(population.fused(name, split)) for split in SPLITS}
    return Fused("soup", name, tuple(record["members"]), said)


def _notes(population: Population, soups: Sequence[str]) -> list[str]:
    """Return what a reader of the scoreboard must know, a sentence each."""
    warned: dict[str, list[str]] = {}
    for name in soups:
        for warning in population.fusion(name)["warnings"]:
            warned.setdefault(warning, []).append(name)
    notes = [f"{', '.join(names)}: {warning}" for warning, names in warned.items()]
    if any("start" in member.record for member in population.members):
        notes.append(
            "No out-of-fold scores: the members started from weights that may have learned from "
            "rows that a fold holds out."
        )
    return notes


def _row(population: Population, fused: Fused, milliseconds: Mapping[int, float]) -> dict[str, Any]:
    """Return what a row is and costs; a soup costs as much as one of its members."""
    run = fused.members[:1] if fused.kind == "soup" else fused.members
    parameters = {member.index: member.parameters for member in population.members}
    times = [milliseconds.get(index) for index in run]
    known = [time for time in times if time is not None]
    return {
        "name": fused.name,
        "kind": fused.kind,
        "members": list(fused.members),
        "models": len(run),
        "parameters": sum(parameters[index] for index in run),
        "milliseconds": sum(known) if len(known) == len(times) else None,
        **({"average": fused.average} if fused.average else {}),
    }


def _score(
    population: Population,
    split: str,
    fused: Sequence[Fused],
    metrics: Mapping[str, Callable[..., Terms]],
) -> AllTerms:
    """Return all rows' terms on a split; nothing where its labels are unknown."""
    labels = population.labels(split)
    if labels is None:
        return {}
    return {
        entry.name: {
            name: _terms(name, metric, entry.predictions[split], labels)
            for name, metric in metrics.items()
        }
        for entry in fused
    }


def _terms(
    name: str,
    metric: Callable[..., Terms],
    prediction: NDArray[Any],
    labels: NDArray[np.int64],
) -> Terms | None:
    if name in NEEDS_PROBABILITIES and prediction.dtype.kind != "f":
        return None
    return metric(prediction, labels)


def _counts(population: Population, split: str, replicates: int, seed: int) -> NDArray[np.float32]:
    rows = population.index["splits"][split]["rows"]
    return bootstrap_counts(rows, replicates, seed=seed, groups=population.groups(split))


def _choices(rows: Sequence[Mapping[str, Any]], val: AllTerms, metric: str) -> dict[str, str]:
    """Choose the best row, and the best single member, on validation."""
    single = [row for row in rows if row["kind"] == "member" and "average" not in row]
    return {"best": _choose(rows, val, metric), "best_member": _choose(single, val, metric)}


def _choose(rows: Sequence[Mapping[str, Any]], val: AllTerms, metric: str) -> str:
    """Return the name of the row that is best on validation; among equals the cheapest."""
    if not val:
        raise DataError("the validation split has no labels, so nothing can be chosen; bring them")
    sign = -1 if metric in LOWER_IS_BETTER else 1

    def merit(row: Mapping[str, Any]) -> tuple[float, int]:
        terms = val[row["name"]][metric]
        return (sign * terms.value if terms else -np.inf, -row["models"])

    return str(max(rows, key=merit)["name"])


def _scores(
    terms: Mapping[str, Terms | None],
    reference: Mapping[str, Terms | None],
    counts: NDArray[np.float32],
    metric: str,
) -> dict[str, Any]:
    scores: dict[str, Any] = {
        name: None if t is None else interval(t, counts)._asdict() for name, t in terms.items()
    }
    ours, theirs = terms[metric], reference[metric]
    assert ours is not None  # the deciding metric fits every row
    assert theirs is not None
    gain = paired_interval(ours, theirs, counts)
    better = gain.high < 0 if metric in LOWER_IS_BETTER else gain.low > 0
    scores["difference"] = {**gain._asdict(), "better": better}
    return scores


def _out_of_fold(
    population: Population,
    metrics: Mapping[str, Callable[..., Terms]],
    scored: Mapping[str, AllTerms],
    replicates: int,
    seed: int,
) -> dict[str, Any] | None:
    """Score every training row by the members that did not see it, beside the members on test."""
    labels = population.labels("train")
    logits = population.out_of_fold()
    said = np.isfinite(logits).all(tuple(range(1, logits.ndim)))
    name, metric = next(iter(metrics.items()))
    if labels is None or not said.any():
        return None
    terms = _terms(name, metric, logits[said], labels[said])
    assert terms is not None  # logits are floating
    counts = _counts(population, "train", replicates, seed)[:, said]
    result: dict[str, Any] = {"rows": int(said.sum()), "metric": name}
    result["train"] = interval(terms, counts)._asdict()
    if scored["test"]:
        each = [scored["test"][member.name][name] for member in population.members]
        mean = Terms(*(np.mean([t[i] for t in each if t is not None], 0) for i in (0, 1)))
        result["test"] = interval(mean, _counts(population, "test", replicates, seed + 1))._asdict()
    return result

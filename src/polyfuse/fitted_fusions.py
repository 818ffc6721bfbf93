"""Fusions that are fitted on a population: on what rows, how they are kept, what they answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.combining.base import Given, Rows, outward
from polyfuse.combining.documents import document_of, fitted_from
from polyfuse.combining.fits import say
from polyfuse.combining.judging import Row
from polyfuse.errors import DataError, printable
from polyfuse.leaks import refuse_trained
from polyfuse.population import FITTED, BaseModel, Population, write_fusion
from polyfuse.tasks import mean_said, meant, rules_of

ON = ("val", "train")  # where fusions may be fitted
Array = NDArray[Any]


def voices_of(population: Population, on: str) -> tuple[BaseModel, ...]:
    """Return who speaks in a fit: on val every member; on train what speaks for each row.

    Example:
        >>> from pathlib import Path
        >>> voices_of(Population(Path("RUN"), ()), "val")
        ()
    """
    if on == "train":
        return population.base_models()
    fused = population.for_fusions.members
    places = [n for n, member in enumerate(population.members) if member in fused]
    return tuple(BaseModel(population.members[n].name, (n,)) for n in places)


def given_of(population: Population, on: str) -> Given:
    """Return what a fit on a population is made of, once it is known that nothing leaks.

    On train these are out-of-fold predictions of base models (the folds of one model together), and
    only rows that each of them speaks for.

    Args:
        population: its members.
        on: "val" or "train".

    Raises:
        DataError: fewer than two voices; labels that are unknown; a voice without a word on train,
            or one that trained on the rows that it speaks for.

    Example:
        >>> given_of.__name__
        'given_of'
    """
    names = [voice.name for voice in voices_of(population, on)]
    _refuse_few(names, on)
    labels = population.labels(on)
    if labels is None:
        raise DataError(f"the labels of {on} are unknown, so nothing can be fitted on it")
    said, trained = _said(population, on), _trained(population, on)
    refuse_trained(said, trained, f"a fit on {on}")
    heard = np.asarray(np.isfinite(said).reshape(*said.shape[:2], -1).all(-1))
    _refuse_silent(names, heard, on)
    rows, groups = heard.all(0), population.groups(on)
    task, count = population.task, len(names)
    own_groups = None if groups is None else groups[rows]
    return Given(
        kind=kind_of(task, labels),
        names=tuple(names),
        fingerprints=("",) * count,
        spaces=("value" if rules_of(task).space == "value" else "logit",) * count,
        val=_rows(task, said[:, rows], labels[rows], own_groups),
        test=_rows(task, _said(population, "test"), population.labels("test"))
        if on == "val"
        else None,
        costs=_costs(population, on),
        priced=True,
        trained=trained[:, rows],
        blank=population.index["blank"],
    )


def kind_of(task: str, labels: Array) -> str:
    """Return what combinations call a task: a name in `polyfuse.combining.base.KINDS`.

    Example:
        >>> kind_of("classification", np.zeros((3, 6), int))
        'multi_head'
    """
    if task != "classification":
        return task
    return "multiclass" if labels.ndim == 1 else "multi_head"


def answers_of(population: Population, on: str, row: Row) -> dict[str, Array]:
    """Return what a fit says of val and test; of rows that it was fitted on, cross-fitted.

    Example:
        >>> answers_of.__name__
        'answers_of'
    """
    task, shape = population.task, population.members[0].predictions("val").shape[1:]
    if on == "val":  # they are as they go out, but for an axis of one number
        return {
            s: said.reshape(-1, *shape) if rules_of(task).space == "value" else said
            for s, said in row.said.items()
        }
    return {
        split: _asked(task, row.fitted, population.base_predictions(split), shape)
        for split in ("val", "test")
    }


def keep(
    population: Population, name: str, on: str, row: Row, facts: Mapping[str, Any]
) -> tuple[int, ...]:
    """Keep a fit in `fusions/NAME/`; return the indices of the members that have a say in it.

    Args:
        population: that it was fitted on.
        name: of the fusion.
        on: "val" or "train".
        row: what was fitted.
        facts: what else its record says.

    Example:
        >>> keep.__name__
        'keep'
    """
    voices = voices_of(population, on)
    speakers = [population.speakers(voice) for voice in voices]
    index = [[population.members[n].index for n in numbers] for numbers in speakers]
    members = tuple(sorted(i for number in row.members for i in index[number]))
    answers = {
        split: answer if answer.dtype.kind in "iu" else np.asarray(answer, np.float32)
        for split, answer in answers_of(population, on, row).items()
    }
    write_fusion(
        population,
        name,
        members,
        answers,
        fit=document_of(row.fitted),
        facts={"kind": FITTED, "on": on, "voices": index, **facts},
    )
    return members


def answer(population: Population, name: str, logits: Mapping[int, Array]) -> Array:
    """Return what a kept fit says of new rows.

    Args:
        population: that keeps it.
        name: of the fusion.
        logits: by member index, `(row, ...)` outputs; of the members that have a say at least.

    Returns:
        `(row, ..., class)` probabilities, `(row, ...)` classes where it is a vote, or numbers.

    Raises:
        RunError: there is no such fusion, or it is damaged.

    Example:
        >>> answer.__name__
        'answer'
    """
    # Members without a say are in no sum; what stands in their place is never read.
    filler = next(iter(logits.values()))
    task = population.task
    said = [
        mean_said(task, np.stack([meant(task, logits.get(index, filler)) for index in indices]))
        for indices in population.fusion(name)["voices"]
    ]
    return _asked(task, fitted_from(population.fit(name)), np.stack(said), filler.shape[1:])


def _rows(task: str, said: Array, labels: Array | None, groups: Array | None = None) -> Rows:
    """Return rows as combinations work on them; of one output the number alone."""
    if labels is not None and task == "regression" and labels.shape[1:] == (1,):
        labels = labels[:, 0]
    return Rows(_laid_out(task, said), labels, None, groups)


def _laid_out(task: str, said: Array) -> Array:
    """Return `(voice, row, ...)` as combinations have it: labels as pairs (no, yes)."""
    if task == "multilabel":
        return np.stack([1 - said, said], -1)
    return said[..., 0] if task == "regression" and said.shape[2:] == (1,) else said


def _asked(task: str, fitted: Any, said: Array, shape: tuple[int, ...]) -> Array:
    """Return what was fitted says of voices, as it goes out of a run."""
    answer = say(fitted, _laid_out(task, said))
    if rules_of(task).space == "value":
        return answer.reshape(len(answer), *shape)
    return outward("multilabel", answer) if task == "multilabel" else answer


def _said(population: Population, on: str) -> Array:
    return population.base_predictions("train") if on == "train" else _members(population, on)


def _members(population: Population, split: str) -> Array:
    return meant(population.task, population.for_fusions.stack(split))


def _trained(population: Population, on: str) -> NDArray[np.bool_]:
    return population.base_trained("train") if on == "train" else population.for_fusions.trained(on)


def _costs(population: Population, on: str) -> NDArray[np.float64]:
    """Return parameters, or the number of models where somebody's parameters are unknown."""
    sizes = [member.parameters for member in population.members]
    each = [1 if None in sizes else size or 0 for size in sizes]
    return np.array(
        [sum(each[n] for n in population.speakers(voice)) for voice in voices_of(population, on)],
        np.float64,
    )


def _refuse_few(names: Sequence[str], on: str) -> None:
    if len(names) > 1:
        return
    if on == "train" and names:
        raise DataError(
            f"on train there is one voice, {printable(names[0])}: of each row only the fold that "
            "held it out has a say, and one voice is nothing to combine; fit on validation (--on "
            "val), or add other members with their out-of-fold predictions"
        )
    raise DataError(f"{len(names)} member is nothing to combine; train or add others")


def _refuse_silent(names: Sequence[str], heard: NDArray[np.bool_], on: str) -> None:
    silent = [name for name, rows in zip(names, heard, strict=True) if not rows.any()]
    if silent:
        raise DataError(
            f"no out-of-fold predictions of {on}: {printable(', '.join(silent))}; add them with "
            "--predictions train=FILE --trained-on none, or fit on validation: --on val"
        )
    if not heard.all(0).any():
        raise DataError(
            f"there is no row of {on} that all speak for: {printable(', '.join(names))}"
        )

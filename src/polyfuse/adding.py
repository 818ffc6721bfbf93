"""Put a member that was trained elsewhere into a population: its predictions, or its checkpoint."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse import durable
from polyfuse.compare import FUSIONS
from polyfuse.data.base import Splits
from polyfuse.errors import DataError, RecipeError, RunError, printable
from polyfuse.foreign import Logits, learned_rows, lengths_said_by, said_by, there_already
from polyfuse.foreign_weights import applied, costs, loaded
from polyfuse.labels import write_labels
from polyfuse.members import FIRST_ADDED, FOREIGN, LONGEST, Member, is_name, write_member
from polyfuse.population import Population
from polyfuse.recipes.components import resolve
from polyfuse.recipes.folder import Run, plan_of
from polyfuse.recipes.refresh import refresh
from polyfuse.recipes.run import data_of
from polyfuse.recipes.schema import KINDS
from polyfuse.recipes.soups import SOUPS
from polyfuse.recipes.source import parse
from polyfuse.scoreboard import Scoreboard

UNKNOWN = "unknown, vouched for by the user"
Factory = Callable[[], nn.Module]


class Added(NamedTuple):
    """What was added.

    Attributes:
        member: as it is in the folder now.
        notes: what its user must know, a sentence each.
        scoreboard: of all members, made again; None where that could not be done yet.
    """

    member: Member
    notes: tuple[str, ...]
    scoreboard: Scoreboard | None


def add_member(
    run: Run | Population | str | Path,
    name: str,
    *,
    predictions: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    lengths: Mapping[str, Any] | None = None,
    model: str | Factory | None = None,
    key: str | None = None,
    data: Splits | None = None,
    recipe: str | Path | None = None,
    space: str | None = None,
    trained_on: Any = None,
    parameters: int | None = None,
    milliseconds: float | None = None,
) -> Added:
    """Put a member that was trained elsewhere into a population.

    Args:
        run: a RUN folder.
        name: what it is called on the scoreboard.
        predictions: by split, a file that `read_predictions` reads, or `(row, ..., class)` numbers;
            of val and test, and of train where out-of-fold predictions are at hand. Rows are joined
            by ids where there are ids. Alternative to `checkpoint`.
        checkpoint: weights in any format; the member then predicts the run's own data, and may be
            applied to new inputs.
        lengths: beside predictions of strings, what it says of their lengths on val and test: a
            file, or `(row, positions + 1)` numbers, of the lengths from 0.
        model: makes the checkpoint's model: a function, `package.module:function`, or a model as a
            recipe has it; the recipe's own by default.
        key: the state dict inside the checkpoint.
        data: splits of a population that has no recipe.
        recipe: the run's recipe, needed only where it names the user's own code.
        space: "prob", "logit" or "log_prob" of the predictions, where it is known.
        trained_on: training rows it learned from: a file or an array, see `learned_rows`; "none"
            where its predictions of train are out of fold. Unknown where None.
        parameters: how many it has; counted where there is a checkpoint.
        milliseconds: of a forward pass a sample; measured where there is a checkpoint.

    Returns:
        The member, and the scoreboard that has it.

    Raises:
        DataError: predictions that do not fit, a member that is there already, a name in use.
        CheckpointError: a checkpoint that does not fit the model.
        RecipeError: code that nobody named.
        RunError: no RUN folder, or another process works in it.

    Example:
        >>> add_member("/no/such/run", "resnet", predictions={"val": "val.npy", "test": "test.npy"})
        Traceback (most recent call last):
        polyfuse.errors.RunError: there is no RUN folder '/no/such/run'; make one: polyfuse demo
    """
    root = Path(run) if isinstance(run, str | Path) else run.path
    Population.open(root)
    with durable.locked(root):
        durable.remove_leftovers(root)
        population = Population.open(root)
        _refuse(population, name, predictions, checkpoint, model, space, parameters, milliseconds)
        _refuse_lengths(lengths, predictions)
        learned = learned_rows(population, trained_on)
        if predictions is not None:
            brought = _by_predictions(population, name, predictions, space, learned)
            if lengths is not None:
                _bring_lengths(population, name, lengths, brought)
        else:
            assert checkpoint is not None  # one of both is given
            splits, factory = _recipe(root, data, recipe, model)
            write_labels(root, splits)  # refuses other data than the folder was made with
            brought = _by_checkpoint(checkpoint, factory, splits, key, learned)
            brought.facts["model"] = None if model is None else _title(model)
        member = there_already(population, name, brought.logits)
        if member is not None:
            brought.notes.append(f"'{name}' is there already, and says the same: nothing is added")
        else:
            told = {"parameters": parameters, "milliseconds": milliseconds}
            facts = {**brought.facts, **{key: v for key, v in told.items() if v is not None}}
            member = _commit(population, name, brought, facts, learned)
        board, note = _refreshed(root, recipe)
    return Added(member, (*brought.notes, *note), board)


@dataclass
class _Brought:
    """What a member brings: logits by split, facts for its record, weights if there are any.

    Also what its length head says of val and test, if it has one.
    """

    logits: dict[str, Logits]
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    state: Mapping[str, Tensor] | None = None
    lengths: Mapping[str, Logits] = field(default_factory=dict)


def _refuse(
    population: Population,
    name: str,
    predictions: Mapping[str, Any] | None,
    checkpoint: str | Path | None,
    model: Any,
    space: str | None,
    parameters: int | None,
    milliseconds: float | None,
) -> None:
    """Refuse a name that is taken, and what does not go together; all at once."""
    faults = _name_faults(population, name)
    if (predictions is None) == (checkpoint is None):
        faults.append("give either predictions (val and test) or a checkpoint")
    elif predictions is not None and model is not None:
        faults.append("a model makes something of a checkpoint; predictions need none")
    elif predictions is None and space is not None:
        faults.append("space is of predictions; a checkpoint's model gives logits")
    if parameters is not None and parameters < 0:
        faults.append(f"parameters must be 0 or more, got {parameters}")
    if milliseconds is not None and not (math.isfinite(milliseconds) and milliseconds >= 0):
        faults.append(f"milliseconds must be 0 or more, got {milliseconds}")
    if faults:
        raise DataError("\n".join(faults))


def _name_faults(population: Population, name: str) -> list[str]:
    if not is_name(name):
        return [
            f"'{printable(name)}' is no name for a member; it has 1 to {LONGEST} characters, none "
            "of / \\ : or a dot in front, and is not called 'member N'"
        ]
    fusions = [*FUSIONS, *SOUPS, *_listed(population.path)]
    fusions += [path.name for path in (population.path / "fusions").glob("*")]
    if name in fusions:
        return [f"'{name}' is the name of a fusion; call the member otherwise"]
    return []


def _listed(root: Path) -> list[str]:
    """Return what a run's recipe calls its own fusions and soups."""
    if not (root / "run.json").is_file():
        return []
    tree = Run(root).recipe
    specs = [spec for key in ("fusions", "soups", "combine") for spec in tree.get(key) or []]
    names = [spec if isinstance(spec, str) else spec["name"] for spec in specs]
    return [str(name).rpartition(":")[2] for name in names]


def _by_predictions(
    population: Population,
    name: str,
    predictions: Mapping[str, Any],
    space: str | None,
    learned: NDArray[np.int64] | None,
) -> _Brought:
    said = said_by(population, predictions, name=name, space=space)
    logits, notes = dict(said.logits), list(said.notes)
    if "train" not in logits:
        shape = (population.rows("train"), *logits["val"].shape[1:])
        logits["train"] = np.full(shape, np.nan, np.float32)
    elif learned is None:
        raise DataError(
            "predictions of train are of use only on rows that it did not train on; say which it "
            "did: --trained-on FILE, or --trained-on none where they are out of fold"
        )
    elif len(learned):
        logits["train"] = logits["train"].copy()
        logits["train"][learned] = np.nan
        notes.append(
            f"Of train, the predictions of {len(learned):,} rows that it trained on are left out"
        )
    return _Brought(logits, {"parameters": None, "source": {"predictions": said.source}}, notes)


def _refuse_lengths(lengths: Any, predictions: Any) -> None:
    if lengths is not None and predictions is None:
        raise DataError("lengths go with predictions; a checkpoint's model says them itself")


def _bring_lengths(
    population: Population, name: str, lengths: Mapping[str, Any], brought: _Brought
) -> None:
    """Put what a member says of lengths beside its predictions."""
    said = lengths_said_by(population, lengths, name=name)
    brought.lengths = dict(said.logits)
    brought.facts["source"] |= {"lengths": dict(said.source)}
    brought.notes += said.notes


def _recipe(
    root: Path, data: Splits | None, recipe: str | Path | None, model: str | Factory | None
) -> tuple[Splits, Factory]:
    """Return the data, and what makes the model; code runs only where the user named it here."""
    factory = _named(model) if isinstance(model, str) else model
    if data is not None and factory is not None:
        return data, factory
    if not (root / "run.json").is_file():
        raise RunError(
            f"'{printable(root)}' has no recipe that says data and model; bring both: "
            "add_member(..., data=Splits(...), model=function), or bring predictions"
        )
    plan = plan_of(Run(root), recipe)
    if factory is None and len(plan.factories) > 1:
        raise RunError(
            f"the recipe of '{printable(root)}' lists {len(plan.factories)} models; say which the "
            "checkpoint was saved of: --model NAME, or model=function"
        )
    return data or data_of(plan), factory or plan.factory


def _named(model: str) -> Factory:
    """Return a model's factory by the name that the user gave, as a recipe would have it."""
    source = parse(f"model: {model}", "--model")
    found: Factory | None = resolve(source, ("model",), source.tree["model"], KINDS["model"], True)
    source.check()
    assert found is not None  # no faults, so it is there
    return found


def _title(model: str | Factory) -> str:
    return model if isinstance(model, str) else getattr(model, "__qualname__", repr(model))


def _by_checkpoint(
    checkpoint: str | Path,
    factory: Factory,
    splits: Splits,
    key: str | None,
    learned: NDArray[np.int64] | None,
) -> _Brought:
    model, source, notes = loaded(checkpoint, factory, key=key)
    said = applied(model, splits, learned)
    parameters, time = costs(model, splits)
    facts = {
        "parameters": parameters,
        "milliseconds": time,
        "source": {"checkpoint": dict(source)},
    }
    state, lengths = dict(model.state_dict()), dict(said.lengths)
    return _Brought(dict(said.logits), facts, list(notes), state, lengths)


def _commit(
    population: Population,
    name: str,
    brought: _Brought,
    facts: Mapping[str, Any],
    learned: NDArray[np.int64] | None,
) -> Member:
    taken = [member.index for member in population.members if member.added]
    record = {
        "index": max(taken, default=FIRST_ADDED - 1) + 1,
        "strategy": FOREIGN,
        "name": name,
        "weights": brought.state is not None,
        "trained_on": UNKNOWN if learned is None else f"{len(learned)} rows",
        **facts,
    }
    rows = {} if learned is None else {"learned": learned}
    lengths: dict[str | None, Mapping[str, Logits]] = {None: brought.lengths}
    lengths = lengths if brought.lengths else {}
    return write_member(
        population.path, record, brought.state, brought.logits, rows, lengths=lengths
    )


def _refreshed(root: Path, recipe: str | Path | None) -> tuple[Scoreboard | None, list[str]]:
    """Compare again where the run has been compared; else say what will."""
    if not (root / "leaderboard.json").is_file():
        return None, ["There is no scoreboard yet; it will have this member, too"]
    if not (root / "run.json").is_file():
        return None, ["The scoreboard is as it was: compare_fusions(Population.open(...)) makes it"]
    try:
        return refresh(Run(root), recipe=recipe), []
    except RecipeError as error:
        again = f"run the same recipe again: polyfuse run RECIPE --out {printable(root)}"
        return None, [f"The scoreboard is as it was ({printable(error, 300)}); {again}"]

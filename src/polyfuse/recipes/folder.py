"""A RUN folder, opened: its recipe, members, scores, and answers for new inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from polyfuse import durable
from polyfuse.boosted import boosted
from polyfuse.budget import Spent
from polyfuse.data import new_inputs
from polyfuse.data.base import Split
from polyfuse.errors import RunError, printable
from polyfuse.fitted_fusions import answer
from polyfuse.inference import predict
from polyfuse.members import Member, with_average
from polyfuse.population import FITTED, Population
from polyfuse.population_decoding import (
    decoded,
    is_decoded,
    length_run_of,
    pooled_heads,
    positions_of,
)
from polyfuse.population_lengths import LengthRun
from polyfuse.population_views import with_views
from polyfuse.recipes import source as recipe_source
from polyfuse.recipes.schema import Plan, check
from polyfuse.recipes.shipped import find
from polyfuse.recipes.views import predict_row
from polyfuse.scoreboard import Scoreboard, read_scoreboard
from polyfuse.tasks import mean_of, written

if TYPE_CHECKING:
    import pandas

SCHEMA = 1


class Run:
    """A RUN folder: its recipe, members, scoreboard and submission. It may be moved.

    Args:
        path: the folder.

    Raises:
        RunError: no RUN folder.

    Example:
        >>> Run("/no/such/run")
        Traceback (most recent call last):
        polyfuse.errors.RunError: '/no/such/run' is no RUN folder: it has no run.json; ...
    """

    def __init__(self, path: str | Path) -> None:
        """Read what the run is; members and scores are read when asked for."""
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise RunError(
                f"'{printable(path)}' is no RUN folder: it has no run.json; "
                "make one: polyfuse run street_numbers --out RUN"
            )
        self.record: Mapping[str, Any] = durable.read_json(self.path / "run.json")
        check_record(self.path, self.record)
        self.spent: Spent | None = None  # of a time budget, where this call of `run` had one

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as it was run."""
        recipe: Mapping[str, Any] = self.record["recipe"]
        return recipe

    @property
    def population(self) -> Population:
        """The members."""
        return Population.open(self.path)

    @property
    def scoreboard(self) -> Scoreboard:
        """The scores."""
        return read_scoreboard(self.path)

    def predict(
        self,
        data: str | Path | Split,
        *,
        fusion: str | None = None,
        recipe: str | Path | None = None,
        factories: Mapping[str, Callable[[], nn.Module]] | None = None,
        length_run: str | Path | None = None,
    ) -> list[tuple[str, str]]:
        """Apply a fusion to new inputs.

        Args:
            data: a folder of images, a `.npy` array, or a split.
            fusion: a row of the scoreboard; by default the one that is best on validation.
            recipe: the recipe file, needed only where it names the user's own code: code is never
                imported because a RUN folder says so.
            factories: by the name of a member that was added with a model of its own, what makes
                that model.
            length_run: the RUN folder by which a decoding knows lengths, where it has the step
                `length_model`: what stands in this folder is no reason to open another one.

        Returns:
            A pair (name, answer) for each input; the answer is the string that was read, the
            number of the class, the numbers of the labels that apply, or what was predicted of a
            regression, with a space between several.

        Raises:
            RecipeError: the recipe names code, and `recipe` was not given.
            DataError: inputs that do not fit the run.
            RunError: a member has no weights here, or a model of its own that is not in
                `factories`.
        """
        plan = plan_of(self, recipe).for_task(self.population.task)
        row = self.scoreboard.row(fusion or self.scoreboard.best)
        population = with_averages_of(row, self.population)
        index = population.index
        fusions = {_called(n, row): f for n, f in plan.fusions.items()}
        known = {**fusions, **plan.soups, **population.fits}
        if row["kind"] != "member" and row["name"] not in known:
            raise RunError(
                f"'{self.path}/leaderboard.json' has a fusion that recipe.yaml lacks: "
                f"{printable(row['name'])}; run the recipe again to rebuild it"
            )
        split = new_inputs(data, index["inputs"]) if isinstance(data, str | Path) else data
        if row["kind"] == "soup":
            models = [population.soup(row["name"], plan.factory)]
        else:
            chosen = [m for m in population.members if m.index in row["members"]]
            made_by = _factories(chosen, plan, factories or {})
            models = [m.model(make) for m, make in zip(chosen, made_by, strict=True)]
        heads = predict_row(row, population, plan.tta, models, split)
        logits = [said.characters for said in heads]
        if row["kind"] == FITTED and is_decoded(population, row["name"]):
            lengths = self._lengths(population, row["name"], split, length_run, recipe)
            said = decoded(population, row["name"], pooled_heads(heads, lengths))
        elif row["kind"] == FITTED:
            said = answer(population, row["name"], dict(zip(row["members"], logits, strict=True)))
        else:
            combiner: Callable[..., Any] = partial(mean_of, population.task)
            if row["kind"] == "fusion":
                combiner, _ = boosted(row["name"], fusions[row["name"]], chosen)
            said = np.asarray(combiner(np.stack(logits)))
        answers = written(population.task, said, index["blank"], population.alphabet)
        return list(zip(split.names, answers, strict=True))

    def _lengths(
        self,
        population: Population,
        row: str,
        split: Split,
        path: str | Path | None,
        recipe: str | Path | None,
    ) -> NDArray[np.float64] | None:
        """Return what another run says of the lengths of new rows, where a row wants that."""
        wanted = length_run_of(population, row)
        if wanted is None:
            return None
        if path is None:
            raise RunError(
                f"'{printable(row)}' knows lengths by another run, which it was made with: name "
                "its folder, --length-run RUN, or take a row that does without: --fusion ROW"
            )
        run, lengths = Run(path), LengthRun(path)
        if lengths.population.fingerprint() != wanted:
            raise RunError(
                f"'{printable(path)}' is not the run that '{printable(row)}' was made with, or has "
                "other members by now; name that one, or run the recipe again"
            )
        plan, members = plan_of(run, recipe), lengths.population.for_fusions.members
        made_by = _factories(members, plan, {})
        models = [m.model(make) for m, make in zip(members, made_by, strict=True)]
        outputs = np.stack([predict(model, split) for model in models])
        return lengths.read(outputs, positions_of(population))

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the scoreboard as a pandas DataFrame."""
        return self.scoreboard.to_pandas()

    def __repr__(self) -> str:
        """Name the folder."""
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        return self.scoreboard._repr_html_()


def with_averages_of(row: Mapping[str, Any], population: Population) -> Population:
    """Return the members with the weights that a row of the scoreboard has them with.

    Example:
        >>> with_averages_of({"name": "member 0"}, Population(Path("RUN"), ())).averages
        ()
    """
    return population.averaged(row["average"]) if "average" in row else population


def _called(fusion: str, row: Mapping[str, Any]) -> str:
    """Return what a fusion is called whose members are as those of a row."""
    name = with_average(fusion, row.get("average"))
    return with_views(name) if "views" in row else name


def check_record(root: Path, record: Any) -> None:
    """Refuse a `run.json` that is none.

    Raises:
        RunError: it is no record of this schema.

    Example:
        >>> check_record(Path("RUN"), [])
        Traceback (most recent call last):
        polyfuse.errors.RunError: 'RUN/run.json' is no record of schema 1; restore it, ...
    """
    if (
        not isinstance(record, dict)
        or record.get("schema") != SCHEMA
        or not isinstance(record.get("recipe"), dict)
    ):
        raise RunError(
            f"'{printable(root)}/run.json' is no record of schema {SCHEMA}; restore it, "
            "or name another folder"
        )


def plan_of(run: Run, recipe: str | Path | None = None) -> Plan:
    """Return a run's plan; code is imported only from a recipe that the user names here.

    Args:
        run: its recipe is in the folder.
        recipe: a file with the same names of code, from the user's own hand.

    Raises:
        RecipeError: the recipe names code, and `recipe` was not given or has other names.

    Example:
        >>> plan_of.__name__
        'plan_of'
    """
    source = recipe_source.read(run.path / "recipe.yaml")
    if recipe is None:
        return check(source, trusted=False)
    return check(source, trusted=set(_texts(recipe_source.read(find(recipe)).tree)))


def _factories(
    members: Sequence[Member], plan: Plan, given: Mapping[str, Callable[[], nn.Module]]
) -> list[Callable[[], nn.Module]]:
    """Return what makes the model of each member; refuse where that, or its weights, is missing."""
    faults = [
        f"'{printable(m.name)}' was added with the model {printable(m.record['model'])}: bring it, "
        "run.predict(..., factories={name: function})"
        for m in members
        if m.has_weights and m.record.get("model") and m.name not in given
    ]
    faults += [
        f"'{printable(m.name)}' was added by its predictions alone and has no weights to apply"
        for m in members
        if not m.has_weights
    ]
    if faults:
        fix = "or name a row that does without: --fusion ROW, of those that polyfuse report shows"
        raise RunError("\n".join([*faults, fix]))
    return [given.get(m.name) or plan.factory_of(m) for m in members]


def _texts(node: Any) -> Iterator[str]:
    """Yield every text in a recipe's tree."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _texts(child)

"""Run a recipe: data, members, fusions, scoreboard, submission; running it again resumes it."""

import contextlib
import inspect
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from polyfuse import durable, tables
from polyfuse.budget import Spent
from polyfuse.compare import compare_fusions
from polyfuse.corrections import write_corrections
from polyfuse.data import looks
from polyfuse.data.base import Splits, task_of
from polyfuse.determinism import seeded
from polyfuse.errors import RecipeError, RunError, printable
from polyfuse.fit.base import MAY_CHANGE
from polyfuse.inference import check_labels, milliseconds_per_image, predict
from polyfuse.members import with_average
from polyfuse.population import Population
from polyfuse.population_views import with_views
from polyfuse.recipes import source as recipe_source
from polyfuse.recipes.decoding import decode_run, has_decoding, refuse_undecodable
from polyfuse.recipes.fits import has_fits, make_fits, refuse_unfit
from polyfuse.recipes.folder import SCHEMA, Run, check_record, with_averages_of
from polyfuse.recipes.schema import Plan, check
from polyfuse.recipes.shipped import find
from polyfuse.recipes.soups import Given, make_soups
from polyfuse.recipes.views import has_views, make_views, refuse_unfit_views
from polyfuse.remote import Mirror, Mirrored
from polyfuse.runners import runner_named
from polyfuse.runners.base import Runner
from polyfuse.scoreboard import Scoreboard, read_scoreboard
from polyfuse.tasks import mean_of, rules_of, written
from polyfuse.training.base import Strategy
from polyfuse.training.loop import Task, train

Progress = Callable[[str, float, float, str], None]


def silent(name: str, done: float, total: float, note: str = "") -> None:
    """Report progress to nobody.

    Example:
        >>> silent("data", 1, 2)
    """


def run(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    quick: bool = False,
    minutes: float | None = None,
    workers: int | None = None,
    runner: str | Runner = "local",
    address: str | None = None,
    mirror: str | None = None,
    progress: Progress = silent,
) -> Run:
    """Run a recipe, or go on with it where it was stopped.

    Args:
        recipe: a file, or the name of a shipped recipe.
        out: the RUN folder; `runs/NAME` by default.
        settings: `key.path=value` changes to the recipe.
        quick: apply the recipe's `quick` part.
        minutes: stop training at the end of an epoch after so long; the scoreboard then has the
            members that are done, and the next call goes on.
        workers: members that are trained side by side; by default as many as there is room for.
            The results do not depend on it, nor on the runner.
        runner: where they are trained: "local", "ray", or one of your own.
        address: of a Ray cluster, which sees the RUN folder under the same path, or has a mirror.
        mirror: s3://bucket/run or another address that fsspec opens: members that are there are
            fetched, and those that are trained are copied there.
        progress: called with (name, done, total, note).

    Raises:
        RecipeError: faults in the recipe, all at once.
        RunError: the folder belongs to another recipe or another process, or is damaged.
        PolyfuseError: what else can go wrong, with the fix.

    Example:
        >>> run("street_numbers", settings=["fit.epoch=3"])
        Traceback (most recent call last):
        polyfuse.errors.RecipeError: 1 fault in recipe 'street_numbers.yaml': ...
    """
    begun = time.time()
    source = recipe_source.read(find(recipe))
    plan = load(source, settings, quick=quick)
    place = partial(_placed, plan, runner, workers, address)
    place(1)  # a runner that there is not is refused before anything is made
    root = Path(out or Path("runs") / (plan.name + ("-quick" if quick else "")))
    _refuse_foreign(root)
    durable.make_folder(root)
    with durable.locked(root):
        _begin(root, plan)
        durable.remove_leftovers(root)
        splits = data_of(plan, progress)
        plan = plan.for_task(task_of(splits.train), splits.train.blank)
        _check_fusions(plan, splits)
        deadline = None if minutes is None else begun + 60 * minutes
        copy = Mirror(mirror) if mirror else None
        if copy:
            copy.pull(root)
            place = partial(_mirrored, place, copy, root)
        population, strategy = _train(root, plan, splits, place, deadline, progress)
        if copy:
            copy.push(root)
        spent = None if minutes is None else Spent(minutes, (time.time() - begun) / 60)
        if spent:
            progress("minutes", spent.used, spent.planned, str(spent))
        board = _compare(population, plan, strategy, splits, progress)
        write_submission(population, board)
    done = Run(root)
    done.spent = spent
    return done


def load(source: recipe_source.Source, settings: Sequence[str], *, quick: bool = False) -> Plan:
    """Check a recipe with its quick part and the user's settings applied; the settings win.

    Raises:
        RecipeError: all faults at once.

    Example:
        >>> source = recipe_source.read(find("street_numbers"))
        >>> load(source, ["fit.epochs=3"]).options.epochs
        3
    """
    part = source.tree.pop("quick", {})
    if not isinstance(part, dict):
        source.blame(("quick",), "expected a mapping of key.path: value")
    elif quick:
        for key, value in part.items():
            recipe_source.put(source, key, value, source.place(("quick", key)))
    recipe_source.apply(source, settings)
    return check(source)


def write_submission(population: Population, board: Scoreboard) -> None:
    """Write `submission.csv`: the test split as read by the row that is best on validation.

    Where strings were decoded step by step, `corrections.csv` lists what each step changed.

    Example:
        >>> write_submission.__name__
        'write_submission'
    """
    row, task = board.row(board.best), population.task
    if row["kind"] == "member":
        members = with_averages_of(row, population).members
        (member,) = (m for m in members if m.index in row["members"])
        read = mean_of(task, member.predictions("test")[None])
    else:
        read = population.said(row["name"], "test")
    answers = written(task, read, population.index["blank"], population.alphabet)
    lines = zip(population.names("test"), answers, strict=True)
    text = tables.comma_separated(list(rules_of(task).titles), list(lines))
    durable.write_bytes(population.path / "submission.csv", text.encode())
    write_corrections(population)


def _begin(root: Path, plan: Plan) -> None:
    """Claim the folder for this recipe, or find that it is ours already.

    A recipe that has trained nothing yet, perhaps because it had a mistake, holds no folder.
    """
    record = root / "run.json"
    if record.exists() and _trained(root):
        _refuse_another(root, durable.read_json(record), plan)
    else:
        packages = ("polyfuse", "torch", "numpy", "lightning-fabric", "scikit-learn")
        facts = {
            "schema": SCHEMA,
            "recipe": plan.tree,
            "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        }
        durable.write_json(record, facts)
    text, file = recipe_source.write(dict(plan.tree)).encode(), root / "recipe.yaml"
    if not file.exists() or durable.read_bytes(file) != text:
        durable.write_bytes(file, text)


def _refuse_foreign(root: Path) -> None:
    """Refuse a folder that is not ours before anything is written to it, a lock included."""
    if root.is_dir() and not (root / "run.json").exists():
        others = sorted(p.name for p in root.iterdir() if not p.name.startswith("."))
        if others:
            raise RunError(
                f"'{root}' exists and is no RUN folder (it holds {printable(', '.join(others))}); "
                "name a new folder with --out"
            )


def _trained(root: Path) -> bool:
    """Tell whether a folder holds members, or the progress of one."""
    return any(any((root / part).glob("*")) for part in ("members", "resume"))


def _refuse_another(root: Path, record: Any, plan: Plan) -> None:
    check_record(root, record)
    before, after = _decisive(record["recipe"]), _decisive(json.loads(json.dumps(plan.tree)))
    found = list(recipe_source.differences(before, after))
    if found:
        shown = [f"{key} is {was!r} there and {now!r} here" for key, was, now in found[:5]]
        raise RunError(
            f"'{root}' was made by another recipe: {printable('; '.join(shown), 500)}; "
            "name a new folder with --out, or use the old recipe to go on with it"
        )


def _decisive(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a recipe decides its numbers."""
    fit = {key: value for key, value in (tree.get("fit") or {}).items() if key not in MAY_CHANGE}
    data = tree.get("data")
    if isinstance(data, dict):  # what they hold is known by its fingerprint
        data = {key: value for key, value in data.items() if key not in looks.MAY_CHANGE}
    return {**tree, "fit": fit or None, "data": data}


def data_of(plan: Plan, progress: Progress = silent) -> Splits:
    """Make a recipe's splits.

    Example:
        >>> data_of.__name__
        'data_of'
    """

    def made(done: int, total: int) -> None:
        progress("data", done, total, "")

    takes = "notify" in inspect.signature(plan.data).parameters
    splits: Splits = plan.data(notify=made) if takes else plan.data()
    total = sum(len(split) for split in splits)
    progress("data", total, total, "")
    return splits


def _check_fusions(plan: Plan, splits: Splits) -> None:
    """Try every fusion on an untrained model's answers: a misfit is known before any training."""
    for factory in plan.factories:
        _check_model(plan, factory, splits)


def _check_model(plan: Plan, factory: Callable[[], nn.Module], splits: Splits) -> None:
    with seeded(plan.seed):
        model = factory()
    check_labels(model, splits.val, np.arange(min(2, len(splits.val))))
    outputs = predict(model, splits.val, np.arange(1))
    task = task_of(splits.train)
    decided = {"classification": outputs.shape[:-1], "multilabel": outputs.shape}
    for name, fusion in plan.fusions.items():
        try:
            said = np.asarray(fusion(np.stack([outputs, outputs])))
        except Exception as error:  # a user's function may raise anything
            fact = f"fusions: {name} does not fit the task: {printable(error)}"
            raise RecipeError(fact) from error
        if said.shape != (decided.get(task) if said.dtype.kind in "iu" else outputs.shape):
            fits = "probabilities" if task in decided else "numbers"
            other = f" or int64 classes {decided[task]}" if task in decided else ""
            raise RecipeError(
                f"fusions: {name} maps {(2, *outputs.shape)} to {said.dtype} of {said.shape}; it "
                f"must return {fits} {outputs.shape}{other}"
            )


def _train(
    root: Path,
    plan: Plan,
    splits: Splits,
    place: Callable[[int], Runner],
    deadline: float | None,
    progress: Progress,
) -> tuple[Population, Strategy]:
    strategy: Strategy = plan.strategy(splits.train)
    refuse_unfit(plan.fits, strategy, splits)
    refuse_undecodable(plan.decoding, plan.fusions, splits)
    refuse_unfit_views(plan.tta, plan.factories, splits, seed=plan.seed)
    done = Population.open(root).trained_here.members
    size = strategy.size(done)
    watch = _Watch(size, len(done), progress)
    population = train(
        strategy,
        Task(plan.factories, splits, plan.options),
        root,
        runner=place(size),
        deadline=deadline,
        watch=watch,
    )
    return population, strategy


def _placed(
    plan: Plan, runner: str | Runner, workers: int | None, address: str | None, jobs: int
) -> Runner:
    """Return where a plan's members are trained."""
    if not isinstance(runner, str):
        return runner
    options = plan.options
    gpu, threads, devices = options.accelerator != "cpu", options.threads, options.devices
    return runner_named(
        runner,
        jobs=jobs,
        threads=threads,
        devices=devices,
        gpu=gpu,
        workers=workers,
        address=address,
    )


def _mirrored(place: Callable[[int], Runner], copy: Mirror, root: Path, jobs: int) -> Runner:
    return Mirrored(place(jobs), copy, root)


class _Watch:
    """Turn members' epochs into a bar each and one bar for all."""

    def __init__(self, size: int, done: int, progress: Progress) -> None:
        self.size, self.done, self.progress = size, done, progress
        progress("members", done, size, "")

    def __call__(self, index: int, done: float, total: float, note: str) -> None:
        self.progress(f"member {index}", done, total, note)
        if note.startswith("done"):
            self.done += 1
            self.progress("members", self.done, self.size, "")


def _compare(
    population: Population, plan: Plan, strategy: Strategy, splits: Splits, progress: Progress
) -> Scoreboard:
    """Compare, unless the leaderboard that is there was made of the same members and is whole."""
    added = len(population.members) - len(population.trained_here.members)
    if not population.trained_here.members:
        raise RunError(
            f"the time was up before any of {strategy.size([])} members was done; "
            "run the same command again to go on, with more --minutes"
        )
    unfinished = strategy.jobs(population.trained_here.members)
    with contextlib.suppress(RunError):  # missing or damaged: made again
        board = read_scoreboard(population.path)
        averages = [None, *plan.options.averaging]
        names = [with_average(name, a) for a in averages for name in plan.fusions] + [*plan.soups]
        if plan.tta and not unfinished:
            names += [with_views(with_average(name, plan.tta.average)) for name in plan.fusions]
        records = [population.path / "fusions" / name / "fusion.json" for name in names]
        shown = {row["name"] for row in board.rows}
        fitted = {name for name, now in population.fits.items() if now}
        made_of = board.document.get("population")
        whole = fitted <= shown and all(record.is_file() for record in records)
        fitted_all = has_fits(population, plan.fits) and has_decoding(population, plan.decoding)
        fitted_all = fitted_all and has_views(population, plan.tta)
        whole = whole and (bool(unfinished) or fitted_all)
        if whole and made_of == population.fingerprint():
            return board
    own = population.trained_here
    make_soups(Given(own, plan.factory, splits, plan.options), plan.soups, progress)
    fits = () if unfinished else plan.fits
    notes = make_fits(population, fits, seed=plan.seed, progress=progress)
    if not unfinished:
        make_views(
            population,
            plan.tta,
            splits,
            plan.factory_of,
            seed=plan.seed,
            cpus=plan.options.threads,
            progress=progress,
        )
    notes += decode_run(population, None if unfinished else plan.decoding, seed=plan.seed)
    times = {}
    for i, member in enumerate(own.members):
        times[member.index] = milliseconds_per_image(
            member.model(plan.factory_of(member)), splits.val
        )
        progress("timing", i + 1, len(own.members), "")
    return compare_fusions(
        population,
        fusions=plan.fusions,
        soups=list(plan.soups),
        expected=strategy.size(own.members) + added,
        milliseconds=times,
        metrics=plan.metrics,
        replicates=plan.replicates,
        seed=plan.seed,
        notes=notes,
    )

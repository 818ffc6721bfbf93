"""The verbs of runs: recipes in, members, fusions and a scoreboard out."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polyfuse.cli.base import (
    Argument,
    BadParameter,
    Json,
    Option,
    Quiet,
    add_group,
    app,
    completing,
    echo,
    told,
)

if TYPE_CHECKING:
    from polyfuse.recipes.folder import Run

RUNNERS = ("local", "ray")
FORMATS = ("table", "csv", "markdown", "json")

recipes_app = add_group("recipes", "Recipes: list the shipped ones, copy one, check one.")


def complete_recipe(incomplete: str) -> list[str]:
    """Return the shipped recipes whose names begin so.

    Example:
        >>> complete_recipe("street_n")[0]
        'street_numbers'
    """
    from polyfuse.recipes.shipped import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    Argument(help="A recipe file, or a shipped recipe.", autocompletion=complete_recipe),
]
RunFolder = Annotated[Path, Argument(help="A RUN folder.", metavar="RUN")]
Out = Annotated[
    Path | None, Option("--out", "-o", metavar="FOLDER", help="RUN folder [runs/NAME].")
]
Set = Annotated[
    list[str] | None,
    Option(
        "--set", metavar="KEY.PATH=VALUE", help="Change the recipe: e.g. fit.epochs=30. Repeatable."
    ),
]
Quick = Annotated[bool, Option("--quick", help="The recipe's small variant.")]
Minutes = Annotated[
    float | None,
    Option(min=0, help="Stop training after so long; the same command goes on."),
]
Workers = Annotated[int | None, Option(min=1, help="Members side by side [as there is room].")]
RunnerName = Annotated[
    str,
    Option(
        "--runner",
        metavar="|".join(RUNNERS),
        help="Where members are trained.",
        autocompletion=completing(RUNNERS),
    ),
]
MirrorAddress = Annotated[
    str | None,
    Option("--mirror", metavar="ADDRESS", help="s3://bucket/run, ...: members come and go there."),
]
Address = Annotated[
    str | None,
    Option(metavar="HOST:PORT", help="Of a Ray cluster; it sees the RUN folder, too."),
]


@app.command(epilog="Example: polyfuse demo --quick")
def demo(
    out: Out = None,
    quick: Quick = False,
    settings: Set = None,
    minutes: Minutes = None,
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The embedded real data, end to end, in minutes."""
    where: dict[str, Any] = {"workers": workers}
    _run("demo", "street_numbers", out, quick, settings, minutes, where, as_json, quiet)


@app.command(epilog="Example: polyfuse run street_numbers --set fit.epochs=30 --out runs/longer")
def run(
    recipe: Recipe,
    out: Out = None,
    quick: Quick = False,
    settings: Set = None,
    minutes: Minutes = None,
    workers: Workers = None,
    runner: RunnerName = "local",
    address: Address = None,
    mirror: MirrorAddress = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe, or go on with one."""
    where = {"workers": workers, "runner": runner, "address": address, "mirror": mirror}
    _run("run", recipe, out, quick, settings, minutes, where, as_json, quiet)


def _run(
    verb: str,
    recipe: str,
    out: Path | None,
    quick: bool,
    settings: list[str] | None,
    minutes: float | None,
    where: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    with told(verb, as_json) as tell:
        from polyfuse.recipes.run import run as run_recipe
        from polyfuse.terminal import Bars

        # What a user's code or Ray prints on the way must not stand among the results.
        with Bars(quiet=quiet) as bars, redirect_stdout(sys.stderr):
            done = run_recipe(
                recipe,
                out=out,
                settings=settings or (),
                quick=quick,
                minutes=minutes,
                progress=bars,
                **where,
            )
        tell(_facts(done), lambda: _show(done))


@app.command(epilog="Example: polyfuse report runs/street_numbers --format markdown")
def report(
    folder: RunFolder,
    form: Annotated[
        str,
        Option(
            "--format",
            help=" | ".join(FORMATS),
            autocompletion=completing(FORMATS),
            metavar="FORMAT",
        ),
    ] = "table",
    as_json: Json = False,
) -> None:
    """The scoreboard of a run."""
    if form not in FORMATS:
        raise BadParameter(f"{form!r} is none of {', '.join(FORMATS)}", param_hint="--format")
    with told("report", as_json or form == "json") as tell:
        from polyfuse.recipes.folder import Run
        from polyfuse.terminal import escaped

        done = Run(folder)
        board = done.scoreboard
        texts: dict[str, Callable[[], str]] = {"csv": board.to_csv, "markdown": board.to_markdown}
        text = texts.get(form)
        tell(_facts(done), lambda: echo(escaped(text()), nl=False) if text else _show(done))


@app.command(epilog="Example: polyfuse predict runs/street_numbers new_images/ -o answers.csv")
def predict(
    folder: Annotated[
        Path, Argument(help="A RUN folder, or one of `polyfuse combine`.", metavar="FOLDER")
    ],
    data: Annotated[
        list[str],
        Argument(
            metavar="DATA",
            help="Of a RUN a folder of images, or a .npy array; else new predictions of each "
            "member.",
        ),
    ],
    out: Annotated[Path, Option("--out", "-o", help="The CSV file to write, or .npy.")],
    fusion: Annotated[
        str | None, Option(help="A row of the scoreboard [the best on validation].")
    ] = None,
    recipe: Annotated[
        Path | None, Option(help="The run's recipe, where it names your own code.")
    ] = None,
    length_run: Annotated[
        Path | None,
        Option(metavar="RUN", help="The run by which a decoding knows lengths: its length_model."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read new data with a run's best fusion, or new predictions with a combination."""
    combined = (folder / "combination.json").is_file()
    if combined and (fusion or recipe or length_run):
        given = "--fusion" if fusion else "--recipe" if recipe else "--length-run"
        raise BadParameter("it goes with a RUN folder, and this is a combination", param_hint=given)
    if not combined and len(data) > 1:
        raise BadParameter("a RUN folder takes one folder or array", param_hint="DATA")
    with told("predict", as_json) as tell:
        from polyfuse.cli.combining import answer
        from polyfuse.terminal import show_text

        facts = (
            answer(folder, data, out)
            if combined
            else _predicted(folder, Path(data[0]), out, fusion, recipe, length_run)
        )

        def show() -> None:
            for note in facts.get("notes", ()):
                show_text(f"Note: {note}")
            show_text(f"{out}: {facts['rows']:,} rows, read by {facts['fusion']}")

        tell(facts, show)


def _predicted(
    folder: Path,
    data: Path,
    out: Path,
    fusion: str | None,
    recipe: Path | None,
    length_run: Path | None,
) -> dict[str, Any]:
    """Read new images with a run's fusion; write the answers, and return what was done."""
    from polyfuse import durable, tables
    from polyfuse.recipes.folder import Run
    from polyfuse.tasks import rules_of

    run = Run(folder)
    lines = run.predict(data, fusion=fusion, recipe=recipe, length_run=length_run)
    text = tables.comma_separated(list(rules_of(run.population.task).titles), lines)
    durable.write_bytes(out, text.encode())
    return {"out": str(out), "rows": len(lines), "fusion": fusion or run.scoreboard.best}


@app.command(epilog="Example: polyfuse env")
def env(as_json: Json = False) -> None:
    """Versions and hardware, to paste into an issue."""
    with told("env", as_json) as tell:
        from polyfuse.environment import environment

        facts = environment()
        tell(facts, lambda: echo("\n".join(f"{k}: {v}" for k, v in facts.items())))


@recipes_app.command("ls", epilog="Example: polyfuse recipes ls")
def recipes_ls(as_json: Json = False) -> None:
    """List the shipped recipes."""
    with told("recipes ls", as_json) as tell:
        from polyfuse.recipes.shipped import purpose, shipped

        found = {name: purpose(path) for name, path in shipped().items()}
        facts = {"recipes": [{"name": n, "purpose": p} for n, p in found.items()]}
        tell(facts, lambda: echo("\n".join(f"{n}  {p}" for n, p in found.items())))


@recipes_app.command("cp", epilog="Example: polyfuse recipes cp street_numbers mine.yaml")
def recipes_cp(
    name: Recipe,
    to: Annotated[Path | None, Argument(help="File to write [NAME.yaml].")] = None,
    as_json: Json = False,
) -> None:
    """Copy a shipped recipe and own it."""
    with told("recipes cp", as_json) as tell:
        from polyfuse import durable
        from polyfuse.errors import RecipeError
        from polyfuse.recipes.shipped import find

        source = find(name)
        target = to or Path(source.name)
        if target.is_dir():
            target = target / source.name
        try:
            durable.write_bytes(target, source.read_bytes(), new=True)
        except FileExistsError:
            raise RecipeError(f"'{target}' exists; name another file") from None
        tell({"file": str(target)}, lambda: echo(f"{target}: polyfuse run {target}"))


@recipes_app.command("check", epilog="Example: polyfuse recipes check mine.yaml")
def recipes_check(recipe: Recipe, settings: Set = None, as_json: Json = False) -> None:
    """Find all faults of a recipe at once."""
    with told("recipes check", as_json) as tell:
        from polyfuse.recipes.run import load
        from polyfuse.recipes.shipped import find
        from polyfuse.recipes.source import read

        path = find(recipe)
        for quick in (True, False):
            plan = load(read(path), settings or (), quick=quick)
        facts = {"recipe": plan.name, "faults": []}
        tell(facts, lambda: echo(f"{path.name}: no faults"))


def _facts(run: "Run") -> dict[str, Any]:
    minutes = {"minutes": run.spent._asdict()} if run.spent else {}
    return {
        **minutes,
        "run": str(run.path),
        "submission": str(run.path / "submission.csv"),
        "leaderboard": dict(run.scoreboard.document),
    }


def _show(run: "Run") -> None:
    from polyfuse.terminal import show_table, show_text

    board = run.scoreboard
    for table in board.every_table():
        show_table(table)
    for line in board.summary():
        show_text(line)
    if run.spent:
        show_text(f"Time: {run.spent}")
    show_text(f"Submission: {run.path / 'submission.csv'}   Again: polyfuse report {run.path}")

"""The verb that puts a member that was trained elsewhere into a run."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polyfuse.cli.base import Argument, BadParameter, Json, Option, app, completing, pairs, told
from polyfuse.errors import printable

if TYPE_CHECKING:
    from polyfuse.adding import Added

SPLITS = ("train", "val", "test")
SPACES = ("prob", "logit", "log_prob")


@app.command(
    epilog="Example: polyfuse add runs/street_numbers --name resnet --predictions val=val.csv "
    "--predictions test=test.csv"
)
def add(
    folder: Annotated[Path, Argument(help="A RUN folder.", metavar="RUN")],
    name: Annotated[str, Option(help="What it is called on the scoreboard.")],
    predictions: Annotated[
        list[str] | None,
        Option(
            metavar="SPLIT=FILE",
            help="What it says of val, of test, and out of fold of train: .npy .npz .pt .csv "
            ".parquet. Repeatable.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, Option(metavar="CKPT", help="Its weights, in any format, instead.")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        Option(
            metavar="SPLIT=FILE",
            help="Beside predictions of strings: what it says of their lengths, of val and test.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            metavar="package.module:factory",
            help="What makes the checkpoint's model [the recipe's].",
        ),
    ] = None,
    key: Annotated[
        str | None, Option(metavar="KEY", help="The state dict inside the file [the usual one].")
    ] = None,
    recipe: Annotated[
        Path | None, Option(help="The run's recipe, where it names your own code.")
    ] = None,
    space: Annotated[
        str | None,
        Option(
            metavar="SPACE",
            help=f"Of the predictions: {' | '.join(SPACES)} [told].",
            autocompletion=completing(SPACES),
        ),
    ] = None,
    trained_on: Annotated[
        str | None,
        Option(
            metavar="FILE|none",
            help="Training rows it learned from: .npy, or a name a line; none: out of fold.",
        ),
    ] = None,
    parameters: Annotated[
        int | None, Option(min=0, metavar="N", help="How many it has [counted in a checkpoint].")
    ] = None,
    milliseconds: Annotated[
        float | None,
        Option(min=0, metavar="X", help="Of a forward pass a sample [measured of a checkpoint]."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a foreign member into a run, by its predictions alone or by its checkpoint."""
    if (checkpoint is None) == (not predictions):
        raise BadParameter("give this or --checkpoint, not both", param_hint="--predictions")
    files = pairs(predictions, "--predictions")
    for split, _ in files:
        if split not in SPLITS or [each for each, _ in files].count(split) > 1:
            raise BadParameter(f"give train, val and test once each, got {split!r}")
    if space is not None and space not in SPACES:
        raise BadParameter(f"{space!r} is none of {', '.join(SPACES)}", param_hint="--space")
    options: dict[str, Any] = {
        "predictions": dict(files) or None,
        "lengths": dict(pairs(lengths, "--lengths")) or None,
        "checkpoint": checkpoint,
        "model": model,
        "key": key,
        "recipe": recipe,
        "space": space,
        "trained_on": trained_on,
        "parameters": parameters,
        "milliseconds": milliseconds,
    }
    with told("add", as_json, stopped="stopped; nothing is added") as tell:
        from polyfuse.adding import add_member

        done = add_member(folder, name, **options)
        tell(_facts(folder, done), lambda: _show(folder, done))


def _facts(folder: Path, done: "Added") -> dict[str, Any]:
    board = done.scoreboard
    return {
        "run": str(folder),
        "member": {key: v for key, v in done.member.record.items() if key != "files"},
        "folder": str(done.member.path),
        "notes": list(done.notes),
        "leaderboard": None if board is None else dict(board.document),
    }


def _show(folder: Path, done: "Added") -> None:
    from polyfuse.terminal import show_table, show_text

    board = done.scoreboard
    if board is not None:
        for table in board.every_table():
            show_table(table)
        for line in board.summary():
            show_text(line)
    for note in done.notes:
        show_text(f"Note: {note}.")
    weights = "with its weights" if done.member.has_weights else "by its predictions alone"
    quoted = shlex.quote(str(folder))
    show_text(f"{printable(done.member.path)}: '{printable(done.member.name)}', {weights}")
    show_text(f"Next: polyfuse report {quoted}   polyfuse combine {quoted}")

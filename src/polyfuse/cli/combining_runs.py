"""Carry out `polyfuse combine` where what is combined is a RUN folder."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfuse.cli.base import BadParameter, show_scores, told

if TYPE_CHECKING:
    from polyfuse.combining_runs import Fitted


def is_run(typed: Sequence[str]) -> bool:
    """Tell whether what was typed is one RUN folder, and no files.

    Example:
        >>> is_run(["a.npy", "b.npy"])
        False
    """
    return len(typed) == 1 and (Path(typed[0]) / "labels" / "index.json").is_file()


def combine_run(
    folder: Path,
    options: Mapping[str, Any],
    others: Mapping[str, Any],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fit combinations on a run's held-out predictions and show its scoreboard.

    Args:
        folder: the RUN.
        options: of `combine_population`.
        others: by option, what goes with files only; nothing of it may be given.
        as_json: print one JSON document.
        quiet: no progress.
    """
    for option, value in others.items():
        if value:
            message = "it goes with files of predictions; a RUN folder knows it"
            raise BadParameter(message, param_hint=option)
    with told("combine", as_json) as tell:
        from polyfuse.combining_runs import combine_population
        from polyfuse.terminal import Bars

        with Bars(quiet=quiet) as bars:
            done = combine_population(folder, progress=bars, **options)
        tell(_facts(folder, done), lambda: _show(folder, done))


def _facts(folder: Path, done: "Fitted") -> dict[str, Any]:
    return {
        "run": str(folder),
        "fusions": {name: list(members) for name, members in done.members.items()},
        "notes": list(done.notes),
        "leaderboard": dict(done.scoreboard.document),
    }


def _show(folder: Path, done: "Fitted") -> None:
    """Print the scoreboard, the advice, why other rows were passed over, and what to type next."""
    from polyfuse.terminal import show_text

    show_scores(done.scoreboard)
    for line in done.notes:
        show_text(line)
    quoted = shlex.quote(str(folder))
    show_text(
        f"{folder / 'fusions'}: {', '.join(done.names)}   Next: polyfuse report {quoted}   "
        f"polyfuse predict {quoted} DATA --fusion {shlex.quote(done.names[0])} -o answers.csv"
        if done.names
        else f"Nothing was made; polyfuse report {quoted} shows what is there"
    )

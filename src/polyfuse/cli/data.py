"""The verbs of data: look at a data set, check a submission before it goes to the contest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from polyfuse.cli.base import (
    Argument,
    BadParameter,
    Json,
    Option,
    Quiet,
    add_group,
    told,
)
from polyfuse.cli.runs import Set, complete_recipe

if TYPE_CHECKING:
    from polyfuse.data.statistics import Statistics
    from polyfuse.submissions import Checked

ANNOTATIONS = (".json", ".mat", ".csv")

data_app = add_group("data", "Data: look at a data set, check a submission.")


@data_app.command(
    "check", epilog="Example: polyfuse data check submission.csv --sample mchar_sample_submit_A.csv"
)
def data_check(
    submission: Annotated[
        Path, Argument(metavar="SUBMISSION", help="The CSV file that goes to the contest.")
    ],
    sample: Annotated[Path, Option(metavar="FILE", help="The contest's sample submission.")],
    alphabet: Annotated[
        str, Option(metavar="CHARACTERS", help="What answers are made of.")
    ] = "0123456789",
    longest: Annotated[int, Option(min=1, help="Characters of an answer, at most.")] = 6,
    as_json: Json = False,
) -> None:
    """Compare a submission with the sample file: ids, their order, columns, encoding."""
    with told("data check", as_json) as tell:
        from polyfuse.submissions import check_submission

        found = check_submission(submission, sample, alphabet=alphabet, longest=longest)
        found.refuse()
        facts = {
            "submission": str(submission),
            "sample": str(sample),
            "rows": found.rows,
            "notes": [note._asdict() for note in found.notes],
        }
        tell(facts, lambda: _show_check(found, submission, sample))


def _show_check(found: "Checked", submission: Path, sample: Path) -> None:
    from polyfuse.terminal import show_text

    for note in found.notes:
        show_text(f"Note: {note.text}")
    show_text(f"{submission}: {found.rows:,} rows, the columns, ids and order of {sample}")


@data_app.command(
    "stats", epilog="Example: polyfuse data stats street_numbers -o street_numbers.svg"
)
def data_stats(
    data: Annotated[
        str,
        Argument(
            metavar="DATA",
            help="A recipe; a folder of the contest, of SVHN, or with a labels.csv; or one of its "
            "annotation files. Of a folder or file no image is read.",
            autocompletion=complete_recipe,
        ),
    ],
    out: Annotated[
        Path | None, Option("--out", "-o", metavar="FILE", help="A picture of it: .svg.")
    ] = None,
    settings: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What the strings of a data set are like: lengths, characters by position, box sizes."""
    if out is not None and out.suffix != ".svg":
        raise BadParameter("it is drawn as SVG: name a file.svg", param_hint="--out")
    is_recipe = not Path(data).is_dir() and Path(data).suffix.lower() not in ANNOTATIONS
    if settings and not is_recipe:
        raise BadParameter("it goes with a recipe", param_hint="--set")
    with told("data stats", as_json) as tell:
        name, found = _of_recipe(data, settings, quiet) if is_recipe else _of_files(data)
        if out is not None:
            from polyfuse import durable
            from polyfuse.data.drawing import drawn

            durable.write_bytes(out, drawn(name, found).encode())
        facts: dict[str, Any] = {"data": name, "picture": str(out) if out else None}
        facts["splits"] = {split: one.facts() for split, one in found.items()}
        tell(facts, lambda: _show_statistics(found, out))


def _of_files(path: str) -> tuple[str, dict[str, "Statistics"]]:
    from polyfuse.data.annotations import annotations_of

    return Path(path).resolve().name, annotations_of(path)


def _of_recipe(
    recipe: str, settings: list[str] | None, quiet: bool
) -> tuple[str, dict[str, "Statistics"]]:
    from polyfuse.data.statistics import statistics_of_split
    from polyfuse.errors import DataError
    from polyfuse.recipes.run import data_of, load
    from polyfuse.recipes.shipped import find
    from polyfuse.recipes.source import read
    from polyfuse.terminal import Bars

    plan = load(read(find(recipe)), settings or ())
    with Bars(quiet=quiet) as bars:
        splits = data_of(plan, bars)
    known = {name: statistics_of_split(split) for name, split in splits._asdict().items()}
    found = {name: one for name, one in known.items() if one is not None}
    if not found:
        raise DataError("no split has labels; there is nothing to count")
    return plan.name, found


def _show_statistics(found: dict[str, "Statistics"], out: Path | None) -> None:
    from polyfuse.data.drawing import length_lines, tables_of
    from polyfuse.terminal import show_table, show_text

    for split, one in found.items():
        left = f"; {one.left_out:,} entries are none and left out" if one.left_out else ""
        show_text(f"{split}: {one.rows:,} strings{left}. Characters in a string:\n")
        for line in length_lines(one):
            show_text(line)
        for table in tables_of(split, one):
            show_table(table)
    if out is not None:
        show_text(f"Drawn: {out}")

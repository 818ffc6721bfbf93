"""The verbs of data: look at a data set, check a submission before it goes to the contest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from polyfuse.cli.base import Argument, Json, Option, add_group, told

if TYPE_CHECKING:
    from polyfuse.submissions import Checked

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

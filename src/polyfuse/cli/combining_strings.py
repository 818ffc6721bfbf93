"""Carry out `polyfuse combine --kind strings`: a vote over submissions, from their files alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfuse.cli.base import BadParameter, told

if TYPE_CHECKING:
    from polyfuse.submissions import Voted

# Names that torch would have to be imported for; a test holds them against the source.
VOTES = ("string_vote", "position_vote", "aligned_vote")
FEW = 10  # changed rows that are shown


def combine_strings(
    files: Sequence[str],
    out: Path | None,
    options: Mapping[str, Any],
    others: Mapping[str, Any],
    *,
    changes: Path | None,
    as_json: bool,
) -> None:
    """Vote over submissions and write the answers.

    Args:
        files: of ids and answers.
        out: the CSV file to write.
        options: of `combine_submissions`.
        others: by option, what goes with predictions only; nothing of it may be given.
        changes: the CSV file of rows that the vote changed, or None.
        as_json: print one JSON document.
    """
    _refuse_others(others)
    if out is None or out.suffix != ".csv":
        raise BadParameter("name the file to write: -o voted.csv", param_hint="--out")
    methods = options["method"] or ["string_vote"]
    if len(methods) > 1 or methods[0] not in VOTES:
        raise BadParameter(f"strings are voted by one of {', '.join(VOTES)}", param_hint="--method")
    _refuse_inputs(files, {"--out": out, "--changes": changes})
    with told("combine", as_json, stopped="stopped; nothing is written") as tell:
        from polyfuse.submissions import combine_submissions

        done = combine_submissions(files, **{**options, "method": methods[0]})
        done.save(out)
        if changes:
            done.save_changes(changes)
        tell(_facts(done, out, methods[0]), lambda: _show(done, out, methods[0], changes))


def _refuse_others(others: Mapping[str, Any]) -> None:
    for option, value in others.items():
        if value:
            message = "it goes with predictions, and --kind strings votes over answers alone"
            raise BadParameter(message, param_hint=option)


def _refuse_inputs(files: Sequence[str], targets: Mapping[str, Path | None]) -> None:
    read = {Path(file).absolute() for file in files}
    for option, target in targets.items():
        if target and target.absolute() in read:
            raise BadParameter(f"'{target}' is one of the submissions", param_hint=option)


def _facts(done: "Voted", out: Path, method: str) -> dict[str, Any]:
    agreement = done.agreement
    columns = (done.files, done.weights, agreement.with_vote.tolist(), agreement.alone.tolist())
    keys = ("name", "weight", "as_voted", "alone")
    return {
        "out": str(out),
        "rows": len(done.submission.ids),
        "method": method,
        "files": [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)],
        "agreement": agreement.pairs.tolist(),
        "unanimous": agreement.unanimous,
        "changed": len(done.changes),
        "changes": [vars(one) | {"said": list(one.said)} for one in done.changes[:FEW]],
        "left_out": [fault._asdict() for fault in done.left_out],
        "notes": list(done.notes),
    }


def _show(done: "Voted", out: Path, method: str, changes: Path | None) -> None:
    """Print who agrees with whom, what changed, what was left out, and what to type next."""
    from polyfuse.submissions.base import listed
    from polyfuse.tables import Table
    from polyfuse.terminal import show_table, show_text

    for table in done.agreement.tables(done.files, done.weights):
        show_table(table)
    rows = [
        [one.id, one.before, one.after, f"{one.votes} of {len(one.said)}"]
        for one in done.changes[:FEW]
    ]
    more = len(done.changes) - len(rows)
    title = f"Changed from {done.files[0]}: {len(done.changes):,} of {len(done.submission.ids):,}"
    show_table(Table(title, ["row", "before", "after", "files that say so"], rows))
    if more > 0 and not changes:
        show_text(f"and {more:,} more; --changes FILE.csv writes them all")
    if done.left_out:
        show_text(f"Left out, since broken:\n{listed(done.left_out)}")
    for note in done.notes:
        show_text(f"Note: {note}")
    show_text(f"{out}: {len(done.submission.ids):,} rows by {method}")

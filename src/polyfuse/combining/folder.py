"""The folder of a combination.

    OUT/combination.json               what was fitted, of which members; sizes and digests of all
        predictions/{val,test}.npy     of the row in use, beside *_ids.json where rows have ids
        leaderboard.json  submission.csv

It appears whole or not at all. Nothing in it is executed when it is read; see saved.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse import durable, records
from polyfuse.combining.base import Given
from polyfuse.combining.documents import document_of
from polyfuse.combining.fits import Alone
from polyfuse.combining.judging import Row
from polyfuse.combining.saved import RECORD, SCHEMA, read_record
from polyfuse.combining.submissions import submission
from polyfuse.errors import RunError, printable
from polyfuse.predictions import fingerprint, write

Array = NDArray[Any]


def refuse_foreign(out: Path) -> dict[str, Any] | None:
    """Refuse a folder that is there and is no combination, or has more in it.

    Returns:
        The record of the combination that is there, or None.

    Raises:
        RunError: as said; nothing of it is touched.

    Example:
        >>> refuse_foreign(Path("/no/such/folder"))
    """
    if not out.exists() and not out.is_symlink():
        return None
    shown = printable(out)
    if out.is_symlink() or not out.is_dir():
        raise RunError(f"'{shown}' is no folder; name another: -o FOLDER")
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
    if not found:
        return None
    if RECORD not in found:
        raise RunError(f"'{shown}' is there, and is no combination; name another: -o FOLDER")
    record = read_record(out)
    strange = sorted(found - {RECORD, *record["files"]})
    if strange:
        raise RunError(
            f"'{shown}' has '{printable(strange[0])}'{_more(strange)}, which polyfuse did not "
            "write; move it away, or name another folder: -o FOLDER"
        )
    return record


def _refuse_other(out: Path, given: Given) -> None:
    """Refuse to replace a combination of other members or labels."""
    record = refuse_foreign(out)
    if record is None:
        return
    prints = [facts["fingerprint"] for facts in record["members"]]
    if prints != list(given.fingerprints) or record["labels"] != _labels(given):
        raise RunError(
            f"'{printable(out)}' is a combination of other members or labels; name another "
            "folder: -o FOLDER, or remove it"
        )


def write_folder(
    out: Path,
    given: Given,
    row: Row,
    leaderboard: Mapping[str, Any],
    weights: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write a combination, whole or not at all.

    Args:
        out: the folder: new, empty, or of an earlier combination of the same.
        given: what the combination was made of.
        row: that is in use.
        leaderboard: the scoreboard's document.
        weights: by method and member.
        settings: metric, folds and seed.

    Returns:
        The folder.

    Raises:
        RunError: the folder is something else.
        DiskError: the file system refused.
    """
    _refuse_other(out, given)
    durable.make_folder(out.absolute().parent)
    with durable.new_folder(out) as fresh:
        durable.make_folder(fresh / "predictions")
        for split, said in row.said.items():
            write(fresh / "predictions" / f"{split}.npy", said)
            ids = given.splits[split].ids
            if ids is not None:
                durable.write_json(fresh / "predictions" / f"{split}_ids.json", list(ids))
        durable.write_json(fresh / "leaderboard.json", leaderboard)
        durable.write_bytes(fresh / "submission.csv", _submission(given, row).encode())
        record = {
            **_record(given, row),
            "weights": weights,
            **settings,
            "files": records.digests(fresh),
        }
        durable.write_json(fresh / RECORD, record)
        durable.remove_folder(out)  # an earlier one, of the same members and labels
    return out


def _record(given: Given, row: Row) -> dict[str, Any]:
    index = row.members[0]
    return {
        "schema": SCHEMA,
        "task": given.kind,
        "use": row.name,
        "members": [
            {"name": name, "fingerprint": print_, "space": space, "used": number in row.members}
            for number, (name, print_, space) in enumerate(
                zip(given.names, given.fingerprints, given.spaces, strict=True)
            )
        ],
        "labels": _labels(given),
        "classes": None if given.classes is None else list(given.classes),
        "decided": given.decided,
        "shape": list(given.val.said.shape[2:]),
        "levels": list(given.levels),
        "blank": given.blank,
        "columns": list(given.columns),
        "fitted": document_of(Alone(member=index) if row.fitted is None else row.fitted),
    }


def _submission(given: Given, row: Row) -> str:
    split = "test" if "test" in row.said else "val"
    return submission(
        row.said[split],
        given.kind,
        ids=given.splits[split].ids,
        columns=given.columns,
        classes=given.classes,
        levels=given.levels,
        blank=given.blank,
    )


def _labels(given: Given) -> str:
    return fingerprint(np.asarray(given.val.labels))


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""

"""Combine submissions from their files alone: checked first, joined by ids, then voted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from polyfuse import durable, tables
from polyfuse.errors import DataError, printable
from polyfuse.parameters import one_of
from polyfuse.submissions.agreement import Agreement, Change, agreement_of, changes_of
from polyfuse.submissions.base import (
    ACCEPTABLE,
    DIGITS,
    Fault,
    Submission,
    accepted,
    listed,
    shown,
)
from polyfuse.submissions.checking import read_sample
from polyfuse.submissions.contents import suspicious, zeros_lost
from polyfuse.submissions.reading import read_submission
from polyfuse.submissions.reference import reference_of, unlike
from polyfuse.submissions.votes import VOTES


@dataclass(frozen=True)
class Voted:
    """What several submissions say together.

    Attributes:
        submission: ids and voted answers under the names that came in.
        files: that had a vote.
        weights: of their votes.
        agreement: of the files.
        changes: rows in which the vote says something else than the first file.
        left_out: faults of files without a vote.
        notes: what is worth knowing of those that have one.
    """

    submission: Submission
    files: tuple[str, ...]
    weights: tuple[float, ...]
    agreement: Agreement = field(repr=False)
    changes: Sequence[Change] = field(repr=False)
    left_out: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write the submission, whole or not at all.

        Raises:
            DiskError: the file system refused.
        """
        done = self.submission
        return _written(Path(path), done.columns, zip(done.ids, done.answers, strict=True))

    def save_changes(self, path: str | Path) -> Path:
        """Write the rows that the vote changed: before, after, votes, and what each file says.

        Raises:
            DiskError: the file system refused.
        """
        head = [self.submission.columns[0], "before", "after", "votes", *self.files]
        lines = [[one.id, one.before, one.after, one.votes, *one.said] for one in self.changes]
        return _written(Path(path), head, lines)


def combine_submissions(
    paths: Sequence[str | Path],
    *,
    method: str = "string_vote",
    weights: Sequence[float] | Mapping[str, float] | None = None,
    sample: str | Path | None = None,
    alphabet: str = DIGITS,
    longest: int = 6,
    accept: Collection[str] = (),
    broken: str = "error",
) -> Voted:
    r"""Vote over the answers of several submissions, none of which may be broken.

    Rows are joined by their ids. They come out in the order of the sample file, or of the first
    submission where there is none. Answers are texts: "007" stays as it is.

    Args:
        paths: CSV files of ids and answers; the best one first, since ties go to it.
        method: "string_vote", "position_vote" or "aligned_vote".
        weights: one a file, in order or by the file's name; 1 each where None.
        sample: the contest's sample file.
        alphabet: characters that answers are made of.
        longest: characters of an answer, at most.
        accept: kinds of faults that are meant to be: "empty_answers", "constant_suffix", ...
        broken: "error", or "leave_out" to vote without the broken files.

    Raises:
        DataError: the faults of all files at once; weights that are none; too few files.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, said in (("a", "007"), ("b", "001"), ("c", "001")):
        ...     _ = (folder / name).write_text(f"id,code\nx,{said}\ny,42\n")
        >>> done = combine_submissions([folder / "a", folder / "b", folder / "c"])
        >>> done.submission.answers, [(one.before, one.after) for one in done.changes]
        (['001', '42'], [('007', '001')])
    """
    one_of("method", method, tuple(VOTES))
    one_of("broken", broken, ("error", "leave_out"))
    names = _names(paths)
    shares = _weights(weights, names)
    wanted = read_sample(sample) if sample is not None else None
    found, faults = _read_all(paths, wanted, alphabet, longest)
    refused = accepted(faults, accept)
    if refused and broken == "error":
        raise DataError(_refusal(refused, len(paths)))
    bad = {fault.file for fault in refused}
    sound = [one for one in found if one.name not in bad]
    if len(sound) < 2:
        told = f"\n{listed(refused)}" if refused else ""
        raise DataError(f"a vote needs two sound submissions or more, got {len(sound)}{told}")
    ids = list((wanted or sound[0]).ids)
    answers = [_in_order(one, ids) for one in sound]
    each = tuple(shares[one.name] for one in sound)
    called = tuple(names[one.name] for one in sound)
    if not any(each):
        raise DataError("the weights of all files that vote are 0; give one of them more")
    said = VOTES[method](answers, each)
    return Voted(
        submission=Submission("", (wanted or sound[0]).columns, ids, said),
        files=called,
        weights=each,
        agreement=agreement_of(answers, said),
        changes=changes_of(ids, answers, said),
        left_out=tuple(refused),
        notes=tuple(_copies(called, answers)),
    )


def _read_all(
    paths: Sequence[str | Path], wanted: Submission | None, alphabet: str, longest: int
) -> tuple[list[Submission], list[Fault]]:
    """Return the files that can be read, and the faults of all, file by file."""
    found, faults = [], []
    for path in paths:
        one, own = read_submission(path)
        found += [one] if one is not None else []
        faults += own
    if found:
        reference = wanted or reference_of(found)
        for one in found:
            faults += unlike(one, reference)
            faults += suspicious(one, alphabet=alphabet, longest=longest)
    order = [printable(path) for path in paths]
    return found, sorted([*faults, *zeros_lost(found)], key=lambda fault: order.index(fault.file))


def _names(paths: Sequence[str | Path]) -> dict[str, str]:
    """Return what each file is called, by its path: its stem, where no other has the same."""
    files = [printable(path) for path in paths]
    twice = sorted({name for name in files if files.count(name) > 1})
    if twice:
        raise DataError(f"named more than once: {shown(twice)}; one that counts more has a weight")
    stems = [Path(name).stem for name in files]
    return dict(zip(files, stems if len(set(stems)) == len(stems) else files, strict=True))


def _weights(given: Any, names: Mapping[str, str]) -> dict[str, float]:
    """Return the weight of each file, by its path."""
    if given is None:
        return dict.fromkeys(names, 1.0)
    if isinstance(given, Mapping):
        given = _by_name(given, names)
    numbers = [float(weight) for weight in given]
    if len(numbers) != len(names) or not all(isfinite(w) and w >= 0 for w in numbers):
        raise DataError(
            f"weights must be {len(names)} finite numbers of 0 and more, one a file in their "
            f"order, got {printable(list(given))}"
        )
    return dict(zip(names, numbers, strict=True))


def _by_name(given: Mapping[str, float], names: Mapping[str, str]) -> list[float]:
    missing = [called for path, called in names.items() if not {path, called} & set(given)]
    strange = sorted(set(given) - set(names) - set(names.values()))
    if missing or strange:
        raise DataError(
            "weights by name are one a file"
            + (f"; there is none for {shown(missing)}" if missing else "")
            + (f"; no file is called {shown(strange)}" if strange else "")
            + f"; the files are {', '.join(names.values())}"
        )
    return [given[path] if path in given else given[called] for path, called in names.items()]


def _refusal(faults: Sequence[Fault], count: int) -> str:
    files = len({fault.file for fault in faults})
    meant = next((fault.kind for fault in faults if fault.kind in ACCEPTABLE), None)
    fix = (
        "; what is meant to look so is accepted by its word in brackets: "
        f"--accept {meant} (accept=['{meant}'])"
    )
    return (
        f"{files} of {count} submissions look broken:\n{listed(faults)}\n"
        "repair them, or vote without them: --broken leave_out (broken='leave_out')"
        + (fix if meant else "")
    )


def _in_order(one: Submission, ids: Sequence[str]) -> list[str]:
    by_id = dict(zip(one.ids, one.answers, strict=True))
    return [by_id[name] for name in ids]


def _copies(files: Sequence[str], answers: Sequence[Sequence[str]]) -> list[str]:
    first: dict[tuple[str, ...], str] = {}
    notes = []
    for name, said in zip(files, answers, strict=True):
        original = first.setdefault(tuple(said), name)
        if original != name:
            notes.append(f"{name} says the same as {original} in every row: it votes twice")
    return notes


def _written(path: Path, head: Sequence[str], lines: Any) -> Path:
    text = tables.comma_separated(head, [list(line) for line in lines])
    durable.write_bytes(path, text.encode())
    return path

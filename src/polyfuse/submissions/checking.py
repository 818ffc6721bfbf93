"""Check a submission against the contest's sample file, as the contest will, but all at once."""

from dataclasses import dataclass
from pathlib import Path

from polyfuse.errors import DataError
from polyfuse.submissions.base import DIGITS, Fault, Submission, accepted, listed
from polyfuse.submissions.contents import suspicious, zeros_lost_alone
from polyfuse.submissions.reading import read_submission
from polyfuse.submissions.reference import unlike


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        rows: of the submission.
        faults: for which a contest refuses the file, or scores other rows than were meant.
        notes: what its answers look like; a sample file itself says "0" everywhere.
    """

    rows: int
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]

    @property
    def accepted(self) -> bool:
        """Whether the file has the sample's columns and ids in the sample's order."""
        return not self.faults

    def refuse(self) -> None:
        """Raise what is wrong, all of it; nothing where the file is accepted.

        Raises:
            DataError: with a line a fault.
        """
        if self.faults:
            raise DataError(
                f"{len(self.faults)} faults, and the file would not be accepted:\n"
                + listed([*self.faults, *self.notes])
            )


def check_submission(
    path: str | Path, sample: str | Path, *, alphabet: str = DIGITS, longest: int = 6
) -> Checked:
    r"""Compare a submission with the contest's sample file: ids, their order, columns, encoding.

    Args:
        path: the submission.
        sample: what the contest gave out.
        alphabet: characters that answers are made of.
        longest: characters of an answer, at most.

    Raises:
        DataError: a sample file that is none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "sample.csv").write_text("file_name,file_code\n0.png,0\n1.png,0\n")
        >>> _ = (folder / "mine.csv").write_text("file_name,file_code\n1.png,42\n0.png,7\n")
        >>> found = check_submission(folder / "mine.csv", folder / "sample.csv")
        >>> found.accepted, [fault.kind for fault in found.faults]
        (False, ['order'])
    """
    wanted = read_sample(sample)
    found, faults = read_submission(path)
    if found is None:
        return Checked(0, tuple(faults), ())
    faults = [*faults, *unlike(found, wanted, ordered=True)]
    notes = [*suspicious(found, alphabet=alphabet, longest=longest), *zeros_lost_alone(found)]
    return Checked(len(found.ids), tuple(faults), tuple(notes))


def read_sample(path: str | Path) -> Submission:
    """Read a sample file, whose answers do not matter.

    Raises:
        DataError: it has faults itself, all of them told.

    Example:
        >>> read_sample("/no/such.csv")
        Traceback (most recent call last):
        polyfuse.errors.DataError: the sample file is not sound:
        /no/such.csv: cannot read '/no/such.csv': No such file or directory [unreadable]
    """
    found, faults = read_submission(path)
    faults = accepted(faults, ("bom", "separator"))  # that the contest gave it out so is its affair
    own = [*faults, *(unlike(found, found) if found is not None else ())]
    if found is None or own:
        raise DataError(f"the sample file is not sound:\n{listed(own)}")
    return found

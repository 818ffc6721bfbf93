"""Every error polyfuse raises on purpose.

PolyfuseError               the family; `except PolyfuseError` catches all of them
|- RecipeError              faults of a recipe, all at once, each with its line
|- DataError                inputs, labels or predictions that do not fit together
|- CheckpointError          a weights file that is damaged, foreign or does not fit
|- RunError                 a RUN folder that is foreign, half-written or in use
|- TrainingError            a member that could not be trained
|- DiskError                the file system said no: full, read-only, failing
`- MissingExtraError        an optional package is not installed
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class PolyfuseError(Exception):
    """An error whose message states the fact, what was received, and the fix."""


class RecipeError(PolyfuseError):
    """A recipe with one or more faults; the message lists all of them."""


class DataError(PolyfuseError):
    """Inputs, labels or predictions that do not fit together."""


class CheckpointError(PolyfuseError):
    """A weights file that is damaged, foreign, or does not fit the model."""


class RunError(PolyfuseError):
    """A RUN folder that is foreign, half-written, incomplete or in use."""


class TrainingError(PolyfuseError):
    """A member that could not be trained."""


class DiskError(PolyfuseError):
    """The file system refused: full, read-only, not permitted, or failing."""


class MissingExtraError(PolyfuseError):
    """An optional package is not installed; the message names the command that installs it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to `word`, else nothing.

    Example:
        >>> did_you_mean("mean_logits", ["mean_logit", "hard_vote"])
        "; did you mean 'mean_logit'?"
        >>> did_you_mean("zebra", ["mean_logit"])
        ''
    """
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{printable(near[0])}'?" if near else ""


def refuse_unknown(title: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse options that something does not take.

    Raises:
        PolyfuseError: the first of them, with the nearest known one.

    Example:
        >>> refuse_unknown("slerp", ["tt"], ["t"])
        Traceback (most recent call last):
        polyfuse.errors.PolyfuseError: slerp has no option 'tt'; did you mean 't'?; it takes t
    """
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "no options"
            near = did_you_mean(name, known)
            raise PolyfuseError(
                f"{title} has no option '{printable(name)}'{near}; it takes {takes}"
            )


def printable(text: object, limit: int = 200) -> str:
    r"""Return text from a stranger's file with control characters escaped, cut to `limit`.

    Example:
        >>> printable("a\x1b[31mred")
        'a\\x1b[31mred'
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."

"""Look at the answers of submissions: what no reader of images says, but a damaged file does."""

from collections import Counter
from collections.abc import Sequence

from polyfuse.submissions.base import Fault, Submission, shown

FEW = 20  # rows from which a pattern is one
_CHANCE = 1e-9  # of a run of equal answers at the end of a sound file
_MOST = 0.95  # of the answers, which end alike
_SAME = 0.8  # of the answers, which have the same length
_PART = 3  # models agree on so large a part of their answers, 1 / 3, or more


def suspicious(one: Submission, *, alphabet: str, longest: int) -> list[Fault]:
    """Return what looks broken in one file's answers.

    Args:
        one: the file.
        alphabet: characters that answers are made of.
        longest: characters of an answer, at most.

    Example:
        >>> one = Submission("a.csv", ("id", "x"), ["p", "q", "r"], ["12", "", "4.0"])
        >>> [fault.kind for fault in suspicious(one, alphabet="0123456789", longest=6)]
        ['empty_answers', 'alphabet']
    """
    found = [
        *_empty(one.answers),
        *_foreign(one.answers, alphabet),
        *_long(one.answers, longest),
        *_repeated(one.answers),
    ]
    return [Fault(one.name, kind, text) for kind, text in found]


def zeros_lost_alone(one: Submission) -> list[Fault]:
    """Return a fault where a file looks as if a spreadsheet had read its answers as numbers.

    Nearly all answers have one length, the others are shorter, and none begins with a zero: so
    looks "0071" among others of four digits that has become "71".

    Example:
        >>> answers = ["7131", "2468"] * 20 + ["71", "907"]
        >>> one = Submission("a.csv", ("id", "x"), list(map(str, range(42))), answers)
        >>> [fault.kind for fault in zeros_lost_alone(one)]
        ['lost_zeros']
    """
    said = [answer for answer in one.answers if answer]
    if len(said) < FEW or not all(_is_number(answer) for answer in said):
        return []
    length, count = Counter(map(len, said)).most_common(1)[0]
    short = [answer for answer in said if len(answer) < length]
    sound = any(_has_zero(answer) or len(answer) > length for answer in said)
    if sound or length < 2 or count < _SAME * len(said) or len(short) < 2:
        return []
    fact = (
        f"{count:,} of {len(said):,} answers have {length} characters, {len(short):,} have fewer "
        f"({shown(short)}), and none begins with 0: {_SPREADSHEET}"
    )
    return [Fault(one.name, "lost_zeros", fact)]


def zeros_lost(files: Sequence[Submission]) -> list[Fault]:
    """Return the files that say "7" where others say "007", and have no leading zero at all.

    Args:
        files: several, of the same contest.

    Example:
        >>> files = [Submission(n, ("id", "x"), ["p", "q"], said)
        ...          for n, said in (("a", ["007", "01"]), ("b", ["7", "1"]))]
        >>> [(fault.file, fault.kind) for fault in zeros_lost(files)]
        [('b', 'lost_zeros')]
    """
    asked = {n for one in files for n, a in zip(one.ids, one.answers, strict=True) if _has_zero(a)}
    suspects = [one for one in files if asked and not any(map(_has_zero, one.answers))]
    return [fault for one in suspects for fault in _stripped(one, _others(files, one, asked))]


_SPREADSHEET = "a spreadsheet read them as numbers; write the file again, with answers as text"


def _others(files: Sequence[Submission], one: Submission, asked: set[str]) -> dict[str, str]:
    """Return what most of the other files say in each of these rows."""
    said: dict[str, Counter[str]] = {}
    for other in files:
        if other is not one:
            for name, answer in zip(other.ids, other.answers, strict=True):
                if name in asked:
                    said.setdefault(name, Counter())[answer] += 1
    return {name: answers.most_common(1)[0][0] for name, answers in said.items()}


def _stripped(one: Submission, others: dict[str, str]) -> list[Fault]:
    rows = zip(one.ids, one.answers, strict=True)
    asked = [(answer, others[name]) for name, answer in rows if _has_zero(others.get(name, ""))]
    lost = [f"'{own}' for '{said}'" for own, said in asked if own == (said.lstrip("0") or "0")]
    if len(lost) < 2 or _PART * len(lost) < len(asked):
        return []
    fact = (
        f"no answer begins with 0, and {len(lost):,} are what other files say without its zeros "
        f"({shown(lost, quote='')}): {_SPREADSHEET}"
    )
    return [Fault(one.name, "lost_zeros", fact)]


def _empty(answers: Sequence[str]) -> list[tuple[str, str]]:
    empty = [number for number, answer in enumerate(answers, 1) if not answer]
    numbers = shown(empty, quote="")
    fact = f"empty answers, {len(empty):,}: in rows {numbers}; fill them, or leave the file out"
    return [("empty_answers", fact)] if empty else []


def _foreign(answers: Sequence[str], alphabet: str) -> list[tuple[str, str]]:
    known = set(alphabet)
    odd = [answer for answer in answers if not known.issuperset(answer)]
    if not odd:
        return []
    strange = sorted(set("".join(odd)) - known)
    floats = all(answer.endswith(".0") for answer in odd)
    fix = (
        "they went through floating point; write them as text"
        if floats
        else "name all characters that answers are made of as the alphabet, or repair the file"
    )
    fact = (
        f"answers with characters that are none of {shown([alphabet], quote='')}, {len(odd):,}: "
        f"{shown(strange)}, as in {shown(odd)}; {fix}"
    )
    return [("alphabet", fact)]


def _long(answers: Sequence[str], longest: int) -> list[tuple[str, str]]:
    long = [answer for answer in answers if len(answer) > longest]
    fact = (
        f"answers of more than {longest} characters, {len(long):,}: {shown(long)}; state the "
        "longest there is, or repair the file"
    )
    return [("too_long", fact)] if long else []


def _repeated(answers: Sequence[str]) -> list[tuple[str, str]]:
    """Return what says the same in every row, at the end of every answer, or in the last rows."""
    if len(answers) < FEW:
        return []
    if len(set(answers)) == 1:
        fact = f"all {len(answers):,} answers are {shown(answers[:1])}; is it the sample file?"
        return [("constant_answers", fact)]
    return [*_suffix(answers), *_tail(answers)]


def _suffix(answers: Sequence[str]) -> list[tuple[str, str]]:
    last, count = Counter(answer[-1:] for answer in answers).most_common(1)[0]
    if not last or count < _MOST * len(answers):
        return []
    ending = [answer[::-1] for answer in answers if answer.endswith(last)]
    first, last = min(ending), max(ending)  # what these two share, all share
    pairs = zip(first, last, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(first))
    suffix = first[:shared][::-1]
    fact = (
        f"{count:,} of {len(answers):,} answers end with {shown([suffix])}; are blanks written as "
        "characters, or is the last head untrained?"
    )
    return [("constant_suffix", fact)]


def _tail(answers: Sequence[str]) -> list[tuple[str, str]]:
    """Return a fault where the last rows are equal, and chance does not make them so."""
    length = next((i for i, said in enumerate(reversed(answers)) if said != answers[-1]), 0)
    before = answers[: len(answers) - length]
    share = (before.count(answers[-1]) + 1) / (len(before) + 2)
    if length < FEW or share**length > _CHANCE:
        return []
    fact = (
        f"the last {length:,} rows all say {shown(answers[-1:])}; was it written before the "
        "predictions were complete?"
    )
    return [("constant_tail", fact)]


def _is_number(answer: str) -> bool:
    return answer.isascii() and answer.isdigit()


def _has_zero(answer: str) -> bool:
    return len(answer) > 1 and answer.startswith("0")

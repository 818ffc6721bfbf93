"""What a list of write-like calls tells: is everything on disk before something relies on it?

A killed process loses nothing that it wrote, so kills cannot show a sync that is missing. The
order of the calls can:

- a file is synced after its last write before it, or a folder that it is in, is renamed;
- the names in a folder are synced before it is renamed, and after a name in it was committed;
- a claim in a journal comes after the sync of the data that it is about.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

COMMITS = frozenset({"replace", "rename", "link"})
SYNCS = frozenset({"fsync", "fdatasync"})
TEMPORARY = re.compile(r"\.([^/]+)\.polyfuse-\d+-[0-9a-f]+\.tmp(?=/|$)")
JOURNAL = ".polyfuse-0-1.tmp"
DRAFT = ".polyfuse-0-0.tmp"
Stretch = tuple[str, int, int]  # file, start, length
Claimed = Callable[[Any], Iterable[Stretch]]


class Call(NamedTuple):
    """A write-like call: its kind, the path it works on, and what of it."""

    kind: str
    path: str
    start: int = 0
    length: int = 0
    claim: Any = None  # what is written to a journal
    source: str = ""  # of a rename

    @property
    def touched(self) -> str:
        """The final name that the call is about."""
        return final(self.path)


def final(name: str) -> str:
    """Return the name that a temporary one stands for."""
    return TEMPORARY.sub(r"\1", name)


def overlap(one: Stretch, other: Stretch) -> bool:
    return one[0] == other[0] and one[1] < other[1] + other[2] and other[1] < one[1] + one[2]


def draft_stretches(journal: str, claim: Any, claimed: Claimed) -> Iterator[Stretch]:
    """Yield what a claim in a journal is about, as paths."""
    draft = journal.removesuffix(JOURNAL) + DRAFT
    for name, start, length in claimed(claim):
        yield os.path.normpath(os.path.join(draft, name)), start, length


def rewritten(calls: Iterable[Call], claims: Iterable[Stretch]) -> list[Stretch]:
    """Return the claimed stretches that were written again."""
    written = [(call.path, call.start, call.length) for call in calls if call.kind == "pwrite"]
    return [claim for claim in claims if any(overlap(claim, stretch) for stretch in written)]


def out_of_order(calls: Iterable[Call], claimed: Claimed) -> list[str]:
    """Return what was relied on before it was on disk."""
    faults: list[str] = []
    data: list[Stretch] = []  # not on disk yet
    names: set[str] = set()  # folders whose names are not

    for call in calls:
        if call.kind in SYNCS:
            data = [stretch for stretch in data if stretch[0] != call.path]
            names.discard(call.path)
        elif call.kind in COMMITS:
            late = {path for path, _, _ in data if below(path, call.source)}
            late |= {path for path in names if below(path, call.source)}
            faults += [f"{path} was committed before it was on disk" for path in sorted(late)]
            names.add(os.path.dirname(call.path) or ".")
        elif call.claim is not None:
            about = list(draft_stretches(call.path, call.claim, claimed))
            early = [a for a in about if any(overlap(a, stretch) for stretch in data)]
            faults += [f"{stretch} was claimed before it was on disk" for stretch in early]
        elif call.kind in ("open", "write", "pwrite", "ftruncate", "posix_fallocate"):
            data.append((call.path, call.start, call.length))
        if call.kind in ("open", "mkdir"):
            folder = os.path.dirname(call.path) or "."
            if call.kind == "mkdir" or final(folder) != folder:
                names.add(folder)
    return faults + [f"the names in {n} are not on disk" for n in sorted(names) if final(n) == n]


def below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")

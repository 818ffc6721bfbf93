"""Drafts under the crash harness: a toy command that writes one file or a folder, and mutants."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from crash import Scenario, replace_in_durable
from crash_trace import Stretch
from polyfuse import durable
from polyfuse.errors import RunError

CHUNK = 7
ONE = {"": 25}
SEVERAL = {"a.bin": 14, "b.bin": 8, "c.bin": 3, "index.json": 2}


def chunks(sizes: dict[str, int]) -> Iterator[Stretch]:
    for name, size in sizes.items():
        for start in range(0, size, CHUNK):
            yield name, start, min(CHUNK, size - start)


def content(name: str, start: int, length: int) -> bytes:
    if name.endswith(".json"):
        return b"[]"[start : start + length]
    return bytes((1 + len(name) + 3 * i) % 251 for i in range(start, start + length))


def claimed(claim: Any) -> Iterator[Stretch]:
    """Return what a claim of the toy command is about."""
    return (tuple(stretch) for stretch in claim)


def step(output: durable.Draft, stretches: list[Stretch]) -> None:
    """Write some chunks, then claim them."""
    for name, start, length in stretches:
        output.write(name, start, content(name, start, length))
    output.claim(stretches)


def claim_first(output: durable.Draft, stretches: list[Stretch]) -> None:
    output.claim(stretches)
    for name, start, length in stretches:
        output.write(name, start, content(name, start, length))


def write(
    folder: Path,
    sizes: dict[str, int],
    *,
    resume: bool = False,
    threads: int = 1,
    step: Callable[[durable.Draft, list[Stretch]], None] = step,
    forgetful: bool = False,
) -> None:
    """Write what is not claimed yet, two chunks a claim."""
    with durable.draft(folder / "out", sizes, key="toy", resume=resume, keep=resume) as output:
        if output.done:
            return
        before = set(itertools.chain.from_iterable(map(claimed, output.claims)))
        left = [c for c in chunks(sizes) if forgetful or c not in before]
        pairs = [left[i : i + 2] for i in range(0, len(left), 2)]
        if threads == 1:
            for pair in pairs:
                step(output, pair)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(partial(step, output), pairs))


def write_if_missing(folder: Path, sizes: dict[str, int]) -> None:
    """Write a folder, and be content with one that is there: drafts do not replace folders."""
    try:
        write(folder, sizes, resume=True)
    except RunError as error:
        if "is not empty" not in str(error):
            raise


def interrupt(folder: Path, sizes: dict[str, int]) -> None:
    """Leave a draft with one claim, and a chunk more than it claims."""
    first, second, third = itertools.islice(chunks(sizes), 3)
    try:
        with durable.draft(folder / "out", sizes, key="toy") as output:
            step(output, [first, second])
            output.write(*third[:2], content(*third))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def old_file_and_a_draft(folder: Path) -> None:
    durable.write_bytes(folder / "out", b"old")
    interrupt(folder, ONE)


def empty(folder: Path) -> None:
    """Start from nothing."""


def mutant(scenario: Scenario, **names: Any) -> Scenario:
    """Return a scenario with names of polyfuse.durable replaced, in the child."""

    def command(folder: Path) -> None:
        replace_in_durable(**names)
        scenario.command(folder)

    return Scenario(scenario.setup, command, resumes=scenario.resumes, claimed=claimed)


class ClaimsFirst(durable.Draft):
    """Claims, and syncs the data after that."""

    def claim(self, value: Any) -> None:
        self._journal.append(value)
        for descriptor in self._files.values():
            durable.drafts.sync_data(descriptor)


class NeverRestarts(durable.journals.Journal):
    """Keeps the claims about a draft that is thrown away."""

    def restart(self) -> None:
        self.values, self._end = [], 0


def do_nothing(*args: object) -> None:
    pass


def resuming(
    setup: Callable[[Path], None], command: Callable[[Path], None], *, threads: bool = False
) -> Scenario:
    return Scenario(setup, command, resumes=True, claimed=claimed, threads=threads)


one = partial(write, sizes=ONE, resume=True)
several = partial(write_if_missing, sizes=SEVERAL)
file = Scenario(old_file_and_a_draft, partial(write, sizes=ONE), claimed=claimed)
folder = resuming(empty, several)

SCENARIOS = {
    "draft: file": file,
    "draft: folder": folder,
    "draft: resumed": resuming(partial(interrupt, sizes=SEVERAL), several),
    "draft: threads": resuming(empty, partial(one, threads=2), threads=True),
    "mutant: data not synced before a claim": mutant(file, sync_data=do_nothing),
    "mutant: claim before the sync": mutant(folder, Draft=ClaimsFirst),
    "mutant: claim before the data": resuming(empty, partial(one, step=claim_first)),
    "mutant: folder not synced": mutant(folder, sync_folder=do_nothing),
    "mutant: old claims not taken back": mutant(file, Journal=NeverRestarts),
    "mutant: claimed data written again": resuming(
        partial(interrupt, sizes=ONE), partial(one, forgetful=True)
    ),
}

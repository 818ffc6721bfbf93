"""Carry out a plan: threads that read, sum and write, claims for resuming, provenance last."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from polyfuse.checkpoints.base import Check
from polyfuse.checksums import Passing, crc32
from polyfuse.determinism import threads
from polyfuse.digests import Digests
from polyfuse.dtypes import Elements, torch_is_loaded
from polyfuse.errors import CheckpointError, printable
from polyfuse.streaming import plain_mean
from polyfuse.streaming.base import Item, Plan, Progress, beside, silent
from polyfuse.streaming.compute import Census, Scratch, compute
from polyfuse.streaming.outputs import Files, Memory, Output

if TYPE_CHECKING:
    from torch import Tensor

CLAIM = 64 << 20  # bytes of output between two claims; each one waits for the disk
_GLANCE = 0.1  # seconds between two looks at the threads


def execute(
    plan: Plan,
    *,
    digests: Digests | None = None,
    resume: bool = False,
    progress: Progress = silent,
    claim_bytes: int = CLAIM,
) -> list[dict[str, Tensor]]:
    """Make all outputs of a plan.

    Args:
        plan: of `make_plan`.
        digests: of the inputs, perhaps begun already; None neither hashes the inputs nor checks the
            CRCs that they state (for files that you trust).
        resume: go on with an interrupted merge of the same inputs and options, where there is one;
            and keep what is done if this one fails.
        progress: called with ("merge", bytes of inputs done, all, "").
        claim_bytes: bytes written between two claims of what is done.

    Returns:
        The state dicts of the outputs that are kept in memory.

    Raises:
        CheckpointError: an input is damaged or was changed, or holds what it should not.
        DiskError: the file system refused; nothing is left under a final name.
    """
    _refuse_unequal(plan)
    with ExitStack() as stack:
        outputs = [
            Files(stack, plan, target, resume=resume) if target.layout else Memory(target.slots)
            for target in plan.targets
        ]
        run = _Run(plan, outputs, progress, claim_bytes)
        if digests is not None:
            _begin(plan, digests)
        run.work()
        hashes = {} if digests is None else _hashes(plan, digests)
        for checkpoint in plan.inputs:
            checkpoint.check_unchanged()
        for output in outputs:
            output.finish(hashes)
    states = [output.state for output in outputs if isinstance(output, Memory)]
    return [s | {alias: s[name] for alias, name in plan.aliases.items()} for s in states]


class _Run:
    """What the threads of one execution share."""

    def __init__(
        self, plan: Plan, outputs: Sequence[Output], progress: Progress, claim_bytes: int
    ) -> None:
        self.plan, self.outputs = plan, outputs
        self.progress, self.claim_bytes = progress, claim_bytes
        self.census = Census()
        self.plain = not torch_is_loaded() and plain_mean.suits(plan)
        self.compute = plain_mean.compute if self.plain else compute
        self.lock = threading.Lock()
        self.stopped = False
        done = _claimed(outputs, len(plan.items))
        self.left = iter([n for n in range(len(plan.items)) if n not in done])
        self.costs = {name: self._bytes(name) for name in plan.columns}
        self.fresh: list[int] = []  # done, not claimed
        self.unclaimed = 0
        self.read = sum(self._cost(plan.items[n])[0] for n in done)
        self.total = sum(self._cost(item)[0] for item in plan.items)

    def work(self) -> None:
        """Do all items: here where there is one thread, else in threads of their own.

        Raises:
            CheckpointError: what the census found.
        """
        with self._one_thread():
            if self.plan.threads == 1:
                for _ in self._worked():
                    self._tell()
            else:
                self._in_threads()
        self.progress("merge", self.total, self.total, "")
        self.census.check(self.plan)

    def _in_threads(self) -> None:
        with ThreadPoolExecutor(self.plan.threads, "merge") as pool:
            running = {pool.submit(self._work) for _ in range(self.plan.threads)}
            try:
                while running:
                    done, running = wait(running, _GLANCE, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    self._tell()
            finally:
                self.stopped = True

    def _work(self) -> None:
        with self._one_thread():
            for _ in self._worked():
                pass

    def _one_thread(self) -> AbstractContextManager[None]:
        """Keep torch to the thread that calls it, where it is used at all."""
        return nullcontext() if self.plain else threads(1)

    def _worked(self) -> Iterator[int]:
        """Do items as long as there are any; yield the number of each."""
        scratch = Scratch()
        while not self.stopped:
            with self.lock:
                number = next(self.left, None)
            if number is None:
                return
            self.compute(self.plan, self.plan.items[number], scratch, self.census, self._put)
            self._count(number)
            yield number

    def _put(self, number: int, name: str, start: int, values: Elements) -> None:
        self.outputs[number].put(name, start, values)

    def _count(self, number: int) -> None:
        read, written = self._cost(self.plan.items[number])
        with self.lock:
            self.fresh.append(number)
            self.unclaimed += written
            self.read += read

    def _cost(self, item: Item) -> tuple[int, int]:
        """Return the bytes that an item reads and writes."""
        read, written = self.costs[item.name]
        return read * (item.stop - item.start), written * (item.stop - item.start)

    def _bytes(self, name: str) -> tuple[int, int]:
        """Return the bytes that are read and written for an element of a tensor."""
        pairs = beside(self.plan.inputs, self.plan.columns[name])
        read = sum(checkpoint.info(each).dtype.itemsize for checkpoint, each in pairs)
        return read, sum(target.slots[name].dtype.itemsize for target in self.plan.targets)

    def _tell(self) -> None:
        """Report progress, and claim what is done where enough has come together."""
        self.progress("merge", self.read, self.total, "")
        if self.unclaimed < self.claim_bytes or self.census.fatal(self.plan):
            return
        with self.lock:
            value, self.fresh, self.unclaimed = _ranges(self.fresh), [], 0
        for output in self.outputs:
            output.claim(value)


def _begin(plan: Plan, digests: Digests) -> None:
    """Begin to hash the inputs, and to take the CRCs of what is read from files that state any."""
    for checkpoint in plan.inputs:
        digests.begin(file.path for file in checkpoint.files)
        for check in checkpoint.checks:
            check.file.passing = check.file.passing or Passing()


def _hashes(plan: Plan, digests: Digests) -> dict[str, str]:
    """Return the SHA-256 of every input file by path, once their CRCs are found right."""
    for checkpoint in plan.inputs:
        for check in checkpoint.checks:
            if _crc(check) != check.crc:
                raise CheckpointError(
                    f"'{check.file.shown}' is damaged: the CRC-32 of '{printable(check.name)}' is "
                    "not the one that its directory states; fetch the file again"
                )
    paths = [file.path for checkpoint in plan.inputs for file in checkpoint.files]
    return {str(path): digests.sha256(path) for path in paths}


def _crc(check: Check) -> int:
    """Return the CRC of what was read; what was not read, or only in part, is read for it."""
    passing = check.file.passing
    found = passing.crc32(check.start, check.length) if passing else None
    return crc32(check.file.read_into, check.start, check.length) if found is None else found


def _refuse_unequal(plan: Plan) -> None:
    """Try buffers that must be equal before anything is written: they are small."""
    census = Census()
    for target in plan.targets:
        alone = replace(plan, targets=(target,))
        for item in plan.items:
            if target.treatments[item.name].label == "policy error":
                compute(alone, item, Scratch(), census, lambda *result: None)
    census.check(plan)


def _claimed(outputs: Sequence[Output], items: int) -> set[int]:
    """Return the items that an earlier attempt finished, in all outputs."""
    done: list[set[int]] = []
    for output in outputs:
        ranges = [each for claim in output.claims for each in claim]
        done.append({n for start, stop in ranges for n in range(start, min(stop, items))})
        if isinstance(output, Files) and output.done:
            done[-1] = set(range(items))
    return set.intersection(*done) if done else set()


def _ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Return numbers as half-open ranges.

    Example:
        >>> _ranges([3, 1, 2, 7])
        [[1, 4], [7, 8]]
    """
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, number + 1])
    return found

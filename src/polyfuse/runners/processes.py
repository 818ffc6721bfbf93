"""Supervised worker processes: each does one job at a time, and one that is killed is replaced.

A process has a line of its own, so that a kill in the middle of a report disturbs nobody else.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from typing import Any

from polyfuse.errors import TrainingError, printable
from polyfuse.runners.base import (
    RETRIES,
    Attempts,
    Fault,
    Function,
    Notify,
    Patient,
    Result,
    Watch,
    attempt,
    lost,
)

READY = "ready"
UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
VISIBLE = "CUDA_VISIBLE_DEVICES"
LOOK = 1.0  # seconds after which dead processes are looked for, should one not have told its end
PATIENCE = 5.0  # seconds that an idle process has to end by itself


class Crew:
    """Processes that take jobs from one queue; one that is killed is replaced.

    Args:
        function: called as `function(job, notify)`, in a process.
        jobs: what to call it with.
        watch: called with (number of the job, done, total, note).
        attempts: tells which failures are worth another attempt.
        devices: names of GPUs, of which each process sees one; all processes see all if there are
            none here.

    Raises:
        TrainingError: the function cannot be pickled.

    Example:
        >>> list(Crew(print, [], print, Attempts(), ()).results(2))
        []
    """

    def __init__(
        self,
        function: Function,
        jobs: Sequence[Any],
        watch: Watch,
        attempts: Attempts,
        devices: Sequence[str | int],
    ) -> None:
        """Start no process yet."""
        self.pickled, self.jobs = _pickled(function), jobs
        self.devices, self.attempts = devices, attempts
        self.watch = Patient(watch)
        self.waiting = deque(range(len(jobs)))
        self.workers: dict[int, _Worker] = {}  # by their places
        self.stillborn = 0  # processes that ended at their start, one after the other

    def results(self, places: int) -> Iterator[Result]:
        """Yield results as they come, from so many processes at most; none outlives this.

        Raises:
            TrainingError: processes cannot start, or a job cannot be pickled.
        """
        atexit.register(
            self._end
        )  # else an exit with results pending would wait for idle processes
        try:
            while self.waiting or any(w.number is not None for w in self.workers.values()):
                self._employ(places)
                for place in self._heard():
                    result = self._hear(place)
                    settled = result and self.attempts.settled(result)
                    if settled:
                        yield settled
                    elif result:
                        self.waiting.append(result.number)
        finally:  # also after Ctrl-C: running jobs end at once, their progress is on disk
            self._end()
            atexit.unregister(self._end)
        self.watch.tell()

    def _end(self) -> None:
        for worker in self.workers.values():
            worker.end()

    def _employ(self, places: int) -> None:
        """Give jobs to idle processes, and start as many as there is work for."""
        idle = [worker for worker in self.workers.values() if worker.number is None]
        for worker in idle:
            if worker.ready and self.waiting:
                worker.take(self.waiting.popleft(), self.jobs)
        starting = sum(not worker.ready for worker in idle)
        free = [place for place in range(places) if place not in self.workers]
        for place in free[: max(0, len(self.waiting) - starting)]:
            device = self.devices[place % len(self.devices)] if self.devices else None
            self.workers[place] = _Worker(self.pickled, device)

    def _heard(self) -> list[int]:
        """Wait until processes have something to say, or are dead; return their places."""
        ready = wait([worker.line for worker in self.workers.values()], LOOK)
        return [p for p, w in self.workers.items() if w.line in ready or w.dead]

    def _hear(self, place: int) -> Result | None:
        """Take what a process says; return a result if that was one."""
        worker = self.workers[place]
        said = worker.said()
        if said is None:
            return self._bury(place)
        if isinstance(said, Result):
            worker.number = None
            return said
        if said == READY:
            worker.ready, self.stillborn = True, 0
        elif worker.number is not None:
            self.watch(worker.number, *said)
        return None

    def _bury(self, place: int) -> Result | None:
        """Forget a dead process; return what became of its job."""
        worker = self.workers.pop(place)
        worker.end()
        how = _ending(worker.process.exitcode)
        if worker.number is not None:
            return lost(worker.number, f"its process {how}")
        self.stillborn += not worker.ready
        if self.stillborn > RETRIES:
            raise TrainingError(
                f"worker processes do not start: the last one {how}, and said why above; a script "
                'that trains begins with if __name__ == "__main__":, or uses workers=1'
            )
        return None


class _Worker:
    """A process that does one job at a time, and the line to it."""

    def __init__(self, pickled: bytes, device: str | int | None) -> None:
        # Spawned, not forked: torch's threads and CUDA do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        # The function goes by the line: what a process gets at its start, it gets by a pipe that
        # both ends hold open, so one that dies before it has read all would hang this one.
        self.process = context.Process(target=_serve, args=(theirs,))
        self.unsent: bytes | None = pickled
        self.ready = False
        self.number: int | None = None  # of the job that it does
        with _seeing(device):
            self.process.start()
        theirs.close()

    @property
    def dead(self) -> bool:
        """Whether it has ended; its children, should it have left some, may hold its line open."""
        return self.process.exitcode is not None

    def take(self, number: int, jobs: Sequence[Any]) -> None:
        """Do a job; a process that is dead by now is found dead later."""
        self.number = number
        job = _pickled(jobs[number])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.unsent is not None:
                self.line.send(self.unsent)
                self.unsent = None
            self.line.send((number, job))

    def said(self) -> Any:
        """Return what it says; None where it is dead and will say no more."""
        try:
            return self.line.recv() if self.line.poll() else None
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """End the process: by itself where it is idle, else at once."""
        self.line.close()
        if self.ready and self.number is None:
            self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _seeing(device: str | int | None) -> Iterator[None]:
    """Show processes that start in this block one GPU alone.

    Set before they start: CUDA looks once, and that may be at the import of a user's module.
    """
    before = os.environ.get(VISIBLE)
    if device is not None:
        os.environ[VISIBLE] = str(device)
    try:
        yield
    finally:
        if device is not None:
            os.environ.pop(VISIBLE)
            os.environ.update({} if before is None else {VISIBLE: before})


def _ending(code: int | None) -> str:
    """Say how a process ended."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
    return f"ended with exit code {code}"


def _pickled(sent: Any) -> bytes:
    try:
        return pickle.dumps(sent)
    except UNPICKLABLE as error:
        raise TrainingError(
            f"several worker processes need functions that can be imported, but {error}; "
            "define them at the top of a module, or use workers=1"
        ) from None


# What follows runs in a worker process --------------------------------------------------------


def _serve(line: Connection) -> None:
    """Do jobs until the line ends; end at once when the parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told = _Told(line)
    line.send(READY)
    with contextlib.suppress(EOFError):
        pickled = line.recv()
        while True:
            number, job = line.recv()
            told.send(attempt(partial(_done, pickled), number, job, told.report))


def _done(pickled: bytes, job: bytes, notify: Notify) -> Any:
    try:
        function, given = _loaded(pickled), pickle.loads(job)
    except Exception as error:
        raise TrainingError(
            f"a worker process cannot load the functions of the job ({printable(error)}); "
            "define them in a module that can be imported, or use workers=1"
        ) from None
    return function(given, notify)


@cache
def _loaded(pickled: bytes) -> Any:
    return pickle.loads(pickled)


class _Told:
    """What the parent is told, by one thread of the job at a time."""

    def __init__(self, line: Connection) -> None:
        self.line, self.lock = line, threading.Lock()

    def report(self, done: float, total: float, note: str = "") -> None:
        with self.lock:
            self.line.send((done, total, note))

    def send(self, result: Result) -> None:
        with self.lock:
            try:
                self.line.send(result)
            except UNPICKLABLE as error:
                reason = f"its result cannot be sent to another process: {printable(error)}"
                self.line.send(Result(result.number, error=reason, fault=Fault.REFUSED))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

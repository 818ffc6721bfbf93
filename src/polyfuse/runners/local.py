"""Run jobs on this machine: in this process, or one job at a time in each of several processes."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from polyfuse.errors import PolyfuseError, TrainingError, printable
from polyfuse.runners.base import Function, Result, Watch

# What a worker process works with; set once, by _start.
_here: dict[str, Any] = {}


@dataclass(frozen=True)
class LocalRunner:
    """This machine.

    Args:
        workers: processes; 1 runs in this process, so that nothing needs to be picklable.

    Raises:
        TrainingError: fewer than one worker.

    Example:
        >>> double = lambda job, notify: 2 * job
        >>> [result.value for result in LocalRunner().map(double, [1, 2], lambda *seen: None)]
        [2, 4]
    """

    workers: int = 1

    def __post_init__(self) -> None:
        """Refuse a runner that could run nothing."""
        if self.workers < 1:
            raise TrainingError(f"workers={self.workers}; type 1 or more")

    def map(self, function: Function, jobs: Sequence[Any], watch: Watch) -> Iterator[Result]:
        """Yield one result a job, as they finish; see `Runner`."""
        workers = min(self.workers, len(jobs))
        if workers > 1:
            yield from _in_processes(function, jobs, watch, workers)
            return
        for number, job in enumerate(jobs):
            yield _attempt(function, number, job, partial(watch, number))


def idle_workers(threads: int, jobs: int) -> int:
    """Return how many processes of so many threads this machine has cores for; 1 with a GPU.

    Example:
        >>> idle_workers(10_000, 5)
        1
    """
    if torch.accelerator.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(jobs, (cores or 1) // threads))


def _in_processes(
    function: Function, jobs: Sequence[Any], watch: Watch, workers: int
) -> Iterator[Result]:
    # Spawned, not forked: torch's threads and CUDA do not survive a fork.
    context = multiprocessing.get_context("spawn")
    seen, say = context.Pipe(duplex=False)
    ended, end = context.Pipe(duplex=False)
    arguments = (_pickled(function), say, context.Lock(), ended)
    faults: list[BaseException] = []
    listener = threading.Thread(target=_listen, args=(seen, ended, watch, faults), daemon=True)
    listener.start()
    with ProcessPoolExecutor(workers, context, _start, arguments) as pool:
        futures = {pool.submit(_work, number, job): number for number, job in enumerate(jobs)}
        pool.submit(int)  # wakes the pool, which else overlooks the death of its last process
        try:
            for future in as_completed(futures):
                yield _outcome(futures[future], future)
        finally:  # also after Ctrl-C: running jobs end at once, their progress is on disk
            end.send(None)
            listener.join()
    if faults:
        raise faults[0]


def _outcome(number: int, future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        return Result(
            number,
            error="its process was killed (out of memory?); run the same command again to go on, "
            "with fewer --workers if memory is short",
        )


def _pickled(function: Function) -> bytes:
    try:
        return pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"several worker processes need functions that can be imported, but {error}; "
            "define them at the top of a module, or use workers=1"
        ) from None


def _start(pickled: bytes, say: Connection, lock: Any, ended: Connection) -> None:
    """Prepare a worker process; it ends when its parent does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=([parent.sentinel, ended],), daemon=True).start()
    _here.update(say=say, lock=lock)
    try:
        _here["function"] = pickle.loads(pickled)
    except Exception as error:  # the jobs tell; a fault here would look like a killed process
        _here["function"] = partial(_cannot_load, printable(error))


def _cannot_load(reason: str, job: object, notify: object) -> None:
    raise TrainingError(
        f"a worker process cannot load the functions of the job ({reason}); "
        "define them in a module that can be imported, or use workers=1"
    )


def _end_with(ends: Sequence[Any]) -> None:
    wait(ends)
    os._exit(1)


def _work(number: int, job: Any) -> Result:
    def notify(done: float, total: float, note: str = "") -> None:
        with _here["lock"]:
            _here["say"].send((number, done, total, note))

    return _attempt(_here["function"], number, job, notify)


def _listen(seen: Connection, ended: Connection, watch: Watch, faults: list[BaseException]) -> None:
    """Pass on what the workers say, until the end; go on listening where `watch` fails."""
    while seen in wait([seen, ended]):
        message = seen.recv()
        try:
            watch(*message)
        except Exception as error:
            faults.append(error)


def _attempt(function: Function, number: int, job: Any, notify: Any) -> Result:
    """Run one job; a failure becomes a value, so that the other jobs go on."""
    try:
        return Result(number, function(job, notify))
    except PolyfuseError as error:
        return Result(number, error=str(error))
    except Exception:
        return Result(number, error=traceback.format_exc(limit=-4))

"""What worker processes run in the tests: importable by name, and quick to import."""

import os
import signal
from pathlib import Path
from typing import Any

from polyfuse.errors import DataError


def double(job: int, notify: Any) -> int:
    notify(job, 10, "half-way")
    return 2 * job


def failing(job: int, notify: Any) -> int:
    if job == 1:
        raise DataError("one is no good; take two")
    if job == 2:
        raise ZeroDivisionError("two is worse")
    return job


def killed_once(job: Path, notify: Any) -> str:
    """Leave a file behind, and be killed the first time that job "b" runs."""
    told = job.with_suffix(".told")
    if job.name == "b" and not told.exists():
        told.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    job.write_text("done")
    return job.name


def killed_while_it_reports(job: int, notify: Any) -> int:
    """Be killed as a report is on its way, with every lock held that it takes."""
    if job == 0:
        hold_every_lock()
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def hold_every_lock() -> None:
    """Acquire the locks that reports go through, wherever the runner keeps them."""
    from polyfuse.runners import local

    for kept in local._here.values():
        for lock in (kept, getattr(kept, "_wlock", None)):
            if hasattr(lock, "acquire"):
                lock.acquire()


def wait_for_ever(job: Path, notify: Any) -> None:
    """Open a pipe, say so, and keep it open until this process ends."""
    with job.open("w") as pipe:
        pipe.write("x")
        pipe.flush()
        while True:
            signal.pause()


def one_is_killed(job: Path, notify: Any) -> None:
    """Be killed where the job is named "killed"; else wait for ever."""
    if job.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        signal.pause()


class Unloadable:
    """A function that pickles here and cannot be loaded in a worker process."""

    def __call__(self, job: int, notify: Any) -> int:
        """Never called."""
        return job

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Fail where it is loaded."""
        return _refuse, ("no such module here",)


def _refuse(reason: str) -> None:
    raise ModuleNotFoundError(reason)

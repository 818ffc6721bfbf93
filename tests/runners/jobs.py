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


def counted(job: Path, notify: Any) -> int:
    """Fail as the file says, a word an attempt; return the number of the attempt that did not."""
    words, told = job.read_text().split(), job.with_suffix(".told")
    attempt = len(told.read_text()) if told.exists() else 0
    told.write_text("x" * (attempt + 1))
    word = words[attempt]
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "refused":
        raise DataError("no good; take another")
    if word != "done":
        raise OSError(f"the network said {word}")
    return attempt + 1


def killed_while_it_reports(job: Path, notify: Any) -> int:
    """Be killed the first time, as half a report is on its way and its lock is held."""
    if job.name == "killed" and not job.exists():
        job.touch()
        told = notify.__self__
        told.lock.acquire()
        os.write(told.line.fileno(), (100).to_bytes(4, "big") + b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def device_when_two_have_met(job: tuple[Path, str], notify: Any) -> str:
    """Wait at a FIFO until the other end of it is opened; return which GPUs are to be seen."""
    pipe, mode = job
    if mode:
        pipe.open(mode).close()
    return os.environ["CUDA_VISIBLE_DEVICES"]


def ends_at_its_start(*anything: Any) -> None:
    """Stand for a worker process that does not get as far as its first job."""
    os._exit(3)


def without_pickle(job: int, notify: Any) -> Any:
    """Return what cannot be sent to another process."""
    return lambda: job


def wait_for_ever(job: Path, notify: Any) -> None:
    """Open a pipe, say so, and keep it open until this process ends."""
    with job.open("w") as pipe:
        pipe.write("x")
        pipe.flush()
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

"""What worker processes run in the tests: importable by name, and quick to import."""

import importlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polyfuse.errors import DataError

# What happens at each attempt, with two retries: the number of attempts, and the error at last.
Ends = dict[str, tuple[int, str | None]]
HISTORIES: Ends = {
    "done": (1, None),
    "refused done": (1, "no good; take another"),
    "no done": (2, None),
    "no later done": (3, None),
    "no no done": (2, "OSError: the network said no"),
    "no later no done": (3, "OSError: the network said no"),
}


def deaths(killed: str) -> Ends:
    """Return histories in which the process is killed; a runner says so in its own words."""
    return {
        "killed done": (2, None),
        "killed killed done": (3, None),
        "killed killed killed done": (3, killed),
        "no killed no done": (3, "OSError: the network said no"),
        "killed refused done": (2, "no good; take another"),
    }


def told_by(folder: Path, histories: Iterable[str]) -> list[Path]:
    """Return a job a history, each with a file of its own."""
    texts = list(histories)
    files = [folder / str(number) for number in range(len(texts))]
    for file, history in zip(files, texts, strict=True):
        file.write_text(history)
    return files


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


def device_when_two_have_met(job: tuple[Path, str], notify: Any) -> str | None:
    """Wait at a FIFO until the other end of it is opened; return which GPUs are to be seen."""
    pipe, mode = job
    if mode:
        pipe.open(mode).close()
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def at_home(job: str, notify: Any) -> tuple[str, int]:
    """Return the working folder, and what a module of this name has."""
    return os.getcwd(), importlib.import_module(job).HERE


def double_or_wait(job: tuple[int, str | None], notify: Any) -> int:
    """Double a number, unless there is a pipe to keep open for ever."""
    if job[1]:
        wait_for_ever(Path(job[1]), notify)
    return 2 * job[0]


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

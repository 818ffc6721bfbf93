"""Run jobs on this machine: in this process, or one job at a time in each of several processes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from polyfuse.errors import TrainingError
from polyfuse.runners.base import RETRIES, Attempts, Function, Result, Watch, attempt
from polyfuse.runners.processes import VISIBLE, Crew


@dataclass(frozen=True)
class LocalRunner:
    """This machine.

    Args:
        workers: processes; 1 runs in this process, so that nothing needs to be picklable. By
            default one a device, or 1.
        devices: names of GPUs as `CUDA_VISIBLE_DEVICES` has them; each process sees one of them.
        retries: attempts after the first one at a job whose process was killed, or that raised an
            error of another kind than polyfuse's.

    Raises:
        TrainingError: fewer than one worker, or a negative number of retries.

    Example:
        >>> double = lambda job, notify: 2 * job
        >>> [result.value for result in LocalRunner().map(double, [1, 2], lambda *seen: None)]
        [2, 4]
    """

    workers: int | None = None
    devices: Sequence[str | int] = ()
    retries: int = RETRIES

    def __post_init__(self) -> None:
        """Refuse a runner that could run nothing."""
        if self.workers is not None and self.workers < 1:
            raise TrainingError(f"workers={self.workers}; type 1 or more")
        if self.retries < 0:
            raise TrainingError(f"retries={self.retries}; type 0 or more")

    def map(self, function: Function, jobs: Sequence[Any], watch: Watch) -> Iterator[Result]:
        """Yield one result a job, as they finish; see `Runner`."""
        workers = min(self.workers or len(self.devices) or 1, len(jobs))
        attempts = Attempts(self.retries)
        if workers > 1 or (workers and self.devices):
            yield from Crew(function, jobs, watch, attempts, self.devices).results(workers)
            return
        for number, job in enumerate(jobs):
            result = None
            while result is None:
                result = attempts.settled(attempt(function, number, job, partial(watch, number)))
            yield result


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


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` has them.

    Example:
        >>> len(gpus()) == torch.cuda.device_count()
        True
    """
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]

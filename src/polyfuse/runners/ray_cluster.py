"""Run jobs on Ray, on this machine or on a cluster. The only file that imports ray.

Nothing depends on Ray for being right: jobs commit their members to the RUN folder, may run twice,
and resume from there. Ray starts them where there is room and tells when a process or node is gone.
"""

import asyncio
import contextlib
import os
import pickle
import socket
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from polyfuse.errors import MissingExtraError, TrainingError, printable
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

LAST_PORT = 65_535
LOST = 60.0  # seconds after which reports on their way are lost
PATIENCE = 5.0  # seconds that an address has to answer
# What a gRPC server answers with a frame of settings: the start of HTTP/2, and an empty such frame.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
ALIKE = ("polyfuse", "torch", "numpy")  # packages whose versions decide the bits
FORMS = "HOST:PORT, ray://HOST:PORT, auto or local"


@dataclass(frozen=True)
class RayRunner:
    """A Ray cluster, or this machine through Ray.

    A connection that is there already (`ray.init()` of your own) is used as it is and left open.
    Usage reports are off unless RAY_USAGE_STATS_ENABLED is set.

    Args:
        address: of the cluster: HOST:PORT of its head, ray://HOST:PORT, auto, or local for a new
            one. By default what RAY_ADDRESS names, else a cluster that runs on this machine, else a
            new one here, which ends with the jobs.
        cpus: CPU cores that Ray sets aside for a job.
        gpus: GPUs for a job, which sees no others; a fraction shares one. By default one where the
            cluster has any.
        workers: jobs at once; by default as many as fit.
        retries: attempts after the first one at a job whose process was killed, whose node died, or
            that raised an error of another kind than polyfuse's.
        patience: seconds that an address has to answer.

    Raises:
        TrainingError: no such amount, or number of jobs.

    Example:
        >>> RayRunner("head.example.org:6379", cpus=4, gpus=0.5).retries
        2
    """

    address: str | None = None
    cpus: float = 1
    gpus: float | None = None
    workers: int | None = None
    retries: int = RETRIES
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        """Refuse a runner that could run nothing; all faults at once."""
        least = {"cpus": 0, "gpus": 0, "retries": 0, "workers": 1}
        given = {name: getattr(self, name) for name in least}
        faults = [
            f"{name}={given[name]}; type {fewest} or more"
            for name, fewest in least.items()
            if given[name] is not None and not given[name] >= fewest
        ]
        if self.cpus == 0 and self.gpus == 0:
            faults.append("cpus=0 and gpus=0 sets nothing aside for a job; type cpus=1")
        if faults:
            raise TrainingError("\n".join(faults))

    def map(self, function: Function, jobs: Sequence[Any], watch: Watch) -> Iterator[Result]:
        """Yield one result a job, as they finish; see `Runner`.

        Raises:
            MissingExtraError: Ray is not installed.
            TrainingError: the address does not answer, or no node is large enough for a job.
        """
        if not jobs:
            return
        ray = _ray()
        with _connected(ray, self.address, self.patience):
            yield from _Jobs(ray, self, function, jobs, watch).results()


def refuse_missing() -> None:
    """Refuse to go on where Ray is not installed.

    Raises:
        MissingExtraError: it is not.

    Example:
        >>> refuse_missing.__name__
        'refuse_missing'
    """
    if find_spec("ray") is None:
        raise MissingExtraError(
            "the Ray runner needs ray, which is not installed: pip install 'polyfuse[ray]'"
        )


def _ray() -> Any:
    refuse_missing()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str | None, patience: float) -> Iterator[None]:
    """Connect, and end what was started for it; a connection that is there is left as it is."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", "local"):
        _check_answer(str(address), patience)
    try:
        # Jobs print into Ray's log files: standard output is the caller's.
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="warning")
    except Exception as error:  # Ray raises many kinds
        where = f"at '{printable(address)}'" if address else "here"
        raise TrainingError(f"Ray does not start {where}: {printable(error, 600)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answer(address: str, patience: float) -> None:
    """Refuse an address where nobody answers: Ray itself would try for minutes, and end this."""
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rpartition(":")
    if scheme not in ("", "ray"):
        return  # somebody else's kind of cluster
    if not host or not port.isdecimal() or int(port) > LAST_PORT:
        raise TrainingError(f"'{printable(address)}' is no address of a Ray cluster; type {FORMS}")
    try:
        fault = _no_grpc(host.strip("[]"), int(port), patience)
    except OSError as error:
        fault = str(error)
    if fault:
        raise TrainingError(
            f"the Ray cluster at '{printable(address)}' does not answer: {printable(fault)}; start "
            f"its head: ray start --head --port {port}, or type another address: {FORMS}"
        )


def _no_grpc(host: str, port: int, patience: float) -> str | None:
    """Return why this is no port of Ray's, which speaks gRPC; None where it may be one."""
    with socket.create_connection((host, port), patience) as line:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return None  # its greeting is encrypted
        line.sendall(GREETING)
        reply = line.recv(9)
    return None if reply[3:4] == b"\x04" else "what listens there is not Ray"


class _Jobs:
    """One round of jobs: as many at Ray as may run, or wait for room, at a time."""

    def __init__(
        self, ray: Any, runner: RayRunner, function: Function, jobs: Sequence[Any], watch: Watch
    ) -> None:
        self.ray, self.runner, self.jobs = ray, runner, jobs
        self.watch, self.attempts = Patient(watch), Attempts(runner.retries)
        self.waiting = deque(range(len(jobs)))
        self.running: dict[Any, int] = {}  # numbers of jobs by references to their results
        gpus = runner.gpus
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self.needs = {"CPU": runner.cpus, "GPU": gpus}
        self._refuse_too_large()
        self.function = ray.put(self._pickled(function))
        self.mail = self._mailbox()
        how = {"num_cpus": runner.cpus, "num_gpus": gpus, "max_retries": 0}
        self.far = ray.remote(_far).options(**how)
        self.site = _Site(list(sys.path), os.getcwd(), {name: version(name) for name in ALIKE})

    def results(self) -> Iterator[Result]:
        """Yield results as they come; no job outlives this."""
        letters = self.mail.take.remote()
        try:
            while self.waiting or self.running:
                self._submit()
                (ready, *_), _ = self.ray.wait([*self.running, letters], num_returns=1)
                if ready == letters:
                    letters = self._deliver(letters)
                    continue
                result = self._outcome(ready, self.running.pop(ready))
                settled = self.attempts.settled(result)
                if settled is None:
                    self._refuse_too_large()  # the node that is gone may have been the only one
                    self.waiting.append(result.number)
                else:
                    yield settled
            self.mail.close.remote()
            self._deliver(self._deliver(letters))
        finally:  # also after Ctrl-C: running jobs end at once, their progress is on disk
            for reference in self.running:
                self.ray.cancel(reference, force=True)
            self.ray.kill(self.mail)
        self.watch.tell()

    def _submit(self) -> None:
        """Hand jobs to Ray: twice as many as fit, so that none waits for this process."""
        room = self.runner.workers or 2 * self._room(self.ray.cluster_resources())
        while self.waiting and len(self.running) < max(1, room):
            number = self.waiting.popleft()
            job = self._pickled(self.jobs[number])
            reference = self.far.remote(self.function, job, number, self.site, self.mail)
            self.running[reference] = number

    def _pickled(self, sent: Any) -> bytes:
        try:
            return bytes(self.ray.cloudpickle.dumps(sent))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TrainingError(
                f"jobs on Ray go to other processes, but {printable(error, 400)}; hold no open "
                "files, locks or connections in functions, models and data"
            ) from None

    def _room(self, resources: Mapping[str, float]) -> int:
        """Return how many jobs fit into so many CPUs and GPUs."""
        asked = {name: need for name, need in self.needs.items() if need}
        return min(int(resources.get(name, 0) / need) for name, need in asked.items())

    def _refuse_too_large(self) -> None:
        """Refuse jobs that fit on no node: they would wait for ever."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(self._room(node) for node in nodes):
            shown = {f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes}
            asked = f"{self.needs['CPU']:g} CPUs and {self.needs['GPU']:g} GPUs"
            raise TrainingError(
                f"a job needs {asked}, and no node has them ({'; '.join(sorted(shown))}); ask for "
                "less, or start such a node"
            )

    def _mailbox(self) -> Any:
        """Start the mailbox for reports, here, where no other node's end takes it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self.ray.get_runtime_context().get_node_id()
        place = NodeAffinitySchedulingStrategy(node_id=here, soft=True)
        how = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": place}
        return self.ray.remote(_Mailbox).options(**how).remote()

    def _deliver(self, letters: Any) -> Any:
        """Pass reports on; return the reference to the next ones."""
        with contextlib.suppress(self.ray.exceptions.RayError):  # lost reports cost no result
            for number, done, total, note in self.ray.get(letters, timeout=LOST):
                self.watch(number, done, total, note)
        return self.mail.take.remote()

    def _outcome(self, reference: Any, number: int) -> Result:
        """Return what became of a job, also where Ray has lost it."""
        kinds = self.ray.exceptions
        try:
            result: Result = self.ray.get(reference)
        except kinds.RayTaskError as error:  # what the job raises is a value; this is around it
            reason = f"Ray could not run it: {printable(str(error).strip().splitlines()[-1], 500)}"
            return Result(number, error=reason, trace=str(error), fault=Fault.RAISED)
        except kinds.OutOfMemoryError:
            return lost(number, "its process was ended by Ray: the node's memory is used up")
        except (kinds.NodeDiedError, kinds.LocalRayletDiedError):
            return lost(number, "its node died")
        except kinds.WorkerCrashedError:
            return lost(number, "its process was killed (out of memory?), or its node died")
        except kinds.RayError as error:
            first = (str(error).strip().splitlines() or [""])[0]
            return lost(number, f"Ray lost it: {type(error).__name__}: {printable(first, 300)}")
        return result


# What follows runs in Ray's processes ----------------------------------------------------------


class _Mailbox:
    """Reports on their way to the driver."""

    def __init__(self) -> None:
        self.letters: list[tuple[int, float, float, str]] = []
        self.there = asyncio.Event()
        self.closed = False

    async def put(self, *letter: Any) -> None:
        """Take a report in."""
        self.letters.append(letter)
        self.there.set()

    async def take(self) -> list[tuple[int, float, float, str]]:
        """Return the reports since the last time, once there are some."""
        await self.there.wait()
        letters, self.letters = self.letters, []
        if not self.closed:
            self.there.clear()
        return letters

    async def close(self) -> None:
        """Let nobody wait from now on."""
        self.closed = True
        self.there.set()


@dataclass(frozen=True)
class _Site:
    """Where the driver is, for its jobs to be at home elsewhere.

    Attributes:
        path: its `sys.path`.
        folder: its working folder.
        versions: of the packages that decide the bits.
    """

    path: Sequence[str]
    folder: str
    versions: Mapping[str, str]

    def enter(self) -> None:
        """Find modules and files as the driver does; refuse other versions of packages."""
        sys.path += [place for place in self.path if place not in sys.path]
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        others = [
            f"{name} {version(name)}, not {wanted}"
            for name, wanted in self.versions.items()
            if version(name) != wanted
        ]
        if others:
            raise TrainingError(
                f"node {socket.gethostname()} has {'; '.join(others)}: the numbers may differ; "
                "install the same versions on all nodes"
            )


def _far(pickled: bytes, job: bytes, number: int, site: _Site, mail: Any) -> Result:
    """Run a job in a process of Ray's."""
    import ray

    last: list[Any] = []

    def notify(done: float, total: float, note: str = "") -> None:
        last[:] = [mail.put.remote(number, done, total, note)]

    def done(given: bytes, notify: Notify) -> Any:
        site.enter()
        try:
            function, unpacked = _loaded(pickled), pickle.loads(given)
        except Exception as error:
            raise TrainingError(
                f"a process of Ray's cannot load the functions of the job ({printable(error)}); "
                "define them in a module that can be imported on all nodes"
            ) from None
        return function(unpacked, notify)

    result = attempt(done, number, job, notify)
    if last:  # so that no report comes after the result
        ray.wait(last, timeout=LOST)
    return result


@lru_cache(maxsize=1)
def _loaded(pickled: bytes) -> Any:
    return pickle.loads(pickled)

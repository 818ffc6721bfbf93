"""Where jobs run, by the names that commands use; results do not depend on it."""

from polyfuse.errors import PolyfuseError, did_you_mean, printable
from polyfuse.runners.base import Runner

RUNNERS = ("local", "ray")


def runner_named(
    name: str,
    *,
    jobs: int,
    threads: int = 1,
    devices: int = 1,
    gpu: bool = True,
    workers: int | None = None,
    address: str | None = None,
) -> Runner:
    """Return a runner that suits jobs of one kind.

    Args:
        name: "local" or "ray".
        jobs: at most so many are done at once.
        threads: CPU threads of a job, on each of its devices.
        devices: of a job.
        gpu: whether jobs use GPUs where there are some.
        workers: jobs at once; by default as many as there is room for, one a GPU.
        address: of a Ray cluster.

    Raises:
        PolyfuseError: no such runner, an address without Ray, or Ray is not installed.

    Example:
        >>> runner_named("local", jobs=4, workers=2).workers
        2
    """
    if name not in RUNNERS:
        known = ", ".join(RUNNERS)
        near = did_you_mean(name, RUNNERS) or ";"
        raise PolyfuseError(f"'{printable(name)}' is no runner{near} there are: {known}")
    if name == "ray":
        from polyfuse.runners.ray_cluster import RayRunner, refuse_missing

        refuse_missing()
        wanted = (None if devices == 1 else devices) if gpu else 0
        return RayRunner(address, threads * devices, wanted, workers)
    if address is not None:
        raise PolyfuseError(
            f"the address '{printable(address)}' is of a Ray cluster; type --runner ray, too"
        )
    from polyfuse.runners.local import LocalRunner, gpus, idle_workers

    names = gpus() if gpu and devices == 1 else []
    if len(names) > 1:
        return LocalRunner(workers, names)
    return LocalRunner(workers or idle_workers(threads * devices, jobs))

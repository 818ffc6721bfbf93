"""A real Ray cluster of two nodes and a head: same bits, attempts, and what dies in mid-run.

`make integrations` has Ray. Jobs wait at FIFOs, so that no test needs a clock.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jobs
import pytest

import polyfuse
import tiny
from polyfuse.errors import TrainingError
from polyfuse.recipes import source
from polyfuse.runners.ray_cluster import RayRunner
from tiny_run import digests, make_recipe

ray = pytest.importorskip("ray")

PATIENCE = 300  # seconds until what should have happened is given up; never reached
# A node that is gone is noticed within a second or two, not within half a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "20000",  # a busy machine is no dead one
    "RAY_health_check_failure_threshold": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """Start a head without room for jobs, and two nodes with room for one each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        head = {**NODE, "num_cpus": 0, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            started.add_node(**NODE)
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def connected(cluster):
    """Connect once: the tests of jobs leave the connection open."""
    ray.init(cluster.address, log_to_driver=False, logging_level="warning")
    yield
    assert ray.is_initialized()
    ray.shutdown()


def run(function, given, seen=None, **how):
    watch = (lambda *told: seen.append(told)) if seen is not None else (lambda *told: None)
    results = RayRunner(**how).map(function, given, watch)
    return sorted(results, key=lambda result: result.number)


# Jobs -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("connected")
def test_results_and_reports_carry_the_number_of_the_job():
    seen = []
    results = run(jobs.double, [5, 6, 7], seen)
    assert [(r.number, r.value, r.error) for r in results] == [
        (0, 10, None),
        (1, 12, None),
        (2, 14, None),
    ]
    assert sorted(seen) == [(n, n + 5, 10, "half-way") for n in range(3)]


@pytest.mark.usefixtures("connected")
def test_attempts_are_those_of_the_local_runner(tmp_path):
    killed = "its process was killed (out of memory?), or its node died"
    known = jobs.HISTORIES | jobs.deaths(killed)
    results = run(jobs.counted, jobs.told_by(tmp_path, known))
    assert [(r.attempts, r.error) for r in results] == list(known.values())
    assert [r.value for r in results] == [n if e is None else None for n, e in known.values()]


@pytest.mark.usefixtures("connected")
def test_jobs_are_handed_out_as_room_is_there(tmp_path):
    # Two nodes, so at most two at once; the third starts once one of them is done.
    os.mkfifo(tmp_path / "pipe")
    meeting = [(tmp_path / "pipe", "r"), (tmp_path / "pipe", "w")]
    taken = []

    class Watched(list):
        def __getitem__(self, number):
            taken.append(number)
            return super().__getitem__(number)

    given = Watched([*meeting, *[("", "")] * 6])
    results = RayRunner().map(jobs.device_when_two_have_met, given, print)
    next(results)
    assert taken == [0, 1, 2, 3]  # as many wait as run
    assert len(list(results)) == 7
    assert taken == list(range(8))


@pytest.mark.usefixtures("connected")
def test_what_is_too_large_for_every_node_is_refused():
    fact = r"a job needs 4 CPUs and 0 GPUs, and no node has them \(0 CPUs, 0 GPUs; 1 CPUs, 0 GPUs\)"
    with pytest.raises(TrainingError, match=fact):
        run(jobs.double, [1], cpus=4)
    with pytest.raises(TrainingError, match="a job needs 1 CPUs and 1 GPUs"):
        run(jobs.double, [1], gpus=1)


@pytest.mark.usefixtures("connected")
def test_functions_that_no_module_has_go_along_and_what_cannot_be_loaded_is_said():
    assert [r.value for r in run(lambda job, notify: job + 1, [1])] == [2]
    (result,) = run(jobs.Unloadable(), [1])
    assert "no such module here" in result.error
    assert result.attempts == 1
    with pytest.raises(TrainingError, match="hold no open files, locks or connections"):
        run(partial(jobs.double, threading.Lock()), [1])


@pytest.mark.usefixtures("connected")
def test_jobs_are_at_home_where_the_driver_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "at_home.py").write_text("HERE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [r.value for r in run(jobs.at_home, ["at_home"])] == [(str(tmp_path), 3)]


@pytest.mark.usefixtures("connected")
def test_nodes_with_other_versions_are_refused(monkeypatch):
    from polyfuse.runners import ray_cluster

    monkeypatch.setattr(ray_cluster, "version", lambda name: "0.0")
    (result,) = run(jobs.double, [1])
    assert "torch 2" in result.error
    assert "not 0.0" in result.error
    assert "install the same versions on all nodes" in result.error
    assert result.attempts == 1


@pytest.mark.usefixtures("connected")
def test_who_stops_listening_ends_the_jobs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    results = RayRunner().map(
        jobs.double_or_wait, [(1, None), (2, str(tmp_path / "pipe"))], lambda *seen: None
    )
    assert next(results).value == 2
    assert read(reading) == b"x"  # the other one waits with the pipe open
    results.close()
    assert read(reading) == b""  # it is gone
    os.close(reading)


# Members ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("connected")
def test_members_are_those_of_the_local_runner_bit_for_bit(tmp_path):
    data, told = tiny.splits(), []
    plan = polyfuse.kfold(data.train, folds=3)
    polyfuse.train(plan, tiny.task(), tmp_path / "local")
    watch = lambda *seen: told.append(seen)  # noqa: E731
    polyfuse.train(plan, tiny.task(), tmp_path / "ray", runner=RayRunner(), watch=watch)
    assert tiny.hashes(tmp_path / "ray") == tiny.hashes(tmp_path / "local")
    epochs = sorted(seen[:2] for seen in told if seen[3] != "done")
    assert epochs == [(m, e) for m in range(3) for e in (1, 2)]


MODULE = """\
import os

import numpy as np
import torch
from torch import nn

SEEDS = np.random.SeedSequence([0, 3]).generate_state(3).tolist()  # of the three folds
FIRST_WORDS = [int(np.random.SeedSequence((seed,)).generate_state(1)[0]) for seed in SEEDS]


class Net(nn.Sequential):
    '''Stops for ever at the fifth step of an attempt at member 3, while there is a FIFO.'''

    def __init__(self):
        self.third = torch.initial_seed() == FIRST_WORDS[2]
        self.step = 0
        drop = nn.Dropout(0.2), nn.Linear(8, 3)
        super().__init__(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), *drop)

    def forward(self, inputs):
        if self.training and self.third:
            self.step += 1
            if self.step == 5 and os.path.exists("reached"):
                with open("reached", "w") as fifo:
                    fifo.write(f"{os.getpid()} {os.getppid()}\\n")
                os.open("never", os.O_RDONLY)  # a FIFO that nobody writes to
        return super().forward(inputs)
"""


def prepare(folder):
    """Put data, module and recipe into a folder: three folds of three batches, four epochs."""
    folder.mkdir()
    recipe = make_recipe(folder)
    tree = source.read(recipe).tree
    tree["data"]["path"] = "data.npz"
    tree["model"] = "waiting_net:Net"
    tree["training"]["folds"] = 3
    tree["fit"]["epochs"] = 4
    tree["scoreboard"]["replicates"] = 50
    recipe.write_text(source.write(tree))
    (folder / "waiting_net.py").write_text(MODULE)
    return folder


def command(*more):
    polyfuse_ = str(Path(sys.executable).with_name("polyfuse"))
    return [polyfuse_, "run", "tiny.yaml", "--out", "RUN", "--quiet", *more]


def test_a_worker_a_node_and_the_driver_die_and_no_number_changes(cluster, tmp_path):
    undisturbed = prepare(tmp_path / "undisturbed")
    subprocess.run(command("--workers", "1"), cwd=undisturbed, check=True)
    folder = prepare(tmp_path / "disturbed")
    for name in ("reached", "never"):
        os.mkfifo(folder / name)
    # For reading and writing, so that opening does not wait for the other end.
    reached = os.open(folder / "reached", os.O_RDWR)
    on_ray = command("--runner", "ray", "--address", cluster.address)
    driver = subprocess.Popen(on_ray, cwd=folder, start_new_session=True, stdout=subprocess.PIPE)
    try:
        worker, _ = arrived(reached, driver)
        os.kill(worker, signal.SIGKILL)
        _, gone = arrived(reached, driver)
        (node,) = [n for n in cluster.list_all_nodes() if raylet_of(n) == gone]
        cluster.remove_node(node, allow_graceful=False)
        _, left = arrived(reached, driver)
        assert left != gone
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        driver.stdout.close()
        os.close(reached)
    (folder / "reached").unlink()
    left = digests(folder / "RUN")
    assert not [name for name in left if name.startswith(("members/002/", "leaderboard"))]
    assert "resume/002.safetensors" in left
    kept = {name: digest for name, digest in left.items() if name.startswith("members/0")}
    assert {name.split("/")[1] for name in kept} == {"000", "001"}
    again = subprocess.run(
        [*on_ray, "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["run"] == "RUN"  # whatever Ray prints
    after = digests(folder / "RUN")
    assert after == digests(undisturbed / "RUN")
    assert kept.items() <= after.items()


def raylet_of(node):
    (raylet,) = node.all_processes["raylet"]
    return raylet.process.pid


def arrived(reached, driver):
    """Wait until a job is at its step; return the numbers of its process and of its node's."""
    ready, _, _ = select.select([reached, driver.stdout], [], [], PATIENCE)
    assert ready == [reached], "the command ended before member 3 was at the step"
    worker, parent = os.read(reached, 100).split()
    return int(worker), int(parent)


def read(pipe):
    ready, _, _ = select.select([pipe], [], [], PATIENCE)
    assert ready, "a job did not end"
    return os.read(pipe, 10)

"""What is refused before Ray is asked for anything; no Ray is needed for these tests."""

import contextlib
import socket
import sys
import threading
from types import ModuleType

import pytest

from polyfuse.errors import MissingExtraError, TrainingError
from polyfuse.runners import ray_cluster, runner_named
from polyfuse.runners.ray_cluster import RayRunner


class Reached(Exception):
    """`ray.init` was called: the address was not refused."""


def reached(*arguments, **keywords):
    raise Reached


@pytest.fixture
def ray(monkeypatch):
    """Ray as it is before it is asked for anything."""
    module = ModuleType("ray")
    module.is_initialized = lambda: False
    module.init = reached
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    return module


@contextlib.contextmanager
def server(reply):
    """Listen; answer with so many bytes, or accept and say nothing where that is None."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            with contextlib.suppress(OSError):
                line, _ = listening.accept()
                with line:
                    line.recv(100)
                    line.sendall(reply or b"")
                    if reply != b"":
                        line.recv(1)  # until the other end closes

        thread = threading.Thread(target=answer)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def run(address, patience=60.0):
    return list(RayRunner(address, patience=patience).map(str, ["job"], print))


SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6)  # how a gRPC server begins
ANSWERS = {
    "a web server": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is not Ray"),
    "who hangs up": (b"", "what listens there is not Ray"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_port_of_another_kind_is_refused(ray, kind):
    reply, fact = ANSWERS[kind]
    with server(reply) as port, pytest.raises(TrainingError) as no:
        run(f"127.0.0.1:{port}")
    assert str(no.value) == (
        f"the Ray cluster at '127.0.0.1:{port}' does not answer: {fact}; start its head: ray start "
        f"--head --port {port}, or type another address: HOST:PORT, ray://HOST:PORT, auto or local"
    )


def test_a_port_that_accepts_and_says_nothing_is_given_up(ray):
    with server(None) as port, pytest.raises(TrainingError, match="does not answer: timed out"):
        run(f"ray://127.0.0.1:{port}", patience=0.05)


def test_a_closed_port_is_refused(ray, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(TrainingError, match=r"does not answer: .*refused"):
        run(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"localhost:{port}")
    with pytest.raises(TrainingError, match=rf"at 'localhost:{port}' does not answer: .*refused"):
        run(None)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_that_speaks_grpc_is_left_to_ray(ray, scheme):
    with server(SETTINGS) as port, pytest.raises(TrainingError, match="Ray does not start at"):
        run(f"{scheme}127.0.0.1:{port}")


def test_with_tls_a_port_that_accepts_is_left_to_ray(ray, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with server(None) as port, pytest.raises(TrainingError, match="Ray does not start at"):
        run(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", [None, "auto", "local", "anyscale://mine"])
def test_addresses_that_ray_finds_itself_are_left_to_it(ray, address):
    where = f"at '{address}'" if address else "here"
    with pytest.raises(TrainingError, match=f"Ray does not start {where}"):
        run(address)


@pytest.mark.parametrize(
    "address", ["", "head", ":6379", "head:", "head:x", "ray://head", "h:-1", "h:65536"]
)
def test_what_is_no_address_is_refused(ray, address):
    where = "is no address of a Ray cluster; type HOST:PORT" if address else "does not start here"
    with pytest.raises(TrainingError, match=where):
        run(address)


def test_nothing_is_started_for_no_jobs(ray):
    assert list(RayRunner().map(str, [], print)) == []


def test_usage_reports_are_off_unless_they_were_set(ray, monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    for was, stays in [(None, "0"), ("1", "1"), ("0", "0")]:
        if was is not None:
            monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", was)
        with pytest.raises(TrainingError):
            run(None)
        assert ray_cluster.os.environ["RAY_USAGE_STATS_ENABLED"] == stays


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    for asked in (lambda: run(None), lambda: runner_named("ray", jobs=1)):
        with pytest.raises(MissingExtraError, match=r"pip install 'polyfuse\[ray\]'"):
            asked()


def test_all_faults_of_a_runner_are_told_at_once():
    with pytest.raises(TrainingError) as no:
        RayRunner(cpus=-1, gpus=float("nan"), workers=0, retries=-2)
    assert str(no.value).splitlines() == [
        "cpus=-1; type 0 or more",
        "gpus=nan; type 0 or more",
        "retries=-2; type 0 or more",
        "workers=0; type 1 or more",
    ]
    with pytest.raises(TrainingError, match="sets nothing aside for a job; type cpus=1"):
        RayRunner(cpus=0, gpus=0)

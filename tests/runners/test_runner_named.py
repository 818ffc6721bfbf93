import pytest

from polyfuse import LocalRunner
from polyfuse.errors import PolyfuseError
from polyfuse.runners import local, ray_cluster, runner_named
from polyfuse.runners.ray_cluster import RayRunner
from tiny_run import make_recipe, refused


@pytest.fixture
def cores(monkeypatch):
    """Eight cores and no GPU."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda pid: range(8), raising=False)


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    ("asked", "workers"),
    [
        ({"jobs": 20}, 8),
        ({"jobs": 3}, 3),
        ({"jobs": 20, "threads": 3}, 2),
        ({"jobs": 20, "threads": 2, "devices": 2}, 2),
        ({"jobs": 20, "threads": 64}, 1),
        ({"jobs": 20, "workers": 5}, 5),
    ],
)
def test_as_many_processes_as_the_cpu_has_room_for(asked, workers):
    assert runner_named("local", **asked) == LocalRunner(workers)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("asked", "runner"),
    [
        ({}, LocalRunner(None, ["0", "1", "2", "3"])),
        ({"workers": 8}, LocalRunner(8, ["0", "1", "2", "3"])),  # two share one
        ({"devices": 4}, LocalRunner(1)),  # of one member
        ({"gpu": False}, LocalRunner(1)),
    ],
)
def test_with_several_gpus_each_process_sees_one(asked, runner):
    assert runner_named("local", jobs=20, **asked) == runner


@pytest.mark.parametrize(
    ("asked", "runner"),
    [
        ({}, RayRunner()),
        ({"threads": 4, "workers": 3, "address": "h:1"}, RayRunner("h:1", 4, None, 3)),
        ({"devices": 2, "threads": 2}, RayRunner(None, 4, 2)),
        ({"gpu": False}, RayRunner(None, 1, 0)),
    ],
)
def test_resources_of_a_job_of_rays(monkeypatch, asked, runner):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    assert runner_named("ray", jobs=20, **asked) == runner


def test_what_is_no_runner_is_refused():
    with pytest.raises(PolyfuseError, match=r"'rya' is no runner; did you mean 'ray'.*local, ray"):
        runner_named("rya", jobs=1)
    with pytest.raises(PolyfuseError, match="'h:1' is of a Ray cluster; type --runner ray, too"):
        runner_named("local", jobs=1, address="h:1")


def test_the_command_refuses_it_before_anything_is_made(tmp_path):
    command = ("run", make_recipe(tmp_path), "--out", tmp_path / "RUN", "--quiet")
    assert "'rya' is no runner" in refused(*command, "--runner", "rya")
    assert "type --runner ray, too" in refused(*command, "--address", "h:1")
    assert not (tmp_path / "RUN").exists()

import multiprocessing
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import jobs
import pytest

from polyfuse.errors import TrainingError
from polyfuse.runners import local, processes
from polyfuse.runners.local import LocalRunner

HERE = Path(__file__).parent
PATIENCE = 60  # seconds until a process that should have ended is given up; never reached


def run(workers, function, given, seen=None, **how):
    watch = (lambda *told: seen.append(told)) if seen is not None else (lambda *told: None)
    results = LocalRunner(workers, **how).map(function, given, watch)
    return sorted(results, key=lambda result: result.number)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_reports_carry_the_number_of_the_job(workers):
    seen = []
    results = run(workers, jobs.double, [5, 6, 7], seen)
    assert [(r.number, r.value, r.error) for r in results] == [
        (0, 10, None),
        (1, 12, None),
        (2, 14, None),
    ]
    assert sorted(seen) == [(n, n + 5, 10, "half-way") for n in range(3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_job_is_a_value_and_the_others_go_on(workers):
    results = run(workers, jobs.failing, [0, 1, 2, 3])
    assert [r.value for r in results] == [0, None, None, 3]
    assert [r.error is None for r in results] == [True, False, False, True]
    assert results[1].error == "one is no good; take two"
    assert results[2].error == "ZeroDivisionError: two is worse"
    assert results[2].trace.endswith("ZeroDivisionError: two is worse\n")
    assert "jobs.py" in results[2].trace
    assert results[1].trace == ""


def test_one_worker_takes_what_cannot_be_imported():
    assert [r.value for r in run(1, lambda job, notify: job + 1, [1])] == [2]


def test_several_workers_refuse_what_cannot_be_imported():
    before = threading.active_count()
    with pytest.raises(TrainingError, match=r"can be imported.*top of a module, or use workers=1"):
        run(2, lambda job, notify: job, [1, 2])
    assert threading.active_count() == before


def test_a_runner_that_could_run_nothing_is_refused():
    with pytest.raises(TrainingError, match="workers=0; type 1 or more"):
        LocalRunner(0)
    with pytest.raises(TrainingError, match="retries=-1; type 0 or more"):
        LocalRunner(retries=-1)


def test_results_come_as_jobs_finish():
    done = []
    results = LocalRunner().map(lambda job, notify: done.append(job), [1, 2], lambda *seen: None)
    next(results)
    assert done == [1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_jobs_start_as_a_process_is_free(tmp_path):
    # The first job waits for the third, which begins only once the second has made room.
    os.mkfifo(tmp_path / "pipe")
    given = [(tmp_path / "pipe", "r"), ("", ""), (tmp_path / "pipe", "w")]
    results = run(2, jobs.device_when_two_have_met, given)
    assert [r.error for r in results] == [None] * 3


# Attempts ---------------------------------------------------------------------------------------


def check(results, expected):
    assert [(r.attempts, r.error) for r in results] == list(expected)
    assert [r.value for r in results] == [n if e is None else None for n, e in expected]


def test_what_the_job_itself_refuses_or_repeats_is_not_tried_again(tmp_path):
    check(run(1, jobs.counted, jobs.told_by(tmp_path, jobs.HISTORIES)), jobs.HISTORIES.values())


def test_a_killed_process_is_replaced_and_the_others_go_on(tmp_path):
    known = jobs.HISTORIES | jobs.deaths("its process was killed by SIGKILL (out of memory?)")
    check(run(2, jobs.counted, jobs.told_by(tmp_path, known)), known.values())


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2)])
def test_retries_are_counted_after_the_first_attempt(tmp_path, retries, attempts):
    given = jobs.told_by(tmp_path, ["a b c done", "done"])
    failed, done = run(1, jobs.counted, given, retries=retries)
    assert (failed.attempts, done.attempts) == (attempts, 1)
    assert failed.error == f"OSError: the network said {'ab'[retries]}"


def test_a_worker_killed_in_the_middle_of_a_report_holds_nobody_up(tmp_path):
    results = run(2, jobs.killed_while_it_reports, [tmp_path / "killed", tmp_path / "other"])
    assert [(r.value, r.attempts) for r in results] == [(1, 2), (1, 1)]


def test_processes_that_do_not_start_are_told_once(monkeypatch):
    monkeypatch.setattr(processes, "_serve", jobs.ends_at_its_start)
    fact = r'do not start: the last one ended with exit code 3.*if __name__ == "__main__":'
    with pytest.raises(TrainingError, match=fact):
        run(2, jobs.double, [1, 2])


# What cannot be sent ----------------------------------------------------------------------------


def test_jobs_that_cannot_be_pickled_are_refused():
    with pytest.raises(TrainingError, match=r"can be imported.*top of a module, or use workers=1"):
        run(2, jobs.double, [lambda: 1, lambda: 2])


def test_results_that_cannot_be_pickled_are_failures():
    results = run(2, jobs.without_pickle, [1, 2])
    assert ["result cannot be sent to another process" in r.error for r in results] == [True] * 2


def test_what_a_worker_cannot_load_is_said():
    results = run(2, jobs.Unloadable(), [1, 2])
    assert ["no such module here" in result.error for result in results] == [True, True]
    assert "use workers=1" in results[0].error


def test_a_failing_watch_is_raised_after_the_jobs_are_done():
    def watch(*seen):
        raise ZeroDivisionError("the watch is broken")

    done = []
    with pytest.raises(ZeroDivisionError, match="the watch is broken"):
        done.extend(LocalRunner(2).map(jobs.double, [1, 2, 3], watch))


# One GPU a process ------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_each_process_sees_one_device_and_this_one_what_it_saw(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    os.mkfifo(tmp_path / "pipe")
    given = [(tmp_path / "pipe", "r"), (tmp_path / "pipe", "w")]
    devices = (1, "GPU-8932f937")
    results = run(None, jobs.device_when_two_have_met, given, devices=devices)
    assert sorted(r.value for r in results) == ["1", "GPU-8932f937"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (result,) = run(None, jobs.device_when_two_have_met, [("", "")], devices=["7"])
    assert result.value == "7"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 2, ["0", "1"]), ("", 0, []), ("3, 5", 2, ["3", "5"]), ("3,-1,5", 1, ["3"])],
)
def test_devices_are_named_as_this_process_may_use_them(monkeypatch, visible, count, names):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == names


# The end ----------------------------------------------------------------------------------------


def test_who_stops_listening_ends_the_processes(tmp_path):
    results = LocalRunner(2).map(jobs.double, [1, 2, 3], lambda *seen: None)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


def test_a_script_that_ends_with_results_pending_ends():
    done = subprocess.run(
        [sys.executable, HERE / "left_open.py"],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == b"None\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    parent = subprocess.Popen([sys.executable, HERE / "orphans.py", pipe])
    try:
        said = b""
        while len(said) < 2:  # both workers have the pipe open
            said += read(reading)
        parent.kill()
        parent.wait()
        # The end of the file comes when the last one that has it open is gone.
        assert read(reading) == b""
    finally:
        parent.kill()
        parent.wait()
        os.close(reading)


def read(pipe):
    ready, _, _ = select.select([pipe], [], [], PATIENCE)
    assert ready, "a worker process did not end"
    return os.read(pipe, 10)
